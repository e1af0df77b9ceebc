"""The whole bench: models and tasks in, outcomes, flips and a choice out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantvane.errors import OutputError, QuantvaneError, SpecError
from support_cli import document, quantvane

pytest.importorskip("lm_eval", reason="lm-eval is not installed (quantvane[tasks])")

from quantvane.run.bench import bench, load_bench
from quantvane.run.bench_plan import BenchSpec
from quantvane.run.bench_work import bench_journal, bench_models
from quantvane.run.choose import choose
from quantvane.run.flips import flips
from quantvane.spec import ModelSpec
from quantvane.store.journal import read_journal
from quantvane.store.outcomes import outcome_rows

MODEL = Path(__file__).resolve().parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"
REF = f"{MODEL}?n_threads=1"
OTHER = f"{MODEL}?n_threads=1&cache_type_k=q8_0&cache_type_v=q8_0&flash_attn=on"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    sums = [{"task": "add", "prompt": f"{a}+{90 - a}=", "answer": "90"} for a in range(11, 41)]
    pairs = [
        {"sentence_good": f"The {n} is here.", "sentence_bad": f"The {n} are here.", "UID": "number"}
        for n in ("man", "house", "king", "old woman", "horse", "child")
    ]
    for name, rows in (("sums", sums), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory, tasks):
    return bench(REF, [OTHER], tasks=tasks, replay=True, slots=8, out=tmp_path_factory.mktemp("b") / "run")


def test_tables_summary_and_flips_agree(found):
    name = found.summary["candidates"][0]["name"]
    held = {p.stem: outcome_rows(p) for p in (found.out / "outcomes").glob("*.parquet")}
    assert sorted(map(len, held.values())) == [36, 36, 36]
    pooled = found.summary["candidates"][0]["pooled"]
    assert pooled["n"] == 36
    assert pooled["delta"]["value"] == pytest.approx(pooled["volume"] * (pooled["direction"]["value"] or 0))
    assert set(pooled["noise"]) == {"drops", "leapfrogs", "shared", "inside", "runs"}
    # the same files, read by flips as any outcome files
    files = found.out / "outcomes"
    (cand,) = (p for p in files.glob("lm10m*.jsonl"))
    again = flips(files / "reference.jsonl", [cand], noise=files / "noise_floor.jsonl").to_dict()["candidates"][0]
    assert (again["pooled"]["drops"], again["pooled"]["leapfrogs"]) == (pooled["drops"], pooled["leapfrogs"])
    assert again["pooled"]["noise"] == pooled["noise"]
    assert again["checked"]["prompts"] == 36
    assert name in json.loads((found.out / "manifest.json").read_text())["candidates"]


def test_divergence_margin_and_replay_are_there(found):
    entry = found.summary["candidates"][0]
    rows = outcome_rows(next((found.out / "outcomes").glob("lm10m*.parquet")))
    assert 0 < entry["kld_mean"] < 0.05
    assert all(r["kld"] is not None and r["scored"] > 0 for r in rows)
    assert all((r["margin"] is not None) == (r["task"] == "number") for r in rows)
    assert all((r["log_prob"] is not None) == (r["task"] == "add") for r in rows)
    assert entry["replay"]["answers"] == 30
    assert entry["replay"]["batch_shape_noise"] is not None
    # what calls cost was measured on the decoder's slots and is kept
    assert entry["cost"]["call_cost"]["sequences"] == 8
    assert min(entry["cost"]["call_cost"]["seconds"]) > 0
    assert 0 <= entry["cost"]["vain"] <= entry["cost"]["ahead"]
    assert found.summary["reference"]["cost"]["call_cost"] is None
    reference = outcome_rows(found.out / "outcomes" / "reference.parquet")
    assert all(r["kld"] is None for r in reference)
    assert sum(r["correct"] for r in reference) > 20


def test_replay_gives_the_outcomes_of_plain_generation(tmp_path, tasks, found):
    plain = bench(REF, [OTHER], tasks=tasks, slots=1, measured=False, floor=False, out=tmp_path / "run")
    ours, theirs = (
        {
            (r["task"], r["item"]): r
            for r in outcome_rows(next((b.out / "outcomes").glob("lm10m*.parquet")))
        }
        for b in (found, plain)
    )
    for key, row in theirs.items():
        assert ours[key]["tokens"] == row["tokens"] or ours[key]["unsure"]
    assert plain.summary["candidates"][0]["kld_mean"] is None
    assert plain.summary["noise_floor"] is None


def test_the_same_command_loads_and_another_is_refused(found, tasks):
    again = bench(REF, [OTHER], tasks=tasks, replay=True, slots=8, out=found.out)
    assert again.summary == found.summary
    with pytest.raises(OutputError, match="another run"):
        bench(REF, [OTHER], tasks=tasks, replay=True, slots=4, out=found.out)


def spec_of(tasks, **options):
    fake = "ref@fake?vocab=300"
    return BenchSpec(
        ModelSpec.parse(fake), (ModelSpec.parse("c@fake?vocab=300&noise=0.2"),), ("c",), (tasks,), **options
    )


def test_an_interrupted_run_continues(tmp_path, tasks, monkeypatch):
    """Stopped after some units, the rest is done and nothing is done twice; the outcomes are the same."""
    import quantvane.run.bench_work as work

    monkeypatch.setattr(work, "_UNIT", 8)
    spec = spec_of(tasks, replay=True)
    work.bench_models(spec, tmp_path / "whole", lambda event: None)

    class StopError(Exception):
        pass

    seen = []

    def stop(event):
        if event["event"] == "progress":
            seen.append((event["job"], event["done"]))
            if (event["job"], event["done"]) == ("c", 16):
                raise StopError

    with pytest.raises(StopError):
        bench_models(spec, tmp_path / "cut", stop)
    seen.clear()
    bench_models(spec, tmp_path / "cut", lambda e: seen.append((e.get("job"), e.get("done"))))
    assert ("c", 8) not in seen
    assert ("reference", 0) not in seen
    for name in ("reference", "c", "noise floor"):
        one, other = (
            [f[0].to_pylist() for f in read_journal(bench_journal(tmp_path / run, name))] for run in ("whole", "cut")
        )
        assert one == other
        assert len(one) == 5


def test_until_decided_stops_early_and_choose_uses_it(tmp_path):
    rows = [{"task": "t", "prompt": "\n3+4=", "choices": ["7\n", f"x{i}\n"], "answer": 0} for i in range(400)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = bench(REF, [OTHER], tasks=str(path), until_decided=True, margin=0.1, measured=False, out=tmp_path / "run")
    decision = done.summary["candidates"][0]["decision"]
    assert decision["decision"] == "equivalent"
    assert decision["decided_at"] <= decision["items"] < 400
    assert decision["items"] % 64 == 0
    paired = done.out / "outcomes" / "paired"
    candidate = next((done.out / "outcomes").glob("lm10m*.jsonl"))
    assert flips(next(paired.glob("*.jsonl")), [candidate]).to_dict()["candidates"][0]["pooled"]["n"] < 400
    assert choose(done.out, margin=0.1).chosen is not None
    assert choose(done.out, margin=0.001).chosen is None


def test_choose_as_a_gate(found):
    run = quantvane("choose", found.out, "--margin", 0.3, "--json")
    assert run.returncode == 0, run.stderr
    assert document(run)["chosen"]
    none = quantvane("choose", found.out, "--margin", 0.3, "--max-size", "1MB", "--json")
    assert none.returncode == 1
    assert document(none)["reason"]
    assert quantvane("choose", found.out, "--margin", 0.3, "--max-size", "much").returncode == 2
    assert quantvane("choose", found.out.parent / "nothing", "--margin", 0.3).returncode == 2


def test_the_command_and_its_errors(tmp_path, tasks):
    args = ("bench", "ref@fake?vocab=300", "c@fake?vocab=300&noise=0.5", "--tasks", f"{tasks}/pairs.jsonl")
    run = quantvane(*args, "--out", tmp_path / "r", "--json")
    assert run.returncode == 0, run.stderr
    assert document(run)["candidates"][0]["pooled"]["n"] == 6
    bad = quantvane(*args[:-1], str(tmp_path / "none.jsonl"), "--out", tmp_path / "s", "--json")
    assert bad.returncode == 2
    assert "none.jsonl" in document(bad)["error"]["message"]
    assert not (tmp_path / "s").exists()


def test_refusals(tmp_path, tasks):
    with pytest.raises(SpecError, match="slots"):
        spec_of(tasks, slots=0)
    with pytest.raises(QuantvaneError):
        load_bench(tmp_path)
    spec = spec_of(tasks, replay=True, metrics=(("add", "exact_match"),))
    assert BenchSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
