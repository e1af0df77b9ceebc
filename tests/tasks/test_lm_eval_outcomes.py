"""Rows as lm-evaluation-harness 0.4 writes them: responses and log-likelihoods are text, a row for every filter."""

from __future__ import annotations

import json

import pytest

from quantvane.errors import DataError
from quantvane.tasks import ReadOptions, read_outcomes
from quantvane.tasks.lm_eval import task_of


def generated(doc, filter_name, answer, right, **more):
    return {
        "doc_id": doc, "doc": {"question": "…"}, "target": "18", "resps": [["so 18"]], "filtered_resps": [answer],
        "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": ["\n"], "temperature": 0.0}}},
        "filter": filter_name, "metrics": ["exact_match"], "exact_match": right,
        "doc_hash": f"d{doc}", "prompt_hash": f"p{doc}", "target_hash": f"t{doc}",
    } | more  # fmt: skip


def chosen(doc, scores, acc, acc_norm):
    return {
        "doc_id": doc, "target": "1", "resps": [], "filtered_resps": [[str(s), "False"] for s in scores],
        "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " yes"}}, "filter": "none",
        "metrics": ["acc", "acc_norm"], "acc": acc, "acc_norm": acc_norm, "doc_hash": "d", "prompt_hash": "p",
    }  # fmt: skip


def write(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def gsm8k(tmp_path):
    rows = [generated(i, "strict-match", "[invalid]" if i == 2 else "18", float(i < 2)) for i in range(3)]
    rows += [generated(i, "flexible-extract", "18", 1.0) for i in range(3)]
    return write(tmp_path, "samples_gsm8k_2025-01-31T12-00-00.123456.jsonl", rows)


def test_task_names(tmp_path):
    assert task_of(tmp_path / "samples_gsm8k_2025-01-31T12-00-00.123456.jsonl") == "gsm8k"
    assert task_of(tmp_path / "samples_mmlu_pro_law.jsonl") == "mmlu_pro_law"
    assert task_of(tmp_path / "mine.jsonl") == "mine"


def test_several_filters_have_to_be_named(gsm8k):
    with pytest.raises(DataError) as problem:
        read_outcomes(gsm8k)
    assert "strict-match, flexible-extract" in problem.value.got
    assert "--filter" in problem.value.remedy
    with pytest.raises(DataError, match="none called 'typo'"):
        read_outcomes(gsm8k, options=ReadOptions(filters={"": "typo"}))


def test_the_named_filter_counts(gsm8k):
    strict = read_outcomes(gsm8k, options=ReadOptions(filters={"gsm8k": "strict-match"})).outcomes
    loose = read_outcomes(gsm8k, options=ReadOptions(filters={"": "flexible-extract"})).outcomes
    assert [o.correct for o in strict] == [True, True, False]
    assert [o.state for o in strict] == [None, None, "unparsed"]
    assert all(o.correct for o in loose)
    assert strict[0].task == "gsm8k"
    assert strict[0].prompt == "d0/p0"
    assert json.loads(strict[0].settings) == {"temperature": 0.0, "until": ["\n"]}


def test_several_metrics_have_to_be_named(tmp_path):
    path = write(tmp_path, "samples_arc.jsonl", [chosen(0, [-1, -3], 1.0, 0.0), chosen(1, [-2, -1.5], 1.0, 1.0)])
    with pytest.raises(DataError) as problem:
        read_outcomes(path)
    assert problem.value.got == "acc, acc_norm"
    plain = read_outcomes(path, options=ReadOptions(metrics={"": "acc"})).outcomes
    assert [o.answer for o in plain] == ["0", "1"]
    assert plain[0].settings == ""
    normed = read_outcomes(path, options=ReadOptions(metrics={"": "wrong", "arc": "acc_norm"})).outcomes
    assert [o.correct for o in normed] == [False, True]
    assert normed[0].answer is None  # the largest normalised score is not in the file


def test_rows_that_list_no_metrics(tmp_path):
    row = generated(0, None, "18", True)
    del row["metrics"], row["filter"]
    [found] = read_outcomes(write(tmp_path, "samples_x.jsonl", [row])).outcomes
    assert found.correct is True


def test_graded_metrics_are_refused(tmp_path):
    path = write(tmp_path, "samples_x.jsonl", [generated(0, "none", "a", 0.5)])
    with pytest.raises(DataError, match="line 1") as problem:
        read_outcomes(path)
    assert "threshold" in problem.value.remedy


def test_a_foreign_row_is_named(tmp_path):
    path = write(tmp_path, "samples_x.jsonl", [generated(0, "none", "a", 1.0), {"item": 3}])
    with pytest.raises(DataError, match="line 2"):
        read_outcomes(path)
