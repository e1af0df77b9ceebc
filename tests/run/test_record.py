"""``record`` and what ``compare`` makes of it: fake engine for the paths, real models for the numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.resources import files
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest

import quantvane as qv
from quantvane.engines.trace import open_trace
from quantvane.errors import (
    CapabilityError,
    EngineCrashError,
    EngineError,
    OutputError,
    ProtocolMismatchError,
    SpecError,
    TokenizerMismatchError,
    TraceError,
)
from quantvane.store.kld_file import KldFile
from quantvane.store.trace_manifest import ROWS
from support_cli import document, quantvane

REF = "ref@fake?vocab=300&hidden=16"
CAND = "a@fake?vocab=300&hidden=16&noise=0.05&bits=8"
BUNDLED = str(files("quantvane") / "assets" / "lm10m-f16.gguf")
FAST = {"floor_windows": 2, "resamples": 200, "backend": "numpy"}


@pytest.fixture(autouse=True, scope="module")
def _no_report():
    """Charts are drawn elsewhere; here they would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantvane.run.drawing.Drawer", mock.Mock())
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_bytes(bytes(rng.integers(97, 123, 6000, dtype=np.uint8)) + "é\r\n".encode())
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory, text):
    place = tmp_path_factory.mktemp("trace")
    return {
        store: qv.record(REF, text=text, out=place / store, store=store, context=64, floor_windows=2)
        for store in ("hidden", "logits")
    }


@pytest.fixture(scope="module")
def live(tmp_path_factory, text):
    return qv.compare(REF, [CAND], text=text, context=64, out=tmp_path_factory.mktemp("live") / "r", **FAST)


@pytest.mark.parametrize("store", ["hidden", "logits"])
def test_a_trace_stands_in_for_its_model(made, live, tmp_path, text, store: str) -> None:
    """Same protocol, same floor, same numbers: all but rounding for hidden states, to the bit for logits."""
    trace = made[store]
    assert trace.summary["kind"] == trace.summary["requested"] == store
    result = qv.compare(str(trace.path), [CAND, REF], out=tmp_path / "r", **FAST)
    assert result.summary["protocol"] == live.summary["protocol"]
    floor, expected = result.summary["noise_floor"], live.summary["noise_floor"]
    assert floor["how"] == expected["how"]
    assert floor["kld_mean"] == pytest.approx(expected["kld_mean"], abs=1e-14)
    assert result.summary["reference"]["fingerprint"] == live.summary["reference"]["fingerprint"]
    assert result.summary["reference"]["name"] == "ref"
    assert result.summary["reference"]["bits_per_weight"] == 16
    ours, theirs = (pq.read_table(r.out / "tokens" / "a.parquet") for r in (result, live))
    for name in theirs.column_names:
        if theirs[name].type == "double" and store == "hidden":
            np.testing.assert_allclose(np.array(ours[name]), np.array(theirs[name]), rtol=1e-3, atol=1e-5)
        else:
            assert ours[name].to_pylist() == theirs[name].to_pylist(), name
    mean, top = (result.summary["candidates"][1]["kld"][k]["value"] for k in ("mean", "max"))
    assert (mean, top) == (0, 0) if store == "logits" else 0 <= mean <= top < 1e-9


def test_no_noise_floor_is_run_for_a_trace(made, tmp_path) -> None:
    events: list[dict] = []
    qv.compare(str(made["hidden"].path), [CAND], out=tmp_path / "r", on_event=events.append, **FAST)
    assert {e["job"] for e in events if e["event"] == "progress"} == {"group0"}


def test_the_same_command_again_computes_nothing(made, text) -> None:
    events: list[dict] = []
    place = made["hidden"].path
    before = {p.name: p.stat().st_mtime_ns for p in place.iterdir()}
    again = qv.record(
        REF, text=text, out=place, context=64, floor_windows=2, on_event=events.append
    )
    assert again.summary == made["hidden"].summary
    assert before == {p.name: p.stat().st_mtime_ns for p in place.iterdir()}
    assert {e["event"] for e in events} <= {"loading", "done"}


def test_what_a_trace_directory_holds(made) -> None:
    names = {p.name for p in made["hidden"].path.iterdir()}
    tables = {"manifest.json", "windows.parquet", "vocabulary.parquet", "samples.json", ROWS}
    assert names == tables | {"head.npy"}
    assert {p.name for p in made["logits"].path.iterdir()} == tables
    summary = made["hidden"].summary
    assert summary["stored"] == "f16"
    assert np.load(made["hidden"].path / "head.npy").dtype == np.float16
    checked = summary["verification"]
    units = 3  # of 2048 tokens
    first = 32 * 31
    assert checked["rows"] == first + units - 1
    assert checked["kld_max"] < 1e-9


def test_a_trace_as_an_engine(made) -> None:
    """Any windows in any order; texts other than the samples, and windows of another text, are refused."""
    from dataclasses import replace

    from quantvane.engines.base import Engine

    hidden, logits = (open_trace(str(made[store].path), {}) for store in ("hidden", "logits"))
    assert isinstance(hidden, Engine)
    every = np.concatenate(list(logits.logits(logits.windows)))
    assert every.shape == (made["logits"].summary["tokens"], 300)
    per = 31
    order = [5, 6, 2, 40, 2]
    some = [hidden.windows[i] for i in order]
    expected = np.concatenate([every[i * per : (i + 1) * per] for i in order])
    np.testing.assert_allclose(np.concatenate(list(hidden.logits(some))), expected, rtol=1e-5, atol=1e-5)
    assert sum(len(b) for b in hidden.hidden(some)) == len(expected)
    assert list(hidden.logits([])) == []
    with pytest.raises(CapabilityError):
        next(logits.hidden(some))
    with pytest.raises(CapabilityError, match="tokenize"):
        hidden.tokenize("something else")
    assert len(hidden.tokenize(hidden.samples[0])) == len(hidden.samples[0].encode())
    with pytest.raises(TraceError, match="window 2"):
        next(hidden.logits([replace(some[2], tokens=some[2].tokens + 1)]))
    hidden.close()
    logits.close()


def test_hidden_states_that_do_not_reproduce_the_logits_are_not_kept(tmp_path, text) -> None:
    """The noisy fake's logits are not its head's: said on standard error and in the manifest."""
    noisy = REF + "&noise=0.001"
    options = ["--text", text, "--ctx", 64, "--floor-windows", 0, "--out", tmp_path / "t", "--json"]
    run = quantvane("record", noisy, *options)
    assert run.returncode == 0, run.stderr
    said = document(run)
    assert (said["requested"], said["kind"], said["stored"]) == ("hidden", "logits", "f32")
    assert "differs from the engine's own logits" in said["reason"]
    assert "storing logits instead" in run.stderr
    assert said["noise_floor"]["kld_mean"] is None
    assert said["noise_floor"]["reason"]
    plain = qv.record("ref@fake?vocab=300", text=text, out=tmp_path / "p", context=64, floor_windows=0)
    assert plain.summary["kind"] == "logits"
    assert "no hidden states" in plain.summary["reason"]


def test_a_later_unit_that_fails_turns_the_whole_trace_to_logits(tmp_path, text) -> None:
    from pathlib import Path

    from quantvane.engines.registry import open_engine
    from quantvane.run import recording
    from quantvane.run.fidelity import Fidelity, Unfaithful
    from quantvane.run.record import RecordSpec
    from quantvane.spec import ModelSpec

    calls = []

    def add(self, recorded, own, limits=True):
        calls.append(len(own))
        if len(own) == 1 and len(calls) > 10 and limits:
            raise Unfaithful("a later row differs")
        return real(self, recorded, own, limits)

    real, out, events = Fidelity.add, Path(tmp_path / "t"), []
    spec = RecordSpec(ModelSpec.parse(REF), (text,), context=64, stride=32, floor_windows=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fidelity, "add", add)
        out.mkdir()
        recording.record_reference(spec, out, events.append)
    assert "a later row differs" in next(e["text"] for e in events if e["event"] == "notice")
    engine = open_trace(str(out), {})
    assert engine.kind == "logits"
    own = open_engine(spec.reference, 64)
    for ours, theirs in zip(engine.logits(engine.windows[:1]), own.logits(engine.windows[:1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not (out / "head.npy").exists()


def test_half_precision_logits_say_what_they_cost(tmp_path, text) -> None:
    made = qv.record(REF, text=text, out=tmp_path / "t", store="logits", dtype="f16", context=64, floor_windows=0)
    checked = made.summary["verification"]
    assert 0 < checked["kld_mean"] < checked["kld_max"] < 1e-4
    result = qv.compare(str(made.path), [REF], out=tmp_path / "r", **FAST)
    assert 0 < result.summary["candidates"][0]["kld"]["mean"]["value"] < 1e-4


@pytest.mark.parametrize("store", ["hidden", "kld"])
def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path, text, store: str) -> None:
    args = ["record", REF + "&sleep=0.01", "--text", text, "--ctx", "64", "--store", store, "--floor-windows", "2"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert quantvane(*args, "--out", whole).returncode == 0
    kills = 0
    begun = (lambda: any(tmp_path.glob(".killed*.partial"))) if store == "kld" else (out / ROWS).exists
    for wait in (0.1, 0.5):
        child = subprocess.Popen(
            [sys.executable, "-m", "quantvane", *args, "--out", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None and not begun():
            time.sleep(0.02)
        time.sleep(wait)
        if child.poll() is None:
            kills += 1
            child.send_signal(signal.SIGKILL)
            if store == "kld":
                assert not out.exists()
            elif json.loads((out / "manifest.json").read_text())["state"] != "complete":
                with pytest.raises(TraceError, match="not finished"):
                    open_trace(str(out), {})
        child.wait()
    assert kills
    assert quantvane(*args, "--out", out).returncode == 0
    if store == "kld":
        assert out.read_bytes() == whole.read_bytes()
        return
    for path in whole.iterdir():
        if path.name != "manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    mine, theirs = (json.loads((p / "manifest.json").read_text()) for p in (out, whole))
    assert mine == theirs


def test_what_contradicts_the_recording_is_refused(made, tmp_path, text) -> None:
    trace = str(made["hidden"].path)
    other = tmp_path / "other.txt"
    other.write_text("another text " * 100)
    with pytest.raises(ProtocolMismatchError, match=r"other\.txt"):
        qv.compare(trace, [CAND], text=str(other), out=tmp_path / "r", **FAST)
    with pytest.raises(ProtocolMismatchError) as caught:
        qv.compare(trace, [CAND], context=32, protocol="sliding", out=tmp_path / "r", **FAST)
    assert "context = 64" in caught.value.expected
    assert "protocol = sliding" in caught.value.got
    with pytest.raises(TokenizerMismatchError):
        qv.compare(trace, ["c@fake?vocab=301"], out=tmp_path / "r", **FAST)
    with pytest.raises(SpecError, match="base file"):
        qv.compare(trace, [CAND], peer_statistics=True, out=tmp_path / "r", **FAST)
    with pytest.raises(SpecError, match="text"):
        qv.compare(REF, [CAND], out=tmp_path / "r", **FAST)
    with pytest.raises(SpecError, match="setting"):
        qv.compare(trace + "?rows=3", [CAND], out=tmp_path / "r", **FAST)
    assert not (tmp_path / "r").exists()
    agreeing = qv.compare(trace, [CAND], text=text, context=64, out=tmp_path / "r", **FAST)
    assert agreeing.summary["candidates"][0]["tokens"] > 0


def test_a_damaged_trace_ends_in_exit_status_2(made, tmp_path) -> None:
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(made["hidden"].path, bad)
    rows = bytearray((bad / ROWS).read_bytes())
    rows[len(rows) // 2] ^= 1
    (bad / ROWS).write_bytes(rows)
    run = quantvane("compare", bad, CAND, "--out", tmp_path / "r", "--json")
    assert run.returncode == 2
    assert document(run)["error"]["kind"] == "TraceError"
    (bad / ROWS).write_bytes(rows[:-5])
    with pytest.raises(TraceError, match="damaged"):
        qv.compare(str(bad), [CAND], out=tmp_path / "s", **FAST)


def test_places_and_failures(made, tmp_path, text) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="something else"):
        qv.record(REF, text=text, out=tmp_path / "mine", context=64)
    with pytest.raises(OutputError, match="another run"):
        qv.record(REF, text=text, out=made["hidden"].path, context=32, floor_windows=2)
    with pytest.raises(OutputError, match="no base file"):
        qv.record(REF, text=text, out=tmp_path / "mine" / "letter.txt", store="kld", context=64)
    with pytest.raises(OutputError, match="directory"):
        qv.record(REF, text=text, out=tmp_path / "mine", store="kld", context=64)
    with pytest.raises(SpecError):
        qv.record(REF, text=text, out=tmp_path / "x", store="kld", protocol="sliding", context=64)
    with pytest.raises(SpecError, match="recorded again"):
        qv.record(str(made["hidden"].path), text=text, out=tmp_path / "x")
    with pytest.raises(EngineError, match="NaN"):
        qv.record(REF + "&nan_at=3", text=text, out=tmp_path / "x", store="logits", context=64)
    with pytest.raises(EngineCrashError):
        qv.record(REF + "&crash_at=3", text=text, out=tmp_path / "x", context=64)
    assert not (tmp_path / "x").exists()


def test_sliding_windows_and_several_corpora(tmp_path, text) -> None:
    lines = tmp_path / "docs.jsonl"
    lines.write_text("".join(json.dumps({"text": chr(97 + i) * 90}) + "\n" for i in range(5)))
    both = {"text": [text, str(lines)], "protocol": "sliding", "context": 64, "stride": 20}
    made = qv.record(REF, out=tmp_path / "t", floor_windows=0, **both)
    ours = qv.compare(str(made.path), [CAND], out=tmp_path / "a", **FAST)
    theirs = qv.compare(REF, [CAND], out=tmp_path / "b", **both, **FAST)
    assert ours.summary["protocol"] == theirs.summary["protocol"]
    assert ours.summary["corpora"] == theirs.summary["corpora"]
    assert made.summary["tokens"] == ours.summary["candidates"][0]["tokens"]


# ---- llama.cpp's base file


def test_a_base_file_of_the_fake(tmp_path, text, live) -> None:
    made = qv.record(REF, text=text, out=tmp_path / "b.kld", store="kld", context=64)
    with KldFile.open(made.path) as file:
        assert (file.header.n_ctx, file.header.n_vocab) == (64, 300)
    chunks = live.summary["corpora"][0]["windows"]
    result = qv.compare(
        str(made.path), [CAND, REF], text=text, chunks=chunks, out=tmp_path / "r", peer_statistics=True, **FAST
    )
    first, second = result.summary["candidates"]
    assert first["kld"]["mean"]["value"] == pytest.approx(
        live.summary["candidates"][0]["kld"]["mean"]["value"], rel=1e-2, abs=1e-5
    )
    assert 0 < second["kld"]["mean"]["value"] < 1e-4
    assert second["peer"]["tokens"] == second["tokens"]
    assert second["peer"]["text"].startswith("====== Perplexity statistics ======")
    assert result.summary["noise_floor"]["kld_mean"] == pytest.approx(3.7e-5)
    assert "16-bit rounding" in result.summary["noise_floor"]["how"]
    assert result.summary["protocol"]["corpora"] == live.summary["protocol"]["corpora"]
    assert result.summary["protocol"]["tokenizer"] == live.summary["protocol"]["tokenizer"]


def test_base_files_that_do_not_fit(tmp_path, text) -> None:
    made = qv.record(REF, text=text, out=tmp_path / "b.kld", store="kld", context=64, chunks=4)
    other = tmp_path / "other.txt"
    other.write_text("another text " * 100)
    with pytest.raises(ProtocolMismatchError, match=r"other\.txt"):
        qv.compare(str(made.path), [CAND], text=str(other), out=tmp_path / "r", **FAST)
    with pytest.raises(ProtocolMismatchError) as caught:
        qv.compare(str(made.path), [CAND], chunks=9, out=tmp_path / "r", **FAST)
    assert caught.value.expected == "chunks = 4"
    with pytest.raises(TokenizerMismatchError, match="another size"):
        qv.compare(str(made.path), ["c@fake?vocab=301"], out=tmp_path / "r", **FAST)
    cut = tmp_path / "cut.kld"
    cut.write_bytes(made.path.read_bytes()[:-2])
    with pytest.raises(TraceError, match="truncated"):
        qv.compare(str(cut), [CAND], out=tmp_path / "r", **FAST)
    assert not (tmp_path / "r").exists()


def test_a_continued_run_keeps_the_peers_numbers(tmp_path, text) -> None:
    """A unit whose peer values were stored before the kill and measured again after it counts once."""
    from pathlib import Path

    from quantvane.run.measure import measure
    from quantvane.run.peer_taps import peer_path
    from quantvane.run.plan import CompareSpec, Job
    from quantvane.store.journal import read_journal

    made = qv.record(REF, text=text, out=tmp_path / "b.kld", store="kld", context=64)
    whole = qv.compare(str(made.path), [CAND], out=tmp_path / "r", peer_statistics=True, **FAST)
    spec = CompareSpec.from_dict(json.loads((whole.out / "plan.json").read_text())["spec"])
    job, out = Job("one", (0,)), Path(tmp_path / "s")
    measure(spec, [job], out, lambda event: None)
    journal = out / "journal" / "one-0of1.journal"
    frames = len(list(read_journal(journal)))
    journal.write_bytes(journal.read_bytes()[:-3])  # the last unit is measured again
    measure(spec, [job], out, lambda event: None)
    assert len(list(read_journal(journal.with_name("peer-" + journal.name)))) == frames + 1
    from quantvane.run.finish import Finisher

    summary = Finisher(out, spec, [job]).finish()
    assert summary["candidates"][0]["peer"] == whole.summary["candidates"][0]["peer"]
    assert peer_path(out, "a").read_bytes() == peer_path(whole.out, "a").read_bytes()


# ---- real models

GOLDEN = [
    ("kld-lm10m-ctx128", "models/lm10m/lm10m-f16.gguf", "lm10m-Q4_K_M.gguf", "Q4_K_M.txt", 128, 6),
    ("kld-stories260K-ctx256", "models/stories260K/stories260K-f16.gguf", "stories260K-Q4_0.gguf", "Q4_0.txt", 256, 12),
]
PEER = {"cache_type_k": "f16", "cache_type_v": "f16"}  # llama.cpp's own default


@pytest.mark.parametrize(("folder", "model", "quant", "printed", "context", "chunks"), GOLDEN)
def test_golden_base_file_and_printout(shared, tmp_path, folder, model, quant, printed, context, chunks) -> None:
    """The base file llama.cpp wrote, byte for byte, and what it printed for a quant, line for line."""
    from support_llama import skip_unless_golden_kernels

    skip_unless_golden_kernels()
    golden = shared / "golden" / folder
    made = qv.record(
        str(shared / model), text=str(shared / "text" / "books-a.txt"), out=tmp_path / "base.kld", store="kld",
        context=context, chunks=chunks, settings=PEER,
    )  # fmt: skip
    assert made.path.read_bytes() == (golden / "base.kld").read_bytes()
    result = qv.compare(
        str(golden / "base.kld"), [str(golden / quant)], settings=PEER, out=tmp_path / "r", peer_statistics=True,
        resamples=200,
    )  # fmt: skip
    peer = result.summary["candidates"][0]["peer"]
    expected = (golden / printed).read_text().strip().splitlines()
    assert peer["text"].strip().splitlines() == expected
    assert result.summary["candidates"][0]["kld"]["mean"]["value"] == pytest.approx(peer["kld_mean"], abs=1e-4)
    assert peer["clip"]["tokens"] == peer["tokens"]


def test_the_bundled_model_against_its_own_trace(tmp_path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("The old house stood on the hill, and nobody in the village had seen its master. " * 60)
    made = qv.record(BUNDLED, text=str(text), out=tmp_path / "t", context=64, chunks=8, floor_windows=0)
    assert made.summary["kind"] == "hidden"
    assert made.summary["verification"]["relative_error"] < 2e-6
    result = qv.compare(str(made.path), [BUNDLED], out=tmp_path / "r", resamples=200)
    assert 0 <= result.summary["candidates"][0]["kld"]["max"]["value"] < 1e-9
    per_token = made.summary["bytes"]["rows"] / made.summary["tokens"]
    assert per_token < 2 * 256  # half-precision states of width 256
    assert 2 * (4096 + 4) / per_token > 16  # against a row of llama.cpp's base file


def test_a_hugging_face_reference(tmp_path) -> None:
    """In this process: importing torch takes a worker longer than everything else."""
    pytest.importorskip("torch")
    from quantvane.engines.hf import open_hf
    from quantvane.run.fidelity import row_kld
    from quantvane.run.record import RecordSpec
    from quantvane.run.recording import record_reference
    from quantvane.spec import ModelSpec
    from support_hf import TEXT, make_tiny

    model, text, out = make_tiny(tmp_path, "granite"), tmp_path / "t.txt", tmp_path / "t"
    text.write_text(TEXT * 3)
    out.mkdir()
    spec = RecordSpec(ModelSpec.parse(f"{model}?n_threads=2"), (str(text),), context=32, stride=16, floor_windows=1)
    record_reference(spec, out, lambda event: None)
    trace, live = open_trace(str(out), {}), open_hf(str(model), {"n_threads": 2})
    assert (trace.kind, trace.info.settings["dtype"]) == ("hidden", "float32")
    assert trace.noise_floor is not None
    assert "attn=eager" in trace.noise_floor["how"]
    ours, theirs = (np.concatenate([b.copy() for b in e.logits(trace.windows)]) for e in (trace, live))
    assert row_kld(theirs, ours).max() < 1e-11
