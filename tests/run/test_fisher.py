"""``fisher``: the command over the fake engine and tiny models; refusals by name; interrupted runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from quantvane.errors import CapabilityError, EngineCrashError, ModelFileError, OutputError, SpecError
from quantvane.fisher import OutputMap, head_empirical, hidden_lambda, lambda_max
from quantvane.run.fisher import fisher, window_path
from quantvane.run.fisher_plan import FisherSpec
from quantvane.run.fisher_summary import space_summary, verdict
from quantvane.spec import ModelSpec
from support_cli import document, quantvane

REF = "ref@fake?vocab=300&hidden=16"
CAND = "a@fake?vocab=300&hidden=16&seed=1&bits=8"
FAST = {"context": 32, "chunks": 6, "resamples": 200}


@pytest.fixture(autouse=True, scope="module")
def _no_chart():
    """The chart is drawn once, below; here it would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantvane.run.fisher.write_fisher_report", lambda run: [])
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_bytes(bytes(np.random.default_rng(5).integers(97, 123, 2000, dtype=np.uint8)))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    out = tmp_path_factory.mktemp("fisher") / "run"
    return fisher(REF, [CAND, REF], text=text, space=["logit", "hidden", "head"], out=out, **FAST)


def test_numbers_are_those_of_the_functions(run, text):
    from quantvane.engines.registry import open_engine
    from quantvane.run.prepare import prepare

    manifest = json.loads((run.out / "manifest.json").read_text())
    spec = FisherSpec.from_dict(manifest["spec"])
    engine = open_engine(spec.reference, spec.context)
    windows = prepare(spec.as_compare(), engine).windows
    table = pq.read_table(window_path(run.out, run.summary["candidates"][0]["name"])).to_pydict()
    assert len(table["window"]) == len(windows) == 6
    for i, window in enumerate(windows[:2]):
        z = np.concatenate([b.copy() for b in engine.logits([window])]).astype(np.float64)
        h = np.concatenate([b.copy() for b in engine.hidden([window])])
        y = window.targets[window.scored]
        logp = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        assert table["nll_ref"][i] == pytest.approx(-logp[np.arange(len(y)), y].mean(), rel=1e-6)
        assert table["entropy_ref"][i] == pytest.approx(-(np.exp(logp) * logp).sum(1).mean(), rel=1e-6)
        assert table["lambda_logit_ref"][i] == pytest.approx(lambda_max(z).mean(), rel=1e-5)
        head = OutputMap(engine.output_heads()[0].weight)
        assert table["lambda_head_ref"][i] == pytest.approx(head_empirical(head, h, y).value, rel=1e-6)
        found = hidden_lambda(head, h, np.random.default_rng([0, window.index]), steps=12)
        assert table["lambda_hidden_ref"][i] == pytest.approx(found.value.mean(), rel=1e-6)
        assert table["upper_hidden_ref"][i] >= table["lambda_hidden_ref"][i]
    ratio = np.array(table["lambda_head_cand"]) / table["lambda_head_ref"]
    np.testing.assert_allclose(table["sigma_head"], ratio, rtol=1e-14)


def test_a_model_against_itself_has_sigma_one(run):
    same = run.summary["candidates"][1]
    for entry in same["spaces"].values():
        assert entry["sigma"]["geomean"]["value"] == pytest.approx(1.0, abs=1e-12)
        assert entry["sigma"]["below_one"]["value"] == 0.0
    table = run.to_arrow()
    assert table.num_rows == 12
    assert set(np.unique(table["sigma_logit"].to_numpy()[6:])) == {1.0}


def test_the_document(run):
    assert run.summary["spaces"] == {"logit": "true", "hidden": "true", "head": "empirical"}
    entry = run.summary["candidates"][0]
    assert entry["nll"]["cand"] != entry["nll"]["ref"]
    assert 0 <= entry["entropy"]["rose"] <= 1
    sigma = entry["spaces"]["logit"]["sigma"]
    assert sigma["windows"] == 6
    assert sigma["p05"]["value"] <= sigma["median"]["value"] <= sigma["p95"]["value"]
    assert "NaN" not in run.to_json()


def test_an_interrupted_run_continues_and_ends_alike(run, tmp_path, text):
    class KilledError(Exception):
        pass

    def kill(event):
        if event["event"] == "progress" and event["job"] != "reference":
            raise KilledError

    out = tmp_path / "run"
    ask = {"text": text, "space": ["logit", "hidden", "head"], "out": out, **FAST}
    with pytest.raises(KilledError):
        fisher(REF, [CAND, REF], **ask, on_event=kill)
    assert (out / "journal" / "reference.journal").stat().st_size > 8
    again = fisher(REF, [CAND, REF], **ask)
    assert again.to_arrow().equals(run.to_arrow())
    assert again.to_json() == run.to_json()
    with pytest.raises(OutputError, match="another run"):
        fisher(REF, [CAND, REF], **{**ask, "context": 64})


def test_a_crash_leaves_nothing_or_something_to_continue(tmp_path, text):
    with pytest.raises(EngineCrashError):
        fisher("r@fake?vocab=300&crash_at=0", CAND, text=text, out=tmp_path / "a", **FAST)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("space", "message"), [("params", "the params space"), ("hidden", "the hidden space"), ("head", "the head space")]
)
def test_engines_refuse_the_spaces_they_cannot_serve_by_name(tmp_path, text, space, message):
    with pytest.raises(CapabilityError, match=message) as caught:
        fisher("r@fake?vocab=300", "c@fake?vocab=300", text=text, space=space, out=tmp_path / "x", **FAST)
    assert "'fake'" in caught.value.message
    assert not (tmp_path / "x").exists()


def test_llamacpp_refuses_parameter_space(tmp_path, text):
    from importlib.resources import files

    model = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
    with pytest.raises(CapabilityError, match="'llamacpp' cannot be used for the params space"):
        fisher(model, model, text=text, space="params", out=tmp_path / "x", **FAST)


@pytest.mark.parametrize(
    "wrong",
    [{"space": "weights"}, {"space": []}, {"fisher": "exact"}, {"chunks": 0}, {"space": ["logit", "logit"]},
     {"steps": 0}, {"sketch": 2}],
)  # fmt: skip
def test_specs_that_cannot_be(tmp_path, text, wrong):
    with pytest.raises(SpecError):
        fisher(REF, CAND, **{"text": text, "out": tmp_path / "x", **FAST, **wrong})


def test_the_summary_of_known_ratios():
    spec = FisherSpec(ModelSpec("r", "fake"), (ModelSpec("c", "fake"),), ("c",), ("t",))
    sigma = np.array([0.5, 2.0, 2.0, 2.0, np.nan, 4.0, 1.0, 1.0, 1.0, 1.0])
    found = space_summary(sigma, np.arange(10), spec)
    assert (found["windows"], found["undefined"]) == (9, 1)
    assert found["geomean"]["value"] == pytest.approx(2 ** ((-1 + 3 + 2) / 9))
    assert found["below_one"]["value"] == pytest.approx(1 / 9)
    assert found["median"]["value"] == 1.0
    nothing = space_summary(np.array([np.nan]), np.arange(1), spec)
    assert nothing["geomean"]["value"] is None
    assert nothing["geomean"]["reason"]
    assert verdict(nothing) == "undefined"
    one = space_summary(np.array([2.0]), np.arange(1), spec)
    assert verdict(one) == "too few windows to say"
    for level, word in ((1.2, "rises"), (0.8, "falls"), (1.0, "undecided")):
        noise = np.exp(np.random.default_rng(0).normal(size=60) * 0.05)
        assert verdict(space_summary(level * noise, np.arange(60), spec)) == word


def test_command_line(tmp_path, text, monkeypatch):
    done = quantvane("fisher", REF, CAND, "--text", text, "--ctx", 32, "--chunks", 3, "--space", "logit,head",
                     "--out", tmp_path / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert document(done)["spaces"] == {"logit": "true", "head": "empirical"}
    for name in ("report.html", "report.md", "charts/sigma.svg", "charts/sigma.png"):
        assert (tmp_path / "run" / name).stat().st_size > 500
    page = (tmp_path / "run" / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    again = quantvane("report", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert "σ" in again.stdout
    refused = quantvane("fisher", "r@fake", "c@fake", "--text", text, "--space", "params", "--json")
    assert refused.returncode == 2
    assert document(refused)["error"]["kind"] == "CapabilityError"


# --- real gradients -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    pytest.importorskip("transformers")
    from support_hf import TEXT, make_tiny

    place = tmp_path_factory.mktemp("hf")
    path = place / "t.txt"
    path.write_text(TEXT * 4)
    return f"{make_tiny(place)}@hf", str(path)


@pytest.mark.parametrize("kind", ["empirical", "sampled", "true"])
def test_parameter_space_of_a_tiny_model(tmp_path, hf, kind):
    if kind == "true":
        pytest.importorskip("curvlinops")
    model, path = hf
    run = fisher(model, f"{model}?attn=eager", text=path, space="params", fisher=kind, out=tmp_path / "r",
                 context=16, chunks=2, resamples=200, draws=2, sketch=4096, steps=4)  # fmt: skip
    entry = run.summary["candidates"][0]["spaces"]["params"]
    assert entry["fisher"] == kind
    # the same weights under another attention kernel: rounding apart σ is 1
    assert entry["sigma"]["max"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert entry["lambda_ref"] > 0


def test_half_precision_gradients_are_refused(tmp_path, hf):
    model, path = hf
    with pytest.raises(CapabilityError, match="single precision"):
        fisher(f"{model}?dtype=bfloat16", model, text=path, space="params", out=tmp_path / "r", context=16, chunks=1)


def test_weights_of_a_gguf_in_a_directory(shared, tmp_path):
    """Q4_K weights through transformers and through llama.cpp: far closer to each other than to the reference."""
    pytest.importorskip("transformers")
    from quantvane.corpora.text import WindowRule, peer_windows, read_corpus
    from quantvane.displacement import token_metrics
    from quantvane.engines.quantize import quantize_file
    from quantvane.engines.registry import open_engine

    place = shared / "models" / "stories260K"
    target = tmp_path / "q.gguf"
    quantize_file(str(place / "stories260K-f16.gguf"), target, "Q4_K_M", None)
    specs = [f"{place / 'hf'}@hf", f"{place / 'hf'}@hf?weights={target}", str(target)]
    engines = [open_engine(ModelSpec.parse(spec), 64) for spec in specs]
    windows = peer_windows(engines[0], read_corpus(str(shared / "text" / "books-a.txt")), WindowRule(64, 32, 3), 0)
    y = np.concatenate([w.targets[w.scored] for w in windows]).astype(np.int32)
    ref, hf, cpp = (np.concatenate([b.copy() for b in e.logits(windows)]) for e in engines)
    apart = token_metrics(cpp, hf, y, backend="numpy").kld.mean()
    moved = token_metrics(ref, hf, y, backend="numpy").kld.mean()
    assert moved > 0.01
    assert apart < moved / 10  # what is left: llama.cpp rounds activations too
    assert engines[1].info.weights.bits_per_weight < engines[0].info.weights.bits_per_weight
    assert engines[1].info.fingerprint != engines[0].info.fingerprint
    assert ModelSpec.parse(specs[1]).stem == "q"
    other = shared / "models" / "babyllama" / "hf"
    with pytest.raises(ModelFileError):
        open_engine(ModelSpec.parse(f"{other}@hf?weights={target}"), 64)
    for engine in engines:
        engine.close()


def test_rows_of_query_and_key_are_put_back():
    from quantvane.engines.gguf_weights import _uninterleaved
    from support_gguf import permute_rope

    weight = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    np.testing.assert_array_equal(_uninterleaved(permute_rope(weight, 3), 3), weight)
    assert not math.isclose(float(np.abs(permute_rope(weight, 3) - weight).max()), 0.0)
