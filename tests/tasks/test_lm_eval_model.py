"""Our engines as lm-eval's model, and tasks from local files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from quantvane.engines.decoding import Feed, open_decoder
from quantvane.engines.fake import open_fake
from quantvane.engines.llamacpp import open_llamacpp
from quantvane.errors import CapabilityError, CorpusError, DataError, SpecError
from quantvane.tasks.scoring import Continuation, log_probs, score

pytest.importorskip("lm_eval", reason="lm-eval is not installed (quantvane[tasks])")

from lm_eval.api.instance import Instance

from quantvane.tasks.evaluate import Stored, evaluate
from quantvane.tasks.harness import load_tasks, require_lm_eval
from quantvane.tasks.lm_eval_model import EngineLM

MODEL = Path(__file__).resolve().parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"


@pytest.fixture(scope="module")
def fake():
    return open_fake("m", {"vocab": "300", "seed": "3"})


@pytest.fixture(scope="module")
def llama():
    engine = open_llamacpp(str(MODEL), {"n_threads": "1"})
    yield engine
    engine.close()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask(kind, *args, idx=0):
    return Instance(request_type=kind, doc={}, arguments=args, idx=idx, metadata=("t", idx, 1))


def by_hand(engine, tokens, context):
    """Σ ln p and greediness, one position at a time, in float64."""
    total, greedy = 0.0, True
    for at in range(context, len(tokens)):
        decoder = open_decoder(engine, 128, 1)
        row = np.array(decoder.decode([Feed(0, 0, tokens[:at], 1)])[0], np.float64)
        decoder.close()
        total += row[tokens[at]] - row.max() - math.log(np.exp(row - row.max()).sum())
        greedy &= int(row.argmax()) == tokens[at]
    return total, greedy


@pytest.mark.parametrize("name", ["fake", "llama"])
def test_scores_agree_with_one_position_at_a_time(name, request):
    engine = request.getfixturevalue(name)
    texts = ["the old house stood", "a", "and then he said that it was so"]
    items = [Continuation(engine.tokenize(text, add_bos=True), 1) for text in texts]
    items = [item for item in items if len(item.tokens) > 1]
    decoder = open_decoder(engine, 64, 8)
    found = score(decoder, items, backend="numpy")
    decoder.close()
    for item, one in zip(items, found, strict=True):
        total, greedy = by_hand(engine, item.tokens, item.context)
        assert one.log_prob == pytest.approx(total, rel=2e-4)
        assert one.greedy == greedy
        assert one.tokens == len(item.tokens) - 1


def test_divergence_from_itself_is_zero_and_from_another_is_not(fake):
    other = open_fake("other", {"vocab": "300", "seed": "3", "noise": "0.3"})
    items = [Continuation(fake.tokenize("hello world", add_bos=True), 4)]
    decoders = [open_decoder(engine, 64, 2) for engine in (fake, fake, other)]
    assert score(decoders[0], items, decoders[1], backend="numpy")[0].kld == 0.0
    assert score(decoders[2], items, decoders[1], backend="numpy")[0].kld > 0.01


def test_a_sequence_longer_than_one_call_is_scored_whole(fake):
    decoder = open_decoder(fake, 128, 2)
    item = Continuation(fake.tokenize("hello world, this is a long one", add_bos=True), 3)
    whole = score(decoder, [item], backend="numpy")[0]
    decoder.capacity = 7
    decoder.rows = 3
    pieces = score(decoder, [item, item], backend="numpy")
    assert [p.log_prob for p in pieces] == pytest.approx([whole.log_prob] * 2)
    assert score(decoder, [Continuation(np.zeros(500, np.int32), 3)])[0].note


def test_log_probs_of_impossible_tokens():
    logits = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert log_probs(logits, np.array([1]))[0] == -math.inf
    assert log_probs(logits, np.array([0]))[0] == pytest.approx(-math.log(2))


def test_the_three_requests_of_the_harness(fake):
    lm = EngineLM(fake, context=64, slots=4)
    (one, greedy), (empty, _) = lm.loglikelihood(
        [ask("loglikelihood", "abc", " de"), ask("loglikelihood", "", "de", idx=1)]
    )
    assert one < 0
    assert isinstance(greedy, bool)
    rolled = lm.loglikelihood_rolling([ask("loglikelihood_rolling", "de")])[0]
    assert rolled == pytest.approx(empty)  # a text without context is its rolling likelihood
    long = "the quick brown fox " * 12  # several windows; every token counts once
    parts = lm.loglikelihood_rolling([ask("loglikelihood_rolling", long)])[0]
    assert parts < 3 * rolled
    (text,) = lm.generate_until([ask("generate_until", "abc", {"until": [], "max_gen_toks": 5})])
    assert len(lm.answers["t", 0, 0].tokens) == 5
    assert isinstance(text, str)
    with pytest.raises(CapabilityError, match="sampled"):
        lm.generate_until([ask("generate_until", "abc", {"do_sample": True, "temperature": 0.7})])


def test_the_harness_runs_its_own_evaluation_on_us(tmp_path, llama):
    import lm_eval

    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in ((1, 2), (11, 87), (30, 9))]
    data = write(tmp_path / "d.json", rows)
    task = tmp_path / "sums.yaml"
    task.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        'doc_to_text: "\\n{{question}}"\ndoc_to_target: "{{answer}}"\noutput_type: generate_until\n'
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 16\nmetric_list:\n  - metric: exact_match\n'
    )
    (loaded,) = load_tasks([str(task)])
    lm = EngineLM(llama, context=64, slots=4)
    theirs = lm_eval.evaluate(lm, {"tasks": {"sums": loaded.task}}, bootstrap_iters=0)
    ours = evaluate(lm, {"sums": loaded}, [("sums", i) for i in range(3)])
    assert theirs["results"]["sums"]["exact_match,none"] == pytest.approx(np.mean([i.correct for i in ours]))
    assert [i.state for i in ours].count("correct") >= 2
    assert all(i.log_prob > -5 for i in ours if i.correct)


def test_local_files_become_tasks(tmp_path, llama):
    answers = write(tmp_path / "a.jsonl", [{"task": "add", "prompt": "3+4=", "answer": "7"}] * 2)
    pairs = write(
        tmp_path / "b.jsonl",
        [{"sentence_good": "He was a good man.", "sentence_bad": "He were man good a.", "UID": "order"}],
    )
    choices = write(tmp_path / "c.jsonl", [{"prompt": "\n3+4=", "choices": ["9\n", "7\n"], "answer": 1}])
    tasks = {t.name: t for t in load_tasks([answers, pairs, choices])}
    assert {n: (t.metric, len(t.instances)) for n, t in tasks.items()} == {
        "add": ("exact_match", 2), "order": ("acc", 1), "c": ("acc", 1),
    }  # fmt: skip
    lm = EngineLM(llama, context=64, slots=4)
    found = evaluate(lm, tasks, [("add", 1), ("order", 0), ("c", 0)])
    assert [item.state for item in found] == ["correct"] * 3
    assert (found[0].answer, found[1].answer, found[2].answer) == ("7", "0", "1")
    assert found[1].margin > 0
    assert math.isnan(found[0].margin)


def test_states_and_stored_answers(tmp_path, fake):
    rows = [{"prompt": "x" * 90, "answer": "7"}] + [{"prompt": c, "answer": "7"} for c in "abcdefghijklmnop"]
    tasks = {t.name: t for t in load_tasks([write(tmp_path / "a.jsonl", rows)])}
    lm = EngineLM(fake, context=60, slots=2)
    error, *others = evaluate(lm, tasks, [("a", i) for i in range(len(rows))])
    assert (error.state, error.correct) == ("error", None)
    assert "92 tokens" in error.note
    assert {"truncated"} <= {item.state for item in others} <= {"truncated", "wrong"}
    assert all((item.state == "truncated") == (item.finish == "length") for item in others)
    cut = next(item for item in others if item.state == "truncated")
    key = ("a", cut.item)
    again = evaluate(lm, tasks, [key], stored={key: Stored(cut.tokens, False)}, replay=True)[0]
    assert again.tokens.tolist() == cut.tokens.tolist()
    assert (again.divergence, again.agreed) == (None, len(cut.tokens))


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="line 2"):
        load_tasks([write(tmp_path / "x.jsonl", [{"prompt": "a", "answer": "b"}, {"text": "c"}])])
    path = tmp_path / "sums.json"
    path.write_text(json.dumps({"task": "sums", "dataset_path": "json", "dataset_kwargs": {"data_files": "/no"}}))
    with pytest.raises(DataError, match="sums"):
        load_tasks([str(path)])
    spec = write(tmp_path / "y.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(SpecError, match="metric 'f1'"):
        load_tasks([spec], metrics={"": "f1"})
    with pytest.raises(SpecError, match="twice"):
        load_tasks([spec, spec])
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    with pytest.raises(CapabilityError, match="lm-evaluation-harness") as caught:
        require_lm_eval()
    assert "quantvane[tasks]" in caught.value.remedy


TEMPLATE = (
    "<|endoftext|>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_prompts_through_the_chat_template(tmp_path, llama, monkeypatch):
    """Rendered by hand and by the harness: one BOS, markup as tokens, the answer behind the assistant's opening."""
    monkeypatch.setattr(type(llama), "chat_template", property(lambda self: TEMPLATE))
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{n}+4=", "answer": "7"} for n in (3, 5)])
    lm = EngineLM(llama, context=64, slots=4)
    (task,) = load_tasks([path], template=lm.apply_chat_template)
    text = "<|endoftext|>[user]\n3+4=[assistant]"
    assert task.instances[0][0].args[0] == text
    request = lm.request(task.instances[0][0])
    bos = llama.vocabulary.bos
    assert request.prompt.tolist() == [bos, *llama.tokenize("[user]\n3+4=[assistant]").tolist()]
    assert lm.prompt("no template's BOS")[0] == bos
    assert len(evaluate(lm, {task.name: task}, [(task.name, 0), (task.name, 1)])) == 2
    begun = lm.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The answer is "}], False
    )
    assert begun == "<|endoftext|>[user]x[assistant]The answer is"
    assert lm.chat_template(True) == TEMPLATE
    # the harness's own evaluation sends the same prompts
    import lm_eval

    (bare,) = load_tasks([path])
    found = lm_eval.evaluate(
        EngineLM(llama, context=64, slots=4), {bare.name: bare.task}, apply_chat_template=True, bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    sent = [s["arguments"][0][0] for s in found["samples"][bare.name]]
    assert text in sent


def test_a_model_without_a_template_is_refused(tmp_path, fake):
    path = write(tmp_path / "a.jsonl", [{"prompt": "3+4=", "answer": "7"}])
    with pytest.raises(CorpusError, match="no chat template"):
        load_tasks([path], template=EngineLM(fake, context=64, slots=1).apply_chat_template)
