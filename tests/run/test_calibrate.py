import json
import math
from pathlib import Path

import numpy as np
import pytest

import quantvane.run.calibrate_work as work
from quantvane.engines.decoding import open_decoder
from quantvane.engines.registry import open_engine
from quantvane.errors import CorpusError, DataError, OutputError, SpecError
from quantvane.monitor import Fingerprint, load_calibration
from quantvane.run.calibrate import calibrate
from quantvane.run.calibrate_work import RecordTrajectories, chosen_prompts, read_prompts, record_trajectories
from quantvane.run.trajectories import Sampling, generate_group, log_softmax, prompts_of_text, random_prompts
from quantvane.spec import ModelSpec
from quantvane.store.trajectories import read_trajectories
from support_cli import document, quantvane
from support_monitor import calibration

TEXT = "The quick brown fox jumps over the lazy dog while nine wizards box quietly. " * 20
QUICK = Sampling(1.0, 5, 6, "raw", 3)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def spec(text, **changes):
    fields = {"model": ModelSpec.parse("m@fake"), "name": "m", "sampling": QUICK, "texts": (text,), "trajectories": 40,
              "prompt_tokens": 4, "slots": 8}  # fmt: skip
    return RecordTrajectories(**{**fields, **changes})


def test_a_recording_continues_where_it_was_cut_and_ends_the_same(text, tmp_path, monkeypatch):
    whole = record_trajectories(spec(text), tmp_path / "a", lambda event: None)
    generate = work.generate_group
    calls = []

    def dies(*args):
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(work, "generate_group", dies)
    with pytest.raises(KeyboardInterrupt):
        record_trajectories(spec(text), tmp_path / "b", lambda event: None)
    assert not (tmp_path / "b" / "m.parquet").exists()
    again = record_trajectories(spec(text), tmp_path / "b", lambda event: None)
    assert calls == [0, 8, 16, 16, 24, 32]
    assert again.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["m.json", "m.parquet"]
    with pytest.raises(OutputError, match="another recording"):
        record_trajectories(spec(text, trajectories=41), tmp_path / "b", lambda event: None)


def test_what_is_recorded_does_not_depend_on_who_generates_beside_it(text):
    engine = open_engine(ModelSpec.parse("m@fake"), 64)
    prompts = prompts_of_text(engine, [TEXT], 6, 4, 0)
    decoder = open_decoder(engine, 32, 6)
    together = generate_group(decoder, prompts, 0, QUICK)
    alone = [generate_group(decoder, [prompt], i, QUICK)[0] for i, prompt in enumerate(prompts)]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(together, alone, strict=True))


def test_top_k_bounds_hold_what_the_whole_vocabulary_gives(text):
    engine = open_engine(ModelSpec.parse("m@fake"), 64)
    prompts = prompts_of_text(engine, [TEXT], 4, 4, 0)
    decoder = open_decoder(engine, 32, 4)
    part, exact = (
        np.concatenate(generate_group(decoder, prompts, 0, Sampling(1.0, k, 6, "raw", 3))) for k in (20, 0)
    )
    assert (exact[:, 0] == exact[:, 1]).all()
    assert (part[:, 0] <= exact[:, 0] * (1 + 1e-9)).all()
    assert (part[:, 1] >= exact[:, 0] * (1 - 1e-9)).all()
    assert (part[:, 2] <= exact[:, 2] * (1 + 1e-9)).all()
    later = np.isfinite(exact[:, 3])
    assert (np.isnan(part[:, 3]) == ~later).all()
    assert (part[later, 3] <= exact[later, 3] + 1e-9).all()
    assert part[:, 4] == pytest.approx(exact[:, 4])


def test_tokens_are_drawn_from_the_model_at_its_temperature():
    """NLL of what is drawn, on the distribution drawn from, averages to its entropy; colder is surer."""
    engine = open_engine(ModelSpec.parse("m@fake"), 64)
    prompts = prompts_of_text(engine, [TEXT], 32, 4, 0)
    decoder = open_decoder(engine, 32, 32)
    for t in (0.5, 1.0, 1.5):
        rows = np.concatenate(generate_group(decoder, prompts, 0, Sampling(t, 0, 20, "sampled", 1)))
        gap = rows[:, 4] - rows[:, 2]
        assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))
    raw = np.concatenate(generate_group(decoder, prompts, 0, Sampling(0.0, 0, 20, "raw", 1)))
    assert raw[:, 4].mean() < 3.0 < rows[:, 4].mean()


def test_log_softmax_and_random_prompts():
    logits = np.array([[1.0, -np.inf, 3.0]], np.float32)
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1.0)
    engine = open_engine(ModelSpec.parse("m@fake"), 64)
    prompts = random_prompts(engine, 50, 10, 0)
    assert all(p[0] == engine.vocabulary.bos and len(p) == 11 for p in prompts)
    assert len({int(x) for p in prompts for x in p[1:]}) > 150


def test_prompts_are_read_and_drawn(tmp_path):
    lines, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("one\n\ntwo\nthree\n")
    objects.write_text('{"prompt": "one"}\n{"prompt": "two\\nlines"}\n')
    assert read_prompts(str(lines)) == ["one", "two", "three"]
    assert read_prompts(str(objects)) == ["one", "two\nlines"]
    assert sorted(chosen_prompts(["a", "b", "c"], 3, 0)) == ["a", "b", "c"]
    assert len(chosen_prompts(["a", "b"], 50, 0)) == 50
    objects.write_text('{"text": "one"}\n')
    with pytest.raises(CorpusError, match="line 1"):
        read_prompts(str(objects))


def test_both_or_neither_source_of_prompts_is_refused(text):
    with pytest.raises(SpecError, match="need prompts"):
        spec(text, texts=())
    with pytest.raises(SpecError, match="need prompts"):
        spec(text, prompts="p.txt")
    with pytest.raises(SpecError):
        Sampling(temperature=0.0, stage="sampled")


def test_calibrate_through_the_command(text, tmp_path):
    out = tmp_path / "cal.json"
    args = ("calibrate", "m@fake", "--text", text, "--alarm-rate", "0.2", "--trajectories", "80", "--horizon", "6",
            "--prompt-tokens", "4", "--top-k", "5", "--out", out)  # fmt: skip
    first = document(quantvane(*args, "--also", "n@fake?noise=3", "--json"))
    cal = load_calibration(out)
    assert first["thresholds"] == pytest.approx(dict(cal.thresholds))
    assert first["fingerprint"]["top_k"] == 5
    assert first["report"]["trajectories"] == {
        "recorded": 80, "unobserved": 0, "normal": 20, "thresholds": 40, "held_out": 20,
    }  # fmt: skip
    assert first["report"]["held_out"]["n"] == 20
    (other,) = first["report"]["also"]
    assert other["alarm_rate"]["n"] == 80
    assert other["fingerprint"]["model"] != first["fingerprint"]["model"]
    recorded = tmp_path / "cal-trajectories" / "m.parquet"
    rows, about = read_trajectories(recorded)
    assert len(rows) == 80
    assert Fingerprint(**about["fingerprint"]) == cal.fingerprint
    again = document(quantvane("calibrate", recorded, "--alarm-rate", "0.2", "--out", tmp_path / "b.json", "--json"))
    assert again["thresholds"] == first["thresholds"]
    table = quantvane(*args)
    assert "held-out alarm rate" in table.stdout


def test_too_few_is_said_before_anything_is_generated(text, tmp_path):
    with pytest.raises(DataError, match="too few") as caught:
        calibrate("m@fake", alarm_rate=0.01, text=text, trajectories=50, out=tmp_path / "cal.json")
    assert "at least" in caught.value.expected
    assert not (tmp_path / "cal-trajectories").exists()
    run = quantvane("calibrate", "m@fake", "--text", text, "--alarm-rate", "0.01", "--trajectories", "50", "--out",
                    tmp_path / "cal.json", "--json")  # fmt: skip
    assert run.returncode == 2
    assert json.loads(run.stdout)["error"]["kind"] == "DataError"


BUNDLED = Path(__file__).parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"


def test_the_llama_cpp_processor_sees_what_calibration_saw():
    llama = pytest.importorskip("llama_cpp")
    from quantvane.monitor import LlamaCppMonitor

    engine = open_engine(ModelSpec.parse(f"{BUNDLED}?n_threads=1"), 64)
    prompt = engine.tokenize("It was a dark and stormy", add_bos=True)
    decoder = open_decoder(engine, 40, 1)
    (wanted,) = generate_group(decoder, [prompt], 0, Sampling(0.0, 0, 8, "raw", 0))
    decoder.close()
    engine.close()
    cal = calibration()
    with pytest.raises(DataError, match="top-k"):
        LlamaCppMonitor(cal)
    steps = []
    monitor = LlamaCppMonitor(_exact(cal), on_step=lambda row, step: steps.append(step))
    model = llama.Llama(str(BUNDLED), n_ctx=64, verbose=False, n_threads=1)
    list(
        model.create_completion(
            prompt.tolist(), max_tokens=8, temperature=0.0, stream=True,
            logits_processor=llama.LogitsProcessorList([monitor]),
        )
    )  # fmt: skip
    assert len(steps) == len(wanted)
    # F16 cache there, F32 here: close, not equal
    assert [step.lambda_low for step in steps] == pytest.approx(wanted[:, 0].tolist(), rel=0.02)
    assert [step.entropy for step in steps] == pytest.approx(wanted[:, 2].tolist(), rel=0.02)
    assert monitor.finish().tokens == monitor.steps == len(steps)


def test_the_transformers_processor_watches_every_row_to_its_end():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from quantvane.monitor import TransformersMonitor

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    seen = []
    monitor = TransformersMonitor(_exact(calibration()), ends={1}, on_step=lambda row, step: seen.append((row, step)))
    prompts = torch.tensor([[0, 5, 6], [0, 7, 8]])
    out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=40, do_sample=True, top_k=0,
        logits_processor=transformers.LogitsProcessorList([monitor]), output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    lengths = []
    for row in out.sequences[:, 3:].tolist():
        lengths.append(row.index(1) + 1 if 1 in row else len(row))
    assert min(lengths) < 40, "a row must end before the other for this test to say something"
    assert [summary.tokens for summary in monitor.finish()] == lengths
    first = [step for row, step in seen if row == 0]
    logits = torch.stack(out.logits)[: lengths[0], 0].double().numpy()
    from quantvane.fisher import lambda_max

    assert [step.lambda_low for step in first] == pytest.approx(lambda_max(logits).tolist(), rel=1e-6)
    p = np.exp(log_softmax(logits))
    assert [step.entropy for step in first] == pytest.approx((-(p * np.log(p)).sum(1)).tolist(), rel=1e-6)
    kl = (p[1:] * np.log(p[1:] / p[:-1])).sum(1)
    assert [step.consecutive_kl for step in first[1:]] == pytest.approx(kl.tolist(), rel=1e-6, abs=1e-9)


def _exact(cal):
    from dataclasses import replace

    return replace(cal, fingerprint=replace(cal.fingerprint, top_k=0))
