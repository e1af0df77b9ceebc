"""The noise command, and floors that enter later tables."""

from __future__ import annotations

import json

import pytest

import quantvane as qv
from quantvane.errors import ProtocolMismatchError, SpecError
from quantvane.run.noise import variations
from quantvane.spec import ModelSpec
from support_cli import document, quantvane

REF = "ref@fake?vocab=300"
FAST = {"context": 64, "resamples": 200, "backend": "numpy"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "t.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


@pytest.fixture(scope="module")
def floor(tmp_path_factory, text):
    return qv.noise(REF, text=text, vary=["repeat", "jitter", "jitter=0.01"], out=tmp_path_factory.mktemp("n"), **FAST)


def test_each_variation_and_the_largest(floor):
    rows = {row["changed"]: row["kld"]["mean"]["value"] for row in floor.document["variations"]}
    assert rows["repeated"] == 0
    assert 0 < rows["jitter=1e-6"] < rows["jitter=0.01"] == floor.kld_mean
    assert "jitter=0.01" in floor.document["floor"]["how"]


def test_a_recorded_floor_makes_ties(tmp_path, text, floor):
    near = [f"{c}@fake?vocab=300&noise={n}" for c, n in (("a", 0.004), ("b", 0.005), ("c", 0.5))]
    plain = qv.compare(REF, near, text=text, out=tmp_path / "p", floor_windows=0, **FAST)
    noisy = qv.compare(REF, near, text=text, out=tmp_path / "q", noise=str(floor.comparison.out), **FAST)
    assert noisy.summary["noise_floor"]["kld_mean"] == floor.kld_mean
    tied = {c["name"]: c["tied_with"] for c in noisy.summary["candidates"]}
    assert tied == {"a": ["b"], "b": ["a"], "c": []}
    assert {c["name"]: c["tied_with"] for c in plain.summary["candidates"]}["c"] == []
    assert plain.summary["noise_floor"]["kld_mean"] is None
    assert plain.summary["noise_floor"]["reason"]


def test_another_models_floor_is_refused(tmp_path, text, floor):
    with pytest.raises(ProtocolMismatchError, match="not this reference"):
        qv.compare(
            "ref@fake?vocab=300&seed=9", [REF], text=text, out=tmp_path / "r", noise=str(floor.comparison.out), **FAST
        )


def test_words_become_specs():
    spec = ModelSpec.parse("m.gguf?n_ubatch=32")
    changed = variations(spec, ["repeat", "flash_attn", "ubatch", "cache_type_k", "n_threads=3"])
    labels = [label for label, _ in changed]
    assert labels == [
        "repeated", "flash_attn=on", "n_ubatch=64", "cache_type_k=f16, cache_type_v=f16", "n_threads=3",
    ]  # fmt: skip
    # Another cache type must not switch flash attention on behind our back.
    assert dict(changed[3][1].settings)["flash_attn"] == "off"
    assert all(dict(s.settings)["n_ubatch"] == "32" for label, s in changed if "ubatch" not in label)
    with pytest.raises(SpecError, match="'weather'"):
        variations(spec, ["weather"])


def test_the_command(tmp_path, text):
    run = quantvane("noise", REF, "--text", text, "--ctx", 64, "--out", tmp_path / "n", "--json")
    assert run.returncode == 0, run.stderr
    held = json.loads((tmp_path / "n" / "noise.json").read_text())
    assert document(run)["floor"]["kld_mean"] == held["floor"]["kld_mean"]
    table = quantvane("noise", REF, "--text", text, "--ctx", 64, "--out", tmp_path / "n")
    assert "against itself" in table.stdout
