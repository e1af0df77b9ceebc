"""Cohorts: made once, reused while everything they came from is the same."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

import pytest

from quantvane.engines.gguf_file import sha256_file
from quantvane.errors import ModelFileError, OutputError
from quantvane.run.cohort import make_cohort
from quantvane.store.manifest import package_versions
from support_cli import document, quantvane

MODEL = str(files("quantvane") / "assets" / "lm10m-f16.gguf")


def test_made_once_and_kept(tmp_path):
    first = make_cohort(MODEL, ["q8_0", "Q2_K"], tmp_path)
    assert [r["name"] for r in first] == ["lm10m-Q8_0", "lm10m-Q2_K"]
    assert first[0]["bits_per_weight"] == pytest.approx(8.51, abs=0.01)
    assert set(first[1]["tensor_types"]) > {"Q2_K", "Q3_K"}
    events = []
    again = make_cohort(MODEL, ["Q2_K", "Q8_0", "Q2_K"], tmp_path, on_event=events.append)
    assert [r["sha256"] for r in again] == [first[1]["sha256"], first[0]["sha256"]]
    assert not events
    target = tmp_path / "lm10m-Q2_K.gguf"
    target.write_bytes(target.read_bytes()[:-1] + b"\x55")
    make_cohort(MODEL, ["Q2_K"], tmp_path)
    assert sha256_file(target) == first[1]["sha256"]


def test_a_file_of_unknown_origin_is_not_overwritten(tmp_path):
    (tmp_path / "lm10m-Q8_0.gguf").write_bytes(b"mine")
    with pytest.raises(OutputError):
        make_cohort(MODEL, ["Q8_0"], tmp_path)
    assert (tmp_path / "lm10m-Q8_0.gguf").read_bytes() == b"mine"


def test_a_missing_reference_leaves_nothing(tmp_path):
    with pytest.raises(ModelFileError):
        make_cohort(str(tmp_path / "no.gguf"), ["Q8_0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    run = quantvane("quantize", MODEL, "--types", "Q4_0", "--out", tmp_path, "--json")
    assert run.returncode == 0, run.stderr
    (record,) = document(run)["files"]
    assert hashlib.sha256((tmp_path / "lm10m-Q4_0.gguf").read_bytes()).hexdigest() == record["sha256"]
    table = quantvane("quantize", MODEL, "--types", "Q4_0", "--out", tmp_path)
    assert "Q4_0" in table.stdout
    assert json.loads((tmp_path / "cohort.json").read_text())["files"]


def test_the_shared_cohort_is_reproduced_to_the_byte(tmp_path, shared):
    """Where the llama.cpp build is the one the digests were taken with."""
    if package_versions()["llama-cpp-python"] != "0.3.36":
        pytest.skip("another llama.cpp build than the digests' own")
    digests = dict(reversed(line.split()) for line in (shared / "golden/lm10m-quants.sha256").read_text().splitlines())
    kinds = [name.removeprefix("lm10m-").removesuffix(".gguf") for name in digests]
    for record in make_cohort(str(shared / "models/lm10m/lm10m-f16.gguf"), kinds, tmp_path):
        assert record["sha256"] == digests[record["name"] + ".gguf"]
