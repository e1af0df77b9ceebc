"""The report's own process: what it writes, and what its failure costs."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

import quantvane as qv
from quantvane.errors import EngineCrashError, OutputError, RunError
from quantvane.run.drawing import Drawer, write_report
from quantvane.store.atomic import write_json
from report import sample


@pytest.fixture
def out(tmp_path):
    write_json(tmp_path / "summary.json", sample.one())
    return tmp_path


def _children():
    return psutil.Process().children(recursive=True)


def test_it_writes_what_the_report_consists_of(out):
    paths = write_report(out)
    assert {str(path.relative_to(out)) for path in paths} == set(sample.report("one"))
    for path in paths:
        assert path.read_bytes() == sample.report("one")[str(path.relative_to(out))]
    assert not _children()


def test_a_killed_child_costs_the_report_alone(out):
    drawer = Drawer()
    for child in _children():
        child.kill()
    with pytest.raises(RunError, match="draws the report died") as caught:
        drawer.draw(out)
    assert not isinstance(caught.value, EngineCrashError)
    assert "SIGKILL" in caught.value.got
    assert f"quantvane report {out}" in caught.value.remedy
    assert [path.name for path in out.iterdir()] == ["summary.json"]


def test_a_file_that_cannot_be_written_is_named(out):
    (out / "report.html").mkdir()
    (out / "report.html" / "x").touch()
    with pytest.raises(OutputError, match=r"report\.html"):
        write_report(out)
    assert not _children()


def test_a_failed_comparison_leaves_no_child_behind(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("some words " * 400)
    with pytest.raises(EngineCrashError):
        qv.compare("ref@fake?vocab=300", ["c@fake?vocab=300&crash_at=10"], text=str(text), out=tmp_path / "r",
                   context=64, floor_windows=0, resamples=200, backend="numpy")  # fmt: skip
    assert not _children()


def test_the_command_itself_loads_no_drawing_library(tmp_path):
    """Its memory would grow by what drawing takes, on top of what the summary holds."""
    (tmp_path / "t.txt").write_text("some words " * 400)
    code = (
        "import json, sys, quantvane as qv\n"
        "qv.compare('ref@fake?vocab=300', ['a@fake?vocab=300&noise=0.5'], text='t.txt', out='r', context=64, "
        "floor_windows=0, resamples=200, backend='numpy')\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"altair", "vl_convert"} & set(json.loads(done.stdout))
    assert (tmp_path / "r" / "report.html").exists()
