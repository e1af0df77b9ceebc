"""``quantvane flips`` as a user runs it, and the same through Python."""

from __future__ import annotations

import json
import math

import pytest

import quantvane as qv
from quantvane.errors import DataError, SpecError
from quantvane.stats.multiplicity import holm
from support_cli import document, quantvane


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(pattern, task="t", **more):
    return [{"item": i, "task": task, "correct": mark == "1"} | more for i, mark in enumerate(pattern)]


@pytest.fixture
def two(tmp_path):
    base = write(tmp_path / "fp16.jsonl", rows("1" * 30 + "0" * 30) + rows("1" * 40 + "0" * 20, "u"))
    cand = write(tmp_path / "q4.jsonl", rows("0" * 9 + "1" * 21 + "0" * 30) + rows("0" + "1" * 39 + "0" * 20, "u"))
    return base, cand


def test_published_outcomes(shared):
    place = shared / "outcomes" / "qwen2.5-1.5b"
    found = document(quantvane("flips", place / "fp16.gsm8k.jsonl", place / "awq_public.gsm8k.jsonl", "--json"))
    assert (found["schema"], found["margin"], found["reference"]) == (1, 0.02, "fp16.gsm8k")
    [candidate] = found["candidates"]
    task = candidate["tasks"]["gsm8k"]
    assert (task["n"], task["drops"], task["leapfrogs"]) == (200, 21, 23)
    assert task["mcnemar_p"] == pytest.approx(0.8804, abs=5e-5)
    assert task["holm_p"] == task["mcnemar_p"]
    assert candidate["checked"]["prompts"] == 200
    found = document(quantvane("flips", place / "fp16.mmlu.jsonl", place / "gptq_public.mmlu.jsonl", "--json"))
    pooled = found["candidates"][0]["pooled"]
    assert (pooled["drops"], pooled["leapfrogs"], pooled["answer_churn"]) == (38, 21, 0.22)
    assert pooled["mcnemar_p"] == pytest.approx(0.03634, abs=5e-6)


def test_a_directory_of_two_models_is_refused(shared):
    place = shared / "outcomes" / "qwen2.5-1.5b"
    run = quantvane("flips", place, place, "--json")
    assert run.returncode == 2
    assert document(run)["error"]["kind"] == "DataError"


def test_tasks_pooled_and_holm(two):
    found = qv.flips(two[0], [two[1]])
    [candidate] = found.candidates
    assert candidate.name == "q4"
    assert {k: v.drops for k, v in candidate.tasks.items()} == {"t": 9, "u": 1}
    assert candidate.pooled.drops == 10
    assert candidate.pooled.n == 120
    assert list(candidate.holm_p.values()) == holm([c.mcnemar_p for c in candidate.tasks.values()])
    assert candidate.holm_p["t"] == pytest.approx(2 * candidate.tasks["t"].mcnemar_p)
    only = qv.flips(two[0], [two[1]], tasks=["u"])
    assert only.candidates[0].pooled.n == 60
    table = found.to_arrow()
    assert table.column("task").to_pylist() == ["t", "u", "(pooled)"]
    assert table.column("drops").to_pylist() == [9, 1, 10]


def test_the_table(two):
    run = quantvane("flips", *two)
    assert run.returncode == 0
    for word in ("q4 against fp16", "pooled", "worse", "prompts could be compared for 0 of 120 items"):
        assert word in run.stdout
    assert run.stderr == ""


def test_names(two):
    assert qv.flips(two[0], [two[1]], names=["mine"]).candidates[0].name == "mine"
    both = qv.flips(two[0], [two[1]], names=["ours", "mine"])
    assert (both.reference, both.candidates[0].name) == ("ours", "mine")
    with pytest.raises(SpecError):
        qv.flips(two[0], [two[1]], names=["a", "b", "c"])
    with pytest.raises(SpecError, match="several candidates are called q4"):
        qv.flips(two[0], [two[1], two[1]])
    with pytest.raises(SpecError):
        qv.flips(two[0], [])


def test_states_by_declaration(tmp_path):
    base = write(tmp_path / "a.jsonl", rows("11110000"))
    lines = rows("11110000")
    lines[0]["state"] = "truncated"
    lines[1] = {"item": 1, "task": "t", "state": "timeout"}
    cand = write(tmp_path / "b.jsonl", lines)
    scored = document(quantvane("flips", base, cand, "--json"))["candidates"][0]["pooled"]
    assert scored["drops"] == 1
    assert scored["states"]["candidate"]["truncated"] == 0.125
    rules = ("--counts-as", "truncated=wrong", "--counts-as", "timeout=excluded")
    strict = quantvane("flips", base, cand, "--json", *rules)
    pooled = document(strict)["candidates"][0]["pooled"]
    assert (pooled["n"], pooled["drops"], pooled["states"]["excluded"]) == (7, 1, 1)
    with pytest.raises(DataError, match="have no score"):
        qv.flips(base, [cand], counts_as={"timeout": "scored"})


def test_clusters_of_different_tasks_stay_apart(tmp_path):
    base = write(tmp_path / "a.jsonl", rows("1" * 12, "t", cluster="c") + rows("1" * 12, "u", cluster="c"))
    cand = write(tmp_path / "b.jsonl", rows("0" * 12, "t", cluster="c") + rows("1" * 12, "u", cluster="c"))
    [found] = qv.flips(base, [cand]).candidates
    assert math.isnan(found.tasks["t"].delta.low)  # one cluster
    assert found.pooled.delta.low == -1  # two


@pytest.mark.parametrize(
    "arguments",
    [("--counts-as", "late=wrong"), ("--counts-as", "timeout"), ("--field", "item"), ("--metric", "a", "--metric", "b"),
     ("--margin", "3"), ("--task", "v"), ("--alpha", "0.9")],
)  # fmt: skip
def test_bad_arguments_are_bad_input(two, arguments):
    run = quantvane("flips", *two, *arguments, "--json")
    assert run.returncode == 2
    error = document(run)["error"]
    assert error["message"]
    assert error["remedy"]


def test_missing_files_and_no_candidate(tmp_path):
    run = quantvane("flips", tmp_path / "no.jsonl", tmp_path / "no.jsonl", "--json")
    assert run.returncode == 2
    assert document(run)["error"]["kind"] == "DataError"
    assert quantvane("flips", tmp_path / "no.jsonl", "--json").returncode == 2
