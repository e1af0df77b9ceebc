"""The whole path of ``compare`` on the fake engine: run directory, resume, refusals, errors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import quantvane as qv
from quantvane.corpora.text import WindowRule, peer_windows, read_corpus
from quantvane.engines.fake import open_fake
from quantvane.errors import CorpusError, EngineCrashError, EngineError, OutputError, TokenizerMismatchError
from quantvane.run.lockstep import units
from quantvane.types import TOKEN_FIELDS
from reference.displacement_twin import twin
from support_cli import document, quantvane

REF = "ref@fake?vocab=300"
CANDS = ["a@fake?vocab=300&noise=0.05&bits=8", "b@fake?vocab=300&noise=0.5&bits=4&rows=7"]
FAST = {"context": 64, "floor_windows": 2, "resamples": 200, "backend": "numpy"}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_bytes(bytes(rng.integers(97, 123, 6000, dtype=np.uint8)) + "é\r\n".encode())
    return str(path)


@pytest.fixture(scope="session")
def run(tmp_path_factory, text):
    return qv.compare(REF, CANDS, text=text, out=tmp_path_factory.mktemp("run") / "r", **FAST)


def _digest(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((out / "tokens").iterdir())}


def test_the_run_directory_is_what_the_contract_says(run):
    names = {p.name for p in run.out.iterdir()}
    assert {"manifest.json", "tokens", "summary.json", "report.html", "charts"} <= names
    assert "journal" not in names
    assert not list(run.out.rglob("*.tmp"))
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["state"] == "complete"
    assert manifest["protocol"]["hash"] == run.summary["protocol"]["hash"]
    assert manifest["versions"]["quantvane"]


def test_the_json_document(run):
    s = run.summary
    assert s["schema"] == 1
    assert s["protocol"]["context"] == 64
    assert s["reference"]["ppl"]["value"] > 1
    assert s["noise_floor"]["kld_mean"] >= 0
    assert [c["name"] for c in s["candidates"]] == ["a", "b"]
    for c in s["candidates"]:
        for key in ("mean", "median", "p90", "p95", "p99", "p999", "top5_mean", "geomean"):
            low, high = c["kld"][key]["ci"]
            assert low <= c["kld"][key]["value"] <= high
        assert c["kld"]["max"]["value"] >= c["kld"]["p999"]["value"]
        for key in ("ppl", "ln_ppl_ratio", "delta_p_mean", "delta_p_rms", "top1_agreement"):
            assert c[key]["value"] is not None
        assert c["bits_per_weight"] == (8 if c["name"] == "a" else 4)
    assert s["candidates"][0]["rank"] == 1


def test_tables_hold_what_the_twin_computes(run, text):
    """Windows, targets and every field, recomputed slowly from the engine's own logits."""
    reference, candidate = open_fake("ref", {"vocab": 300}), open_fake("b", {"vocab": 300, "noise": 0.5})
    windows = peer_windows(reference, read_corpus(text), WindowRule(64, 64, None), 0)
    table = pq.read_table(run.out / "tokens" / "b.parquet")
    assert table.num_rows == sum(w.scored.sum() for w in windows)
    take = windows[3]
    rows = table.filter((np.array(table["window"]) == 3).tolist())
    ref = np.concatenate([b.copy() for b in reference.logits([take])])
    cand = np.concatenate([b.copy() for b in candidate.logits([take])])
    expected = twin(ref, cand, take.targets[take.scored])
    for field in TOKEN_FIELDS:
        np.testing.assert_allclose(np.array(rows[field]), expected[field], rtol=1e-9, atol=1e-12, err_msg=field)
    assert np.array(rows["token"]).tolist() == take.targets[take.scored].tolist()


def test_arrow_and_pandas(run):
    table = run.to_arrow()
    assert table.num_rows == sum(c["tokens"] for c in run.summary["candidates"])
    frame = run.to_pandas()
    assert set(frame["candidate"].unique()) == {"a", "b"}
    assert json.loads(run.to_json())["schema"] == 1


def test_the_same_command_again_measures_nothing_and_gives_the_same(run, text):
    before = _digest(run.out)
    events = []
    again = qv.compare(REF, CANDS, text=text, out=run.out, on_event=events.append, **FAST)
    assert [e["event"] for e in events] == ["summarizing"]
    assert again.summary == run.summary
    assert _digest(run.out) == before


def test_another_spec_in_the_same_place_is_refused(run, text):
    with pytest.raises(OutputError) as caught:
        qv.compare(REF, CANDS, text=text, out=run.out, **{**FAST, "context": 32})
    assert "context = 64" in caught.value.expected
    assert "context = 32" in caught.value.got


def test_a_model_against_itself_is_exactly_zero(tmp_path, text):
    result = qv.compare(REF, [REF], text=text, out=tmp_path / "r", **FAST)
    (candidate,) = result.summary["candidates"]
    assert candidate["kld"]["mean"]["value"] == 0
    assert candidate["kld"]["max"]["value"] == 0
    assert candidate["kld"]["geomean"]["value"] is None
    assert candidate["kld"]["geomean"]["reason"]
    assert candidate["top1_agreement"]["value"] == 1


def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path, text):
    """kill -9 of the command and, by the kernel, of its worker; then the same command again."""
    slow = [f"{c}&sleep=0.02" for c in CANDS]
    args = [REF, *slow, "--text", text, "--ctx", 64, "--floor-windows", 0, "--resamples", 200, "--backend", "numpy"]
    whole = tmp_path / "whole"
    assert quantvane("compare", *args, "--out", whole).returncode == 0
    out = tmp_path / "killed"
    kills = 0
    for wait in (0.3, 0.6, 0.9):
        child = subprocess.Popen(
            [sys.executable, "-m", "quantvane", "compare", *map(str, args), "--out", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        journal = out / "journal" / "group0-0of1.journal"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None and not journal.exists():
            time.sleep(0.02)
        time.sleep(wait)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills
    assert quantvane("compare", *args, "--out", out).returncode == 0
    assert _digest(out) == _digest(whole)


def test_sharded_jobs_merge_to_the_same_tables(tmp_path, text, run):
    from quantvane.run.finish import Finisher
    from quantvane.run.measure import measure
    from quantvane.run.plan import CompareSpec, Job, journal_path

    spec = CompareSpec.from_dict(json.loads((run.out / "plan.json").read_text())["spec"])
    jobs = [Job("one", (0,), (0, 1)), *[Job(f"two{i}", (1,), (i, 3)) for i in range(3)], Job("floor", ())]
    for job in reversed(jobs):
        measure(spec, [job], tmp_path / "r", lambda event: None)
    shutil.copytree(tmp_path / "r", tmp_path / "early")
    Finisher(tmp_path / "r", spec, jobs).finish()
    assert _digest(tmp_path / "r") == _digest(run.out)
    # the same, told of each job as it is measured: groups are merged while others are still at work
    early = Finisher(tmp_path / "early", spec, jobs)
    for job in jobs:
        early.measured(journal_path(tmp_path / "early", job).name)
    early.finish()
    assert _digest(tmp_path / "early") == _digest(run.out)


def test_a_crashing_engine_kills_its_process_and_not_the_command(tmp_path, text):
    bad = "c@fake?vocab=300&crash_at=70"
    with pytest.raises(EngineCrashError) as caught:
        qv.compare(REF, [bad], text=text, out=tmp_path / "r", **FAST)
    assert "SIGABRT" in caught.value.got
    assert caught.value.exit_status == 3


def test_nan_logits_name_the_model(tmp_path, text):
    with pytest.raises(EngineError, match="'c'"):
        qv.compare(REF, ["c@fake?vocab=300&nan_at=3"], text=text, out=tmp_path / "r", **FAST)
    with pytest.raises(EngineError, match="reference"):
        qv.compare(REF + "&nan_at=3", ["c@fake?vocab=300"], text=text, out=tmp_path / "s", **FAST)


def test_another_vocabulary_is_refused_with_the_first_difference(tmp_path, text):
    with pytest.raises(TokenizerMismatchError) as caught:
        qv.compare(REF, ["c@fake?vocab=301"], text=text, out=tmp_path / "r", **FAST)
    assert "300" in caught.value.expected


def test_texts_that_cannot_be_measured(tmp_path, text):
    short = tmp_path / "short.txt"
    short.write_text("abc")
    with pytest.raises(CorpusError) as caught:
        qv.compare(REF, CANDS, text=str(short), out=tmp_path / "r", **FAST)
    assert "64 tokens" in caught.value.expected
    with pytest.raises(CorpusError):
        qv.compare(REF, CANDS, text=str(tmp_path / "absent"), out=tmp_path / "r", **FAST)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin1"))
    with pytest.raises(CorpusError, match="UTF-8"):
        qv.compare(REF, CANDS, text=str(latin), out=tmp_path / "r", **FAST)


def test_several_corpora_are_kept_apart_and_pooled(tmp_path, text):
    lines = tmp_path / "docs.jsonl"
    lines.write_text("".join(json.dumps({"text": chr(97 + i) * 200 + "xyz" * i}) + "\n" for i in range(9)))
    result = qv.compare(REF, CANDS, text=[text, str(lines)], out=tmp_path / "r", **FAST)
    (first, _) = result.summary["candidates"]
    parts = first["corpora"]
    assert set(parts) == {"t.txt", "docs.jsonl"}
    assert sum(p["tokens"] for p in parts.values()) == first["tokens"]
    pooled = sum(p["kld"]["mean"]["value"] * p["tokens"] for p in parts.values()) / first["tokens"]
    assert pooled == pytest.approx(first["kld"]["mean"]["value"])
    assert result.summary["resampled_by"] == "document"


def test_units_hold_whole_windows():
    fake = open_fake("r", {})
    windows = list(peer_windows(fake, _Corpus, WindowRule(64, 64, None), 0))
    groups = units(windows, 200)
    assert [w.index for g in groups for w in g] == list(range(len(windows)))
    assert {len(g) for g in groups[:-1]} == {3}
    assert [len(g) for g in units(windows[:2], 10)] == [1, 1]


class _Corpus:
    documents = ("a" * 1000,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place(tmp_path, text):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        qv.compare(REF, CANDS, text=text, out=tmp_path / "locked" / "r", **FAST)


def test_cli_contract(tmp_path, text):
    args = [REF, *CANDS, "--text", text, "--ctx", 64, "--floor-windows", 2, "--resamples", 200, "--backend", "numpy"]
    run = quantvane("compare", *args, "--out", tmp_path / "r", "--json")
    assert run.returncode == 0, run.stderr
    assert document(run)["candidates"][1]["name"] == "b"
    assert run.stderr == ""
    table = quantvane("report", tmp_path / "r")
    assert table.returncode == 0
    assert "Noise floor" in table.stdout
    bad = quantvane("compare", REF, "nowhere.gguf", "--text", text, "--out", tmp_path / "s", "--json")
    assert bad.returncode == 2
    error = document(bad)["error"]
    assert error["kind"] == "ModelFileError"
    assert all(error[key] for key in ("message", "expected", "got", "remedy"))
    assert not (tmp_path / "s").exists()
    crash = quantvane("compare", REF, "c@fake?vocab=300&crash_at=3", "--text", text, "--out", tmp_path / "t", "--json")
    assert crash.returncode == 3
    usage = quantvane("compare", REF, "--nonsense", "--json")
    assert usage.returncode == 2
    assert document(usage)["error"]["kind"] == "SpecError"
