"""A study as the JSON document of ``study --json``: every result, every NaN a null with its reason. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from quantvane.stats.correlation import Correlation
from quantvane.study.analysis import Study
from quantvane.study.cohort import Cohort
from quantvane.study.prediction import Prediction
from quantvane.study.router import RULES
from quantvane.study.signed import SIGNED
from quantvane.study.variants import LABELS

__all__ = ["rows_of", "study_document"]

Row = dict[str, Any]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ends(pair: tuple[float, float]) -> list[float] | None:
    return [float(pair[0]), float(pair[1])] if all(map(math.isfinite, pair)) else None


def study_document(study: Study, cohort: Cohort) -> dict[str, Any]:
    """See the module."""
    return {
        "schema": 1,
        "choices": asdict(study.choices),
        "reference": {"name": cohort.reference, "score": _plain(study.judged.ref)},
        "items": len(cohort.task),
        "tasks": len(cohort.tasks),
        "groups": _groups(cohort),
        "metric": {"variant": study.main.variant, "corpus": study.main.corpus, "context": study.main.context},
        "noise_floor": {"kld_mean": _plain(cohort.floor)},
        "zone": {
            "rule": study.rule.text,
            "words": study.rule.words,
            "members": [n for n, m in zip(cohort.names, study.zone.members, strict=True) if m],
            **({"reason": study.zone.reason} if study.zone.reason else {}),
        },
        "headline": {
            "full": study.headline.full.to_dict() | {"ci_items": _ends(study.headline.items_full)},
            "zone": study.headline.zone.to_dict() | {"ci_items": _ends(study.headline.items_zone)},
        },
        "holdout": _record(study.holdout),
        "null": _record(study.null),
        "ceiling": {"full": _record(study.ceiling_full), "zone": _record(study.ceiling_zone)},
        **rows_of(study, cohort),
        **({"reason": study.reason} if study.reason else {}),
    }


def _groups(cohort: Cohort) -> list[Row]:
    return [
        {"name": name, "items": int((cohort.group[cohort.task] == i).sum()), "tasks": int((cohort.group == i).sum())}
        for i, name in enumerate(cohort.groups)
    ]


def _record(result: Any) -> Row:
    out = {k: _plain(v) if isinstance(v, float) else v for k, v in asdict(result).items()}
    return out if out.get("reason") else {k: v for k, v in out.items() if k != "reason"}


def rows_of(study: Study, cohort: Cohort) -> dict[str, list[Row]]:
    """The tables by name, one mapping a row."""
    return {
        "candidates": _candidates(study, cohort),
        "variants": _variants(study),
        "sweep": [
            {"rule": s.rule.text, "threshold": s.rule.value, "members": s.members, **s.rho.to_dict()}
            for s in study.sweep
        ],
        "decomposition": [
            {
                "score": p.score, "region": p.region, "variant": p.metric.variant, "corpus": p.metric.corpus,
                "context": p.metric.context, "volume": p.volume.to_dict(), "direction": p.direction.to_dict(),
                "delta": p.delta.to_dict(),
            }
            for p in study.decomposition
        ],
        "prediction": [_prediction(p) for p in study.predictions],
        "router": [
            {
                "rule": r.rule, "words": RULES[r.rule], "region": r.region, "cases": r.cases, "pairs": r.pairs,
                "accuracy": r.accuracy.to_dict(),
            }
            for r in study.routes
        ],
        "signed": [
            {
                "metric": s.metric, "words": SIGNED[s.metric][0], "region": s.region, "expected": s.expected,
                **s.rho.to_dict(), "splits": _ends((s.low, s.high)), "beats_kld": _plain(s.beats_kld),
            }
            for s in study.signed
        ],
    }  # fmt: skip


def _candidates(study: Study, cohort: Cohort) -> list[Row]:
    return [
        {
            "name": name, "bits_per_weight": _plain(cohort.bits[i]), "metric": _plain(study.main.values[i]),
            "score": _plain(study.judged.scores[i]), "error": _plain(study.judged.error[i]),
            "delta": _plain(study.parts.delta[i]), "volume": _plain(study.parts.volume[i]),
            "direction": _plain(study.parts.direction[i]), "in_zone": bool(study.zone.members[i]),
        }
        for i, name in enumerate(cohort.names)
    ]  # fmt: skip


def _variants(study: Study) -> list[Row]:
    def region(found: Correlation, items: tuple[float, float], holm: float) -> Row:
        return found.to_dict() | {"ci_items": _ends(items), "p_holm": _plain(holm)}

    return [
        {
            "variant": v.metric.variant, "words": LABELS[v.metric.variant], "corpus": v.metric.corpus,
            "context": v.metric.context, "full": region(v.full, v.items_full, v.p_holm_full),
            "zone": region(v.zone, v.items_zone, v.p_holm_zone),
        }
        for v in study.variants
    ]  # fmt: skip


def _prediction(found: Prediction) -> Row:
    out: Row = {
        key: getattr(found, key)
        for key in ("items", "region", "candidates", "failed", "passed", "drops", "leapfrogs", "without")
    }
    for key in ("ratio", "auroc_failed", "auroc_flipped", "auroc_direction"):
        out[key] = getattr(found, key).to_dict()
    return out
