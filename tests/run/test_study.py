"""``study`` from real runs of tiny models to tables, report and back through the compact form."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from importlib.resources import files

import numpy as np
import pytest

from quantvane.errors import DataError, OutputError, ProtocolMismatchError
from quantvane.run.bench import bench
from quantvane.run.compare import compare
from quantvane.run.study import TABLES, export_study, study
from quantvane.run.study_input import read_input
from support_cli import document, quantvane

MODEL = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
CACHES = [f"{MODEL}?cache_type_k={kind}" for kind in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("lm_eval")
    place = tmp_path_factory.mktemp("runs")
    text = place / "text.txt"
    text.write_text((files("quantvane") / "assets" / "demo.txt").read_text("utf-8")[:6000], "utf-8")
    items = place / "items.jsonl"
    sums = [(i, 7 * i % 50) for i in range(30, 54)]
    rows = [{"task": f"sum{a % 2}", "prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums]
    items.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    compare(MODEL, CACHES, text=[str(text)], context=64, chunks=4, resamples=100, floor_windows=1, out=place / "far")
    bench(MODEL, CACHES, tasks=[str(items)], floor=False, out=place / "sums")
    return place


def test_runs_become_a_cohort_and_the_compact_form_says_the_same(runs, tmp_path):
    found = read_input([runs / "far", runs / "sums"])
    cohort = found.cohort
    assert len(cohort.names) == 5
    assert cohort.correct.shape == (5, 24)
    assert (cohort.tasks, cohort.groups) == (("sum0", "sum1"), ("sums",))
    assert len({d.variant for d in cohort.displacement}) >= 14
    assert all(np.isfinite(d.values).all() for d in cohort.displacement)
    assert np.isfinite(cohort.evidence).all()
    assert not cohort.choice.any()
    again = read_input([export_study([runs / "far", runs / "sums"], tmp_path / "small")])
    assert again.document == found.document
    for field in fields(cohort):
        one, other = getattr(cohort, field.name), getattr(again.cohort, field.name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), field.name
        elif field.name == "displacement":
            assert [(d.key, d.values.tolist()) for d in one] == [(d.key, d.values.tolist()) for d in other]
        else:
            assert one == other, field.name


def test_the_command_writes_tables_and_an_offline_report(runs, tmp_path):
    out = tmp_path / "study"
    run = quantvane("study", runs / "far", runs / "sums", "--out", out, "--splits", 4, "--resamples", 100,
                    "--zone", "nearest:5", "--json")  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = document(run)
    assert found["zone"]["rule"] == "nearest:5"
    assert len(found["variants"]) >= 14
    assert found == json.loads((out / "summary.json").read_text("utf-8"))
    page = (out / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert sorted(p.stem for p in (out / "tables").iterdir()) == sorted(TABLES)


def test_python_gives_the_same_tables(runs, tmp_path):
    result = study([runs / "far", runs / "sums"], out=tmp_path / "s", splits=4, resamples=100)
    assert {"full.value", "zone.p_holm"} <= set(result.to_arrow("variants").column_names)
    assert result.to_arrow("candidates").num_rows == 5
    assert json.loads(result.to_json())["items"] == 24


def test_other_candidates_are_refused_by_name(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "far", other)
    manifest = json.loads((other / "manifest.json").read_text("utf-8"))
    names = list(manifest["candidates"])
    manifest["candidates"][names[0]]["fingerprint"] = "0" * 64
    manifest["candidates"]["stranger"] = manifest["candidates"].pop(names[1])
    (other / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ProtocolMismatchError) as caught:
        read_input([runs / "sums", other])
    assert "only in the other: stranger" in caught.value.got
    assert f"'{names[0]}' has other weights" in caught.value.got


def test_what_is_no_finished_run_or_is_given_twice_is_refused(runs, tmp_path):
    with pytest.raises(OutputError):
        read_input([tmp_path])
    with pytest.raises(DataError, match="two runs measure"):
        read_input([runs / "far", runs / "far"])
    export_study([runs / "far"], tmp_path / "small")
    with pytest.raises(DataError, match="stands alone"):
        read_input([tmp_path / "small", runs / "far"])


def test_a_cohort_without_outcomes_gives_reasons(runs, tmp_path):
    found = study(runs / "far", out=tmp_path / "s").summary
    assert found["reason"] == "there are no outcomes"
    assert found["headline"]["full"]["value"] is None
    assert (tmp_path / "s" / "report.html").exists()
