"""Summaries to test the report with: seven quants of a ten-million-parameter model, and deliberate oddities.

The numbers are those of a real run (means, medians, percentiles, maxima, perplexities); intervals are built
from its standard errors; breakdowns by bucket and corpus are made up around them.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

from quantvane.report import build_report

# name: bpw, bytes, KLD mean, its standard error, median, p90, p95, p99, p99.9, max, top 5% mean,
#       PPL, ln PPL ratio, its standard error, same top, RMS Δp
QUANTS: dict[str, tuple[float, ...]] = {
    "Q8_0": (
        8.50, 10_980_000, 0.001653, 0.000043, 0.000646, 0.002327, 0.004435, 0.023339,
        0.08092, 0.378849, 0.01742,
        47.3601, 0.00072, 0.0009, 0.97603, 0.00784,
    ),
    "Q6_K": (
        6.56, 8_490_000, 0.010993, 0.000297, 0.004311, 0.0171, 0.0342, 0.1482,
        0.533685, 2.237443, 0.1121,
        47.5776, 0.0053, 0.0015, 0.93598, 0.01964,
    ),
    "Q5_K_M": (
        5.69, 7_370_000, 0.02307, 0.000503, 0.009331, 0.0412, 0.0793, 0.2801,
        0.992924, 2.848935, 0.2193,
        47.6206, 0.0062, 0.0021, 0.91152, 0.0302,
    ),
    "Q4_K_M": (
        4.89, 6_330_000, 0.061632, 0.001117, 0.026563, 0.1214, 0.2198, 0.6621,
        1.905667, 4.863872, 0.5321,
        50.9381, 0.0736, 0.0033, 0.85358, 0.05238,
    ),
    "IQ4_NL": (
        4.50, 5_850_000, 0.077437, 0.001471, 0.033129, 0.1523, 0.2811, 0.8633,
        2.82532, 6.469644, 0.6904,
        49.3439, 0.0418, 0.0039, 0.8351, 0.05493,
    ),
    "Q3_K_M": (
        3.91, 5_080_000, 0.159914, 0.002333, 0.075161, 0.3391, 0.6012, 1.5521,
        4.046736, 7.393931, 1.2033,
        50.7226, 0.0693, 0.0049, 0.76529, 0.08426,
    ),
    "Q2_K": (
        3.35, 4_360_000, 0.735691, 0.00685, 0.414625, 1.8632, 2.7741, 5.0213,
        8.316691, 10.755664, 4.1206,
        80.5062, 0.5313, 0.0098, 0.51235, 0.19709,
    ),
}  # fmt: skip

MIXES: dict[str, dict[str, float]] = {
    "Q8_0": {"Q8_0": 0.9982, "F32": 0.0018},
    "Q6_K": {"Q6_K": 0.83, "Q8_0": 0.1682, "F32": 0.0018},
    "Q5_K_M": {"Q5_K": 0.61, "Q6_K": 0.22, "Q5_1": 0.1, "Q8_0": 0.0682, "F32": 0.0018},
    "Q4_K_M": {"Q4_K": 0.58, "Q6_K": 0.24, "Q5_0": 0.1782, "F32": 0.0018},
    "IQ4_NL": {"IQ4_NL": 0.87, "Q5_1": 0.1282, "F32": 0.0018},
    "Q3_K_M": {"Q3_K": 0.49, "Q4_K": 0.27, "Q5_K": 0.06, "Q5_0": 0.1782, "F32": 0.0018},
    "Q2_K": {"Q2_K": 0.41, "Q3_K": 0.32, "Q6_K": 0.0918, "Q4_0": 0.1764, "F32": 0.0018},
}


def interval(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "ci": [value - half, value + half]}


def _aggregates(row: tuple[float, ...], tokens: int) -> dict[str, Any]:
    _, _, mean, se, median, p90, p95, p99, p999, top, top5, ppl, ratio, ratio_se, same, rms = row
    return {
        "tokens": tokens,
        "kld": {
            "mean": interval(mean, 1.96 * se),
            "median": interval(median, median * 0.03),
            "p90": interval(p90, p90 * 0.04),
            "p95": interval(p95, p95 * 0.05),
            "p99": interval(p99, p99 * 0.08),
            "p999": interval(p999, p999 * 0.2),
            "max": {"value": top},
            "top5_mean": interval(top5, top5 * 0.045),
            "geomean": interval(median * 0.8, median * 0.02),
        },
        "ppl": interval(ppl, 2.8),
        "ln_ppl_ratio": interval(ratio, 1.96 * ratio_se),
        "delta_p_mean": interval(-rms / 9, rms / 90),
        "delta_p_rms": interval(rms, rms * 0.04),
        "top1_agreement": interval(same, 0.004),
        "kld_rev_mean": interval(mean * 1.04, 2.1 * se),
        "jsd_mean": interval(mean * 0.24, 0.5 * se),
        "tv_mean": interval(mean**0.5 * 0.4, se**0.5 * 0.05),
        "hellinger_mean": interval(mean**0.5 * 0.45, se**0.5 * 0.05),
        "fisher_rao_mean": interval(mean**0.5 * 0.9, se**0.5 * 0.1),
        "entropy_ref_mean": interval(3.71, 0.05),
        "entropy_cand_mean": interval(3.71 + mean / 5, 0.05),
        "lambda_ref_mean": interval(0.21, 0.004),
        "lambda_cand_mean": interval(0.21 - mean / 50, 0.004),
        "topk_overlap_mean": interval(1 - mean**0.5 / 2, 0.004),
    }


def _candidate(name: str, row: tuple[float, ...], rank: int) -> dict[str, Any]:
    mean, se = row[2], row[3]
    edges = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    shape = [1.25, 1.4, 1.1, 0.7, 0.35, 0.06]
    same = _aggregates(row, 20_400)
    return {
        "name": f"lm10m-{name}.gguf",
        "label": name,
        "file_bytes": int(row[1]),
        "bits_per_weight": row[0],
        "rank": rank,
        "tied_with": [],
        "tensor_types": MIXES[name],
        "settings": {"n_ctx": 512, "n_gpu_layers": 0, "n_threads": 2},
        **same,
        "share_above": [
            {"threshold": t, "share": interval(min(0.99, mean / t / 4), 0.001)} for t in (0.01, 0.1, 1.0)
        ],
        "by_confidence": [
            {"low": lo, "high": hi, "tokens": 3400, "kld_mean": interval(mean * s, 4 * se * s)}
            for lo, hi, s in zip(edges[:-1], edges[1:], shape, strict=True)
        ],
        "by_position": [
            {
                "low": lo,
                "high": lo + 64,
                "tokens": 5100,
                "kld_mean": interval(mean * (1.05 - lo / 9000), 3 * se),
            }
            for lo in range(256, 512, 64)
        ],
        "corpora": {"books": {**same, "tokens": 12_240}, "code": {**_aggregates(row, 8_160)}},
        "categories": {"prose": {**same, "tokens": 11_000}, "dialogue": {**same, "tokens": 9_400}},
    }


def seven() -> dict[str, Any]:
    """Seven quants; Q4_K_M and IQ4_NL are tied; a noise floor was measured."""
    candidates = [_candidate(name, row, rank) for rank, (name, row) in enumerate(QUANTS.items(), 1)]
    candidates[3]["tied_with"] = ["lm10m-IQ4_NL.gguf"]
    candidates[4]["tied_with"] = ["lm10m-Q4_K_M.gguf"]
    candidates[4]["rank"] = 4
    return {
        "schema": 1,
        "created": "2025-03-01T12:00:00Z",
        "versions": {"quantvane": "0.1.0", "llama_cpp": "0.3.36", "numpy": "2.1.0"},
        "engine": {"build": "llama.cpp b4999 (AVX2, OpenMP)", "device": "CPU, 2 threads"},
        "protocol": {
            "hash": "9f2c4e1ab07d5533",
            "context": 512,
            "stride": 512,
            "scored": "second half of each window",
            "bos": "as the model's own metadata say",
            "corpus": "books-a.txt sha256 5d41402abc4b",
        },
        "corpora": [
            {"name": "books", "tokens": 12_240, "windows": 48},
            {"name": "code", "tokens": 8_160, "windows": 32},
        ],
        "noise_floor": {
            "kld_mean": 0.00042,
            "how": "F16 against itself with 1 instead of 2 threads, batch 64",
        },
        "reference": {
            "name": "lm10m-f16.gguf",
            "label": "F16",
            "ppl": interval(47.326, 2.8),
            "bits_per_weight": 16.0,
            "file_bytes": 20_700_000,
            "parameters": 10_300_000,
            "tensor_types": {"F16": 0.9982, "F32": 0.0018},
            "settings": {"n_ctx": 512, "n_gpu_layers": 0, "n_threads": 2},
        },
        "candidates": candidates,
    }


def one() -> dict[str, Any]:
    """One candidate, no breakdowns, no noise floor."""
    summary = seven()
    summary["candidates"] = [summary["candidates"][3]]
    summary["candidates"][0]["tied_with"] = []
    summary["candidates"][0]["rank"] = 1
    for key in ("corpora", "categories", "by_confidence", "by_position", "tensor_types"):
        del summary["candidates"][0][key]
    del summary["reference"]["tensor_types"]
    summary["noise_floor"] = {"kld_mean": None, "how": "", "reason": "skipped with --no-noise"}
    return summary


def many(count: int = 28, width: int = 60) -> dict[str, Any]:
    """``count`` candidates with names of ``width`` letters, neighbours tied."""
    summary = seven()
    pattern = list(QUANTS.items())
    candidates = []
    for number in range(count):
        name, row = pattern[number % len(pattern)]
        scale = 1 + number / 40
        moved = (row[0] - number / 60, row[1], *(x * scale for x in row[2:11]), row[11], *row[12:])
        item = _candidate(name, moved, number + 1)
        stem = f"organisation-name__some-model-7B-instruct-v{number:02d}-i1-{name}-"
        item["name"] = item["label"] = (stem + "x" * width)[:width]
        candidates.append(item)
    for left, right in itertools.pairwise(candidates[:7]):
        left["tied_with"] = [*left["tied_with"], right["name"]]
        right["tied_with"] = [left["name"]]
    summary["candidates"] = candidates
    return summary


def odd() -> dict[str, Any]:
    """Nulls with reasons, a bit-identical candidate, an infinite one, hostile names, a lone surrogate."""
    summary = seven()
    first, second, third, fourth, *_ = summary["candidates"]
    reason = "the corpus is one window: no interval"
    first["label"] = first["name"] = "<script>alert('x')</script>|a`b`[c](http://evil.example/x)\x1b[31m"
    for name, item in first["kld"].items():
        first["kld"][name] = {"value": 0.0, "ci": None, "reason": reason} if name != "max" else {"value": 0.0}
        del item
    second["kld"] = {name: {"value": float("inf"), "ci": None} for name in second["kld"]}
    third["kld"] = {
        name: {"value": None, "ci": None, "reason": "the engine gave NaN logits"} for name in third["kld"]
    }
    third["rank"] = None
    third["bits_per_weight"] = None
    third["tensor_types"] = None
    fourth["label"] = fourth["name"] = "quote\"' & \ud800 <b>bold</b>"
    summary["candidates"][4]["tied_with"] = [fourth["name"]]
    fourth["top1_agreement"] = {"value": None, "ci": None, "reason": "only top-k log-probabilities"}
    summary["noise_floor"] = {"kld_mean": 0.0, "how": "same run twice"}
    return copy.deepcopy(summary)


@functools.cache
def report(name: str) -> dict[str, bytes]:
    """The built report of the sample of that name, built once."""
    return build_report(globals()[name]())
