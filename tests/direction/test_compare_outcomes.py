"""The record of one comparison, on real outcomes and on edges."""

from __future__ import annotations

import json

import numpy as np
import pytest

import quantvane
from quantvane.direction import compare_outcomes
from quantvane.errors import DataError

FIELDS = {
    "n", "score_ref", "score_cand", "delta", "drops", "leapfrogs", "sidesteps", "answer_churn", "volume", "direction",
    "mcnemar_p", "equivalent", "items_needed", "eprocess", "states",
}  # fmt: skip


def _pairs(shared, base, cand):
    sides = []
    for name in (base, cand):
        text = (shared / "outcomes" / "qwen2.5-1.5b" / name).read_text()
        rows = {row["item_id"]: row for row in map(json.loads, text.splitlines())}
        sides.append(rows)
    keys = list(sides[0])
    correct = [[side[key]["correct"] for key in keys] for side in sides]
    answers = tuple([side[key]["prediction"] for key in keys] for side in sides)
    return correct[0], correct[1], answers


def test_awq_on_gsm8k(shared):
    ref, cand, answers = _pairs(shared, "fp16.gsm8k.jsonl", "awq_public.gsm8k.jsonl")
    found = quantvane.direction.compare_outcomes(ref, cand, answers=answers)
    assert (found.n, found.drops, found.leapfrogs) == (200, 21, 23)
    assert found.mcnemar_p == pytest.approx(0.8804, abs=5e-5)
    assert found.delta.value == pytest.approx(0.01)
    assert found.equivalent.verdict == "undecided"
    assert found.items_needed > 4000


def test_gptq_on_mmlu(shared):
    ref, cand, answers = _pairs(shared, "fp16.mmlu.jsonl", "gptq_public.mmlu.jsonl")
    found = compare_outcomes(ref, cand, answers=answers)
    assert (found.n, found.drops, found.leapfrogs) == (400, 38, 21)
    assert found.mcnemar_p == pytest.approx(0.03634, abs=5e-6)
    assert found.answer_churn == pytest.approx(0.22)
    assert found.equivalent.verdict == "worse"
    assert found.delta.high < 0
    assert found.volume * found.direction.value == pytest.approx(found.delta.value, abs=1e-15)


def test_the_dictionary_has_the_contracts_fields():
    rng = np.random.default_rng(0)
    ref, cand = rng.random((2, 50)) < 0.5
    found = compare_outcomes(ref, cand, answers=(["a"] * 50, ["b"] * 50)).to_dict()
    assert set(found) == FIELDS
    assert set(found["delta"]) == set(found["direction"]) == {"value", "ci"}
    assert set(found["equivalent"]) == {"margin", "p", "verdict"}
    assert set(found["eprocess"]) == {"value", "decided_at"}
    assert found["states"]["reference"]["correct"] == ref.mean()
    json.dumps(found, allow_nan=False)


def test_identical_outcomes_are_not_called_certain():
    found = compare_outcomes([True] * 40 + [False] * 10, [True] * 40 + [False] * 10)
    assert found.delta.value == 0
    assert found.delta.low < 0 < found.delta.high
    assert found.mcnemar_p == 1
    assert found.equivalent.verdict == "undecided"
    data = found.to_dict()
    assert data["direction"] == {"value": None, "ci": None, "reason": "no item flipped"}
    assert data["sidesteps"] is None
    assert data["reasons"]["sidesteps"] == "answers are not known"


def test_no_items():
    data = compare_outcomes([], []).to_dict()
    json.dumps(data, allow_nan=False)
    assert data["n"] == 0
    for field in ("score_ref", "score_cand", "volume", "mcnemar_p", "items_needed", "sidesteps", "answer_churn"):
        assert data[field] is None
        assert data["reasons"][field]


def test_swapping_the_models_mirrors_everything():
    rng = np.random.default_rng(4)
    ref, cand = rng.random(300) < 0.6, rng.random(300) < 0.5
    labels = np.arange(300) // 3
    for clusters in (None, labels):
        there, back = compare_outcomes(ref, cand, 0.1, clusters), compare_outcomes(cand, ref, 0.1, clusters)
        assert there.delta.low == pytest.approx(-back.delta.high)
        assert there.direction.low == pytest.approx(-back.direction.high)
        assert there.mcnemar_p == pytest.approx(back.mcnemar_p)
        assert there.equivalent.p == pytest.approx(back.equivalent.p)
        assert there.eprocess.value == pytest.approx(back.eprocess.value)
        assert {there.equivalent.verdict, back.equivalent.verdict} in ({"worse", "better"}, {"undecided"})


def test_clusters_of_any_label_and_clusters_of_one():
    ref, cand = [True, False, True, True] * 5, [True, True, False, True] * 5
    alone = compare_outcomes(ref, cand)
    assert compare_outcomes(ref, cand, clusters=[(i, "x") for i in range(20)]).to_dict() == alone.to_dict()
    words = compare_outcomes(ref, cand, clusters=[f"p{i // 4}" for i in range(20)])
    numbers = compare_outcomes(ref, cand, clusters=np.arange(20) // 4)
    assert words.to_dict() == numbers.to_dict()
    for wrong in ([1, 2], [[1], [2]], [{} for _ in range(20)]):
        with pytest.raises(DataError):
            compare_outcomes(ref, cand, clusters=wrong)


def test_states_are_counted_and_reported():
    ref, cand = [True] * 10, [True] * 8 + [False] * 2
    states = ([None] * 10, [None] * 6 + ["truncated", "truncated", "timeout", None])
    found = compare_outcomes(ref, cand, states=states)
    assert found.drops == 2  # truncated is as scored
    assert found.states.candidate["truncated"] == 0.2
    assert found.states.candidate["timeout"] == 0.1
    assert sum(found.states.candidate.values()) == pytest.approx(1)
    assert compare_outcomes(ref, cand, states=states, counts_as={"truncated": "wrong"}).drops == 4
    without = compare_outcomes(ref, cand, clusters=np.arange(10) // 2, states=states, counts_as={"timeout": "excluded"})
    assert (without.n, without.drops, without.states.excluded) == (9, 1, 1)
    assert without.states.counts_as["timeout"] == "excluded"


def test_bad_arguments():
    with pytest.raises(DataError):
        compare_outcomes([True], [True], margin=2)
    with pytest.raises(DataError):
        compare_outcomes([True], [True], alpha=0.7)
    with pytest.raises(DataError):
        compare_outcomes([True], [True, False])
    with pytest.raises(DataError):
        compare_outcomes([True], [True], states=(["odd"], [None]))
