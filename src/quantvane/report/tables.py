"""Flat chart tables from a summary: lists of dictionaries of plain numbers and text. Pure, no drawing.

Every row says in ``note`` what a chart cannot draw (a null with its reason, ∞, or 0 on a logarithmic axis);
``value``, ``low`` and ``high`` are None there, so that every table is valid JSON and Arrow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import number
from .readings import Candidate, Reading, Summary, clean, read

__all__ = [
    "BREAKDOWNS",
    "HEADLINE",
    "PERCENTILES",
    "agreement_rows",
    "bucket_rows",
    "chart_tables",
    "headline_rows",
    "nominal_bits",
    "shorten",
    "size_rows",
    "tail_rows",
    "tensor_rows",
]

Row = dict[str, Any]

HEADLINE: dict[str, str] = {
    "kld.mean": "Average over all tokens",
    "kld.top5_mean": "Mean of the top 5% most affected tokens",
    "kld.max": "Maximum: the single worst token",
}
PERCENTILES: dict[str, str] = {
    "kld.median": "median",
    "kld.p90": "90%",
    "kld.p95": "95%",
    "kld.p99": "99%",
    "kld.p999": "99.9%",
    "kld.max": "max",
}
AGREEMENT: dict[str, str] = {
    "top1_agreement": "Same most likely token",
    "ln_ppl_ratio": "Change of perplexity",
}
BREAKDOWNS: dict[str, str] = {
    "by_confidence": "reference confidence",
    "by_position": "position in the window",
}
_LABEL = 64
_MAX_TYPES = 15


def shorten(text: str, width: int = _LABEL) -> str:
    """``text`` cut in its middle: a quant's name tells itself apart at its ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def chart_names(summary: Summary) -> dict[str, str]:
    """Candidate key → unique text a chart prints."""
    short = {c.key: shorten(c.key) for c in summary.candidates}
    seen: dict[str, int] = {}
    for key, text in short.items():
        seen[text] = seen.get(text, 0) + 1
        if seen[text] > 1:
            short[key] = f"{text} #{seen[text]}"
    return short


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(candidate: Candidate, reading: Reading) -> Row:
    note = ""
    if not reading.known:
        note = f"no value: {reading.reason}"
    elif math.isinf(reading.value):
        note = f"{number(reading.value)}: {reading.reason or 'not finite, cannot be drawn'}"
    return {
        "name": candidate.key,
        "bits": _finite(candidate.bits),
        "value": _finite(reading.value),
        "low": _finite(reading.low),
        "high": _finite(reading.high),
        "note": note,
    }


def _long(summary: Summary, fields: Mapping[str, str]) -> list[Row]:
    """One row a candidate and field: candidate, field, its words, value, interval, note."""
    return [
        {**_row(candidate, candidate.get(field)), "field": field, "measure": words}
        for candidate in summary.candidates
        for field, words in fields.items()
    ]


def headline_rows(summary: Summary) -> list[Row]:
    """Average, top-5% mean and maximum of the KLD (nats) of each candidate."""
    return _long(summary, HEADLINE)


def size_rows(summary: Summary) -> list[Row]:
    """Mean KLD (nats) against bits per weight."""
    return [_row(c, c.get("kld.mean")) for c in summary.candidates]


def tail_rows(summary: Summary) -> list[Row]:
    """Median, upper percentiles and maximum of the KLD (nats)."""
    return _long(summary, PERCENTILES)


def agreement_rows(summary: Summary) -> list[Row]:
    """Top-1 agreement (share of one) and ln PPL ratio."""
    return _long(summary, AGREEMENT)


def _edge(item: object) -> str:
    if isinstance(item, int | float) and not isinstance(item, bool):
        return f"{item:.6g}"
    return "" if item is None else clean(item)


def _bucket(item: Mapping[str, Any]) -> str:
    low, high = _edge(item.get("low")), _edge(item.get("high"))
    return f"{low}–{high}" if high else f"≥ {low}"


def bucket_rows(summary: Summary, field: str = "by_confidence") -> list[Row]:
    """Mean KLD (nats) by bucket; ``order`` is the bucket's number, ``tokens`` its count of positions."""
    rows: list[Row] = []
    for candidate in summary.candidates:
        buckets = candidate.data.get(field)
        for order, item in enumerate(buckets if isinstance(buckets, Sequence) else ()):
            if isinstance(item, Mapping):
                row = _row(candidate, read(item.get("kld_mean")))
                rows.append({**row, "bucket": _bucket(item), "order": order, "tokens": item.get("tokens")})
    return rows


def nominal_bits(tensor_type: str) -> float:
    """Bits a type's name promises (``Q4_K`` → 4), to order types; −1 where the name has no number."""
    found = re.search(r"\d+", tensor_type)
    return float(found.group()) if found else -1.0


def _shares(candidate: Candidate) -> dict[str, float]:
    mix = candidate.data.get("tensor_types")
    pairs = mix.items() if isinstance(mix, Mapping) else ()
    return {clean(kind): read(share).value for kind, share in pairs if read(share).value > 0}


def tensor_rows(summary: Summary) -> list[Row]:
    """Share of the parameters held in each tensor type, reference first; ``start`` and ``end`` stack them.

    Beyond fifteen types in the whole cohort the rarest are added up as "other". A model without the
    information has one row with a note and share None.
    """
    models = (summary.reference, *summary.candidates)
    total: dict[str, float] = {}
    for model in models:
        for kind, share in _shares(model).items():
            total[kind] = total.get(kind, 0.0) + share
    if len(total) > _MAX_TYPES:
        total = dict(sorted(total.items(), key=lambda item: -item[1])[: _MAX_TYPES - 1])
    order = sorted(total, key=lambda kind: (-nominal_bits(kind), kind))
    rows: list[Row] = []
    for number_, model in enumerate(models):
        name = f"reference: {model.key}" if number_ == 0 else model.key
        base: Row = {"name": name, "bits": _finite(model.bits), "reference": number_ == 0, "note": ""}
        shares = _shares(model)
        merged = {kind: shares[kind] for kind in order if kind in shares}
        rest = sum(share for kind, share in shares.items() if kind not in order)
        if rest > 0:
            merged["other"] = rest
        if not merged:
            note = "no value: tensor types not stored"
            rows.append({**base, "type": None, "share": None, "start": None, "end": None, "note": note})
        start = 0.0
        for kind, share in merged.items():
            rows.append({**base, "type": kind, "share": share, "start": start, "end": start + share})
            start += share
    return rows


def chart_tables(summary: Summary) -> dict[str, list[Row]]:
    """Every chart's table, by the chart's name."""
    return {
        "headline": headline_rows(summary),
        "size": size_rows(summary),
        "tail": tail_rows(summary),
        "confidence": bucket_rows(summary),
        "agreement": agreement_rows(summary),
        "tensors": tensor_rows(summary),
    }
