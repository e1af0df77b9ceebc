"""Curve and prediction over a transformers engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from quantvane.engines.registry import open_engine
from quantvane.errors import CapabilityError, SpecError
from quantvane.fisher.rounding import round_to_nearest
from quantvane.run.fisher_curve import (
    CurveOptions,
    Sample,
    candidate_weights,
    curve_document,
    samples_of,
    weights_of_model,
)
from quantvane.spec import ModelSpec
from quantvane.store.atomic import to_json
from support_hf import TEXT, make_tiny

OPTIONS = CurveOptions(points=3, context=16, windows=1, scored=2, tokens=1, probes=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 4, encoding="utf-8")
    return path


def test_document(model: Path, text: Path) -> None:
    found = curve_document(str(model), ["rtn:4"], str(text), OPTIONS, predict=True)
    to_json(found)
    for entry in found["candidates"]:
        assert 0 < entry["relative_noise"] < 1
        assert len(entry["windows"]) == 1
        for row in entry["windows"]:
            assert set(row) == set(OPTIONS.spaces)
            for values in row.values():
                assert values["moved"] >= values["value"] + values["weyl"] - 1e-6 * values["value"]
        assert set(entry["verdicts"]) == set(entry["prediction"]) == set(OPTIONS.spaces)
        assert set(entry["prediction"]["hidden"]) == {"terms", "draws"}


def test_curve_passes_through_its_ends(model: Path, text: Path) -> None:
    options = CurveOptions(spaces=("logit",), points=5, context=16, windows=1, scored=4, tokens=2)
    found = curve_document(str(model), ["rtn:3"], str(text), options)
    row = found["candidates"][0]["windows"][0]["logit"]
    assert found["t"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert (row["curve"][2], row["curve"][4]) == (row["value"], row["moved"])


def test_candidates(model: Path) -> None:
    engine = open_engine(ModelSpec.parse(str(model)), 16)
    own = weights_of_model(engine)
    moved = candidate_weights("rtn:3", engine)
    assert set(moved) == set(own)
    for name, weight in own.items():
        want = round_to_nearest(weight, 3) if weight.ndim == 2 else weight
        np.testing.assert_allclose(moved[name], want, rtol=1e-6, atol=1e-7)
    same = candidate_weights(str(model), engine)
    assert all(np.array_equal(same[name], weight) for name, weight in own.items())
    for bad in ("rtn:", "rtn:x", "rtn:17"):
        with pytest.raises(SpecError, match="no rounding"):
            candidate_weights(bad, engine)
    with pytest.raises(SpecError, match="moved towards"):
        candidate_weights("model.gguf", engine)


def test_an_engine_without_gradients_is_refused_by_name() -> None:
    engine = open_engine(ModelSpec.parse("x@fake"), 16)
    with pytest.raises(CapabilityError, match="'fake' cannot be used for a perturbation curve"):
        weights_of_model(engine)


def test_samples_are_the_last_scored_positions(model: Path, text: Path) -> None:
    engine = open_engine(ModelSpec.parse(str(model)), 16)
    sample = samples_of(engine, str(text), OPTIONS)[0]
    np.testing.assert_array_equal(sample.rows, [13, 14])
    np.testing.assert_array_equal(sample.targets, sample.ids[14:16])
    thin = Sample(sample.ids, np.arange(8, 15), sample.ids[9:16]).thinned(3)
    np.testing.assert_array_equal(thin.rows, [8, 11, 14])


@pytest.mark.parametrize(
    "wrong",
    [{"points": 4}, {"spaces": ("odd",)}, {"scored": 64}, {"tokens": 99}, {"probes": 2}, {"windows": 0}],
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        CurveOptions(**wrong)  # type: ignore[arg-type]


def test_command(model: Path, text: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from quantvane.cli.fisher import command
    from quantvane.errors import InputError

    asked = [str(model), "rtn:3", "--text", str(text), "--ctx", "16", "--chunks", "2", "--space", "logit"]
    made = CliRunner().invoke(command, [*asked, "--curve", "--out", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    assert document == json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert len(document["candidates"][0]["windows"][0]["logit"]["curve"]) == 9
    shown = CliRunner().invoke(command, [*asked, "--predict"])
    assert "Theorem 4.3" in shown.output
    assert "predicted from draws" in shown.output
    refused = CliRunner().invoke(command, [str(model), "--text", str(text), "--curve"])
    assert isinstance(refused.exception, InputError)
