"""The whole study on cohorts whose truth is known, and on degenerate ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from quantvane.errors import DataError, SpecError
from quantvane.report.study import build_study_report
from quantvane.report.study_words import findings
from quantvane.store.atomic import to_json
from quantvane.study.analysis import Choices, analyse
from quantvane.study.cohort import Cohort
from quantvane.study.document import study_document
from support_study import cohort

QUICK = Choices(resamples=200, splits=10)


def _document(held: Cohort, choices: Choices = QUICK) -> dict:
    return json.loads(to_json(study_document(analyse(held, choices), held)))


def _numbers(value):
    if isinstance(value, dict):
        yield from (x for v in value.values() for x in _numbers(v))
    elif isinstance(value, list):
        yield from (x for v in value for x in _numbers(v))
    elif isinstance(value, float):
        yield value


def test_displacement_that_only_drives_volume_is_silent_near_the_baseline():
    rng = np.random.default_rng(1)
    volume = np.exp(rng.uniform(np.log(0.02), np.log(2.5), 40))
    drift = rng.normal(0, 0.03, 40)  # which way: unknown to the metric
    held = cohort(rng, volume, drift, {"kld_mean": volume**2, "ln_ppl_ratio": -drift}, items=4000)
    document = _document(held)
    rows = {r["variant"]: r for r in document["variants"]}
    assert rows["kld_mean"]["full"]["value"] < -0.7
    assert abs(rows["kld_mean"]["zone"]["value"]) < abs(rows["kld_mean"]["full"]["value"])
    assert rows["ln_ppl_ratio"]["zone"]["value"] < -0.5  # this one knows which way
    parts = next(p for p in document["decomposition"] if p["variant"] == "kld_mean" and p["region"] == "zone")
    assert parts["volume"]["value"] > 0.9
    signed = {(r["metric"], r["region"]): r["value"] for r in document["signed"]}
    assert signed["log_odds_shift", "zone"] > 0.4
    words = " ".join(findings(document))
    assert "over all 40 candidates" in words
    assert "nan" not in words.lower()


def test_equal_seeds_give_equal_results_and_others_do_not():
    rng = np.random.default_rng(2)
    held = cohort(rng, np.linspace(0.1, 1, 10), np.zeros(10), {"kld_mean": np.linspace(0.1, 1, 10)}, items=200)
    assert _document(held) == _document(held)
    assert _document(held) != _document(held, replace(QUICK, seed=1))


def _three():
    rng = np.random.default_rng(3)
    return cohort(rng, [0.1, 0.3, 0.9], [0, 0, 0], {"kld_mean": [0.1, 0.3, 0.9]}, items=100)


def _constant():
    held = cohort(np.random.default_rng(3), np.linspace(0.1, 1, 8), np.zeros(8), {"kld_mean": np.ones(8)}, items=100)
    return replace(held, correct=np.tile(held.ref_correct, (8, 1)))


def _far():
    rng = np.random.default_rng(3)
    return cohort(rng, np.linspace(2, 3, 8), np.full(8, -2.0), {"kld_mean": np.linspace(1, 2, 8)}, items=300)


def _no_outcomes():
    held = _far()
    nothing = {n: getattr(held, n)[:0] for n in ("task", "choice", "ref_correct", "ref_evidence", "group")}
    tables = {n: getattr(held, n)[:, :0] for n in ("correct", "kld", "evidence")}
    return replace(held, tasks=(), groups=(), **nothing, **tables)


DEGENERATE = {
    "three candidates": (_three, "only 3 candidates"),
    "constant scores": (_constant, "is the same for all"),
    "an empty zone": (_far, "no candidate is in the zone"),
    "no outcomes": (_no_outcomes, "there are no outcomes"),
}


@pytest.mark.parametrize("what", DEGENERATE)
def test_degenerate_cohorts_give_reasons_and_no_number_that_looks_fine(what):
    make, reason = DEGENERATE[what]
    document = _document(make())
    assert reason in json.dumps(document, ensure_ascii=False)
    for found in (document["headline"]["zone"], document["holdout"], document["null"], document["ceiling"]["zone"]):
        value = next((found[k] for k in ("value", "mean", "median") if k in found), None)
        assert value is None
        assert found["reason"]
    assert all(row["zone"]["value"] is None and row["zone"]["reason"] for row in document["variants"])
    assert all(row["value"] is None and row["reason"] for row in document["signed"] if row["region"] == "zone")
    assert all(map(math.isfinite, _numbers(document)))
    files = build_study_report(document)
    assert reason.split(" (")[0] in files["report.md"].decode()


def test_a_missing_task_of_the_composite_is_a_reason():
    document = _document(_three(), replace(QUICK, composite="mmlu=1,task0=1"))
    assert document["reason"] == "the composite's part 'mmlu' has no outcomes"
    assert document["reference"]["score"] is None
    assert document["headline"]["full"]["value"] is None


def test_what_cannot_be_studied_is_refused():
    with pytest.raises(DataError, match="kld_p99"):
        analyse(_three(), replace(QUICK, metric="kld_p99"))
    with pytest.raises(SpecError):
        Choices(zone="somewhere")
    with pytest.raises(SpecError):
        Choices(method="cosine")
