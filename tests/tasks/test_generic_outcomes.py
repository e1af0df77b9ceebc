from __future__ import annotations

import json

import pytest

from quantvane.errors import DataError, SpecError
from quantvane.tasks import ReadOptions, read_outcomes


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_field(tmp_path):
    row = {
        "item": 7, "task": "t", "correct": 1, "answer": ["a", 2], "cluster": "p", "state": "truncated",
        "prompt_hash": "ff", "settings": {"b": 1, "a": 0},
    }  # fmt: skip
    [found] = read_outcomes(write(tmp_path / "m.jsonl", [row])).outcomes
    assert (found.item, found.task, found.correct, found.answer) == ("7", "t", True, '["a", 2]')
    assert (found.cluster, found.state, found.prompt, found.settings) == ("p", "truncated", "ff", '{"a": 0, "b": 1}')
    assert "line 1" in found.where


def test_the_second_spellings(shared):
    found = read_outcomes(shared / "outcomes" / "qwen2.5-1.5b" / "fp16.mmlu.jsonl")
    assert len(found.outcomes) == 400
    assert found.name == "fp16.mmlu"
    assert found.outcomes[0].item == "abstract_algebra:test:0"
    assert found.outcomes[0].answer == "B"
    assert found.outcomes[0].prompt == "b00426998cd78bac"


def test_columns_named_by_the_caller(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"id": "a", "meta": {"bench": "t", "topic": 3}, "correct": False}])
    fields = {"item": "id", "task": "meta.bench", "cluster": "meta.topic"}
    [found] = read_outcomes(path, options=ReadOptions(fields=fields)).outcomes
    assert (found.item, found.task, found.cluster) == ("a", "t", "3")
    with pytest.raises(DataError, match="line 1"):
        read_outcomes(path, options=ReadOptions(fields=fields | {"cluster": "meta.none"}))
    with pytest.raises(SpecError):
        read_outcomes(path, options=ReadOptions(fields={"colour": "id"}))


GOOD = {"item": "a", "task": "t", "correct": True}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        ("[" * 100_000, "JSON"),
        ('{"item": "\\ud800', "JSON"),
        ({"task": "t", "correct": True}, "'item' and 'task'"),
        ({"item": {}, "task": "t", "correct": True}, "item"),
        ({"item": "a", "task": "t"}, "neither"),
        ({"item": "a", "task": "t", "correct": 0.5}, "0.5"),
        ({"item": "a", "task": "t", "correct": "yes"}, "yes"),
        ({"item": "a", "task": "t", "correct": True, "state": "asleep"}, "asleep"),
        ({"item": "a", "task": "t", "correct": True, "state": ["x"]}, "state"),
        ({"item": "a", "item_id": "b", "task": "t", "correct": True}, "item_id"),
    ],
)
def test_bad_lines_are_named(tmp_path, bad, said):
    path = write(tmp_path / "m.jsonl", [GOOD, "", bad])
    with pytest.raises(DataError, match="line 3") as problem:
        read_outcomes(path)
    assert said in str(problem.value)


def test_a_state_may_stand_for_the_outcome(tmp_path):
    rows = [{"item": i, "task": "t", "state": s} for i, s in enumerate(["correct", "wrong", "timeout"])]
    found = read_outcomes(write(tmp_path / "m.jsonl", rows)).outcomes
    assert [o.correct for o in found] == [True, False, None]


def test_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("quantvane.tasks.bounded.MAX_LINE", 60)
    path = write(tmp_path / "m.jsonl", [GOOD, GOOD | {"answer": "x" * 100}])
    with pytest.raises(DataError, match="line 2"):
        read_outcomes(path)
    monkeypatch.setattr("quantvane.tasks.bounded.MAX_LINE", 1000)
    monkeypatch.setattr("quantvane.tasks.bounded.MAX_ROWS", 1)
    with pytest.raises(DataError, match="line 2"):
        read_outcomes(path)


def test_nothing_there(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path / "absent.jsonl", tmp_path / "empty.jsonl", tmp_path / "notes.txt"):
        with pytest.raises(DataError):
            read_outcomes(path)


def test_a_directory_holds_many_files(tmp_path):
    write(tmp_path / "a.jsonl", [GOOD])
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.jsonl", [GOOD | {"task": "u"}])
    (tmp_path / "results_2025.json").write_text('{"results": {}}')
    found = read_outcomes(tmp_path)
    assert found.tasks == ["t", "u"]
    assert found.name == tmp_path.name
