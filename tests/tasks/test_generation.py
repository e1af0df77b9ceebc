"""Greedy generation and replay: the same tokens whatever the draft, the slots and the batches are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantvane.engines.decoding import Feed, RecomputingDecoder, open_decoder
from quantvane.engines.fake import open_fake
from quantvane.engines.llamacpp import open_llamacpp
from quantvane.errors import EngineError
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import NO_DRAFT, Request, ambiguous, shape_noise, top_two

MODEL = Path(__file__).resolve().parents[2] / "src" / "quantvane" / "assets" / "lm10m-f16.gguf"


def own_prompts(n: int) -> list[str]:
    """Task prompts of our own making, in the model's forms."""
    rng = np.random.default_rng(5)
    out = []
    for i in range(n):
        a, b, *more = rng.integers(1, 99, size=5)
        out.append(
            [
                f"\n{a}+{b}=",
                f"\n{max(a, b)}-{min(a, b)}=",
                f"\n{a}*{b}=",
                "\nsort " + " ".join(map(str, more)) + " =",
                "\nmax " + " ".join(map(str, more)) + " =",
            ][i % 5]
        )
    return out


def greedy_by_hand(engine, prompt, cap):
    """The slow obvious twin: the whole sequence again for every token, one argmax a step."""
    decoder = RecomputingDecoder(engine, 512, 1)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + cap:
        decoder.drop(0, 0)
        logits = decoder.decode([Feed(0, 0, np.array(tokens, np.int32), 1)])
        tokens.append(int(logits[0].argmax()))
        if tokens[-1] in decoder.ends:
            break
    return tokens[len(prompt) :]


def spoiled(tokens, rng):
    """A draft that fits somewhere: tokens replaced, left out, put in, cut off or added."""
    draft = list(tokens)
    for _ in range(rng.integers(0, 4)):
        at = int(rng.integers(0, max(1, len(draft))))
        kind = rng.integers(0, 4)
        if kind == 0 and draft:
            draft[at] = int(rng.integers(0, 256))
        elif kind == 1 and draft:
            del draft[at]
        elif kind == 2:
            draft.insert(at, int(rng.integers(0, 256)))
        else:
            draft = draft[:at] or [7]
    return np.array(draft, np.int32)


@pytest.fixture(scope="module")
def fake():
    return open_fake("m", {"vocab": "300", "seed": "3"})


def test_plain_generation_is_the_argmax_of_every_step(fake):
    prompts = [fake.tokenize(text, add_bos=True) for text in ("a", "hello", "\n3+4=")]
    found, effort = generate(open_decoder(fake, 64, 2), [Request(p, 12) for p in prompts], fake.token_bytes)
    assert [a.tokens.tolist() for a in found] == [greedy_by_hand(fake, p, 12) for p in prompts]
    assert all(a.finish in ("length", "end") for a in found)
    assert effort.calls > effort.steps > 0


@pytest.mark.parametrize(("slots", "serial"), [(1, False), (4, False), (4, True)])
def test_any_draft_gives_the_same_answer(fake, slots, serial):
    rng = np.random.default_rng(slots + serial)
    prompts = [fake.tokenize("".join(map(chr, rng.integers(97, 123, size=6))), add_bos=True) for _ in range(60)]
    plain, _ = generate(open_decoder(fake, 96, 1), [Request(p, 24) for p in prompts], fake.token_bytes)
    drafted = [Request(p, 24, (), spoiled(a.tokens, rng)) for p, a in zip(prompts, plain, strict=True)]
    found, _ = generate(open_decoder(fake, 96, slots), drafted, fake.token_bytes, serial=serial)
    for a, b, request in zip(plain, found, drafted, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert (a.finish, a.text) == (b.finish, b.text)
        np.testing.assert_allclose(a.margins, b.margins)
        n = min(len(request.draft), len(a.tokens))
        first = next((i for i in range(n) if request.draft[i] != a.tokens[i]), None)
        assert b.divergence == first or first is None
    assert any(0 < a.agreed < len(a.tokens) for a in found)


def test_drafts_that_fit_cost_few_calls(fake):
    prompt = fake.tokenize("hello", add_bos=True)
    (answer,), plain = generate(open_decoder(fake, 96, 1), [Request(prompt, 20)], fake.token_bytes)
    request = Request(prompt, 20, (), answer.tokens)
    (again,), effort = generate(open_decoder(fake, 96, 1), [request], fake.token_bytes)
    # as far as a draft is trusted at first, further, the rest
    assert (effort.calls, again.divergence, again.agreed) == (3, None, len(answer.tokens))
    _, several = generate(open_decoder(fake, 96, 1), [request] * 20, fake.token_bytes)
    assert several.calls <= 45  # soon two each: a piece, then the rest
    assert plain.calls == len(answer.tokens)


def test_drafts_that_never_fit_cost_next_to_nothing(fake):
    """What is fed in vain stays a small share of what is computed, alone and in batches."""
    rng = np.random.default_rng(8)
    prompts = [fake.tokenize("".join(map(chr, rng.integers(97, 123, size=6))), add_bos=True) for _ in range(60)]
    plain, cost = generate(open_decoder(fake, 96, 1), [Request(p, 24) for p in prompts], fake.token_bytes)
    wrong = [Request(p, 24, (), rng.integers(0, 256, size=24).astype(np.int32)) for p in prompts]
    for slots in (1, 16):
        found, effort = generate(open_decoder(fake, 96, slots), wrong, fake.token_bytes)
        assert [a.tokens.tolist() for a in found] == [a.tokens.tolist() for a in plain]
        assert effort.tokens < 1.05 * cost.tokens


def test_the_draft_is_taken_up_again_after_a_divergence(fake):
    prompt = fake.tokenize("hello", add_bos=True)
    (answer,), plain = generate(open_decoder(fake, 96, 1), [Request(prompt, 24)], fake.token_bytes)
    draft = answer.tokens.copy()
    draft[5] = 33 if draft[5] != 33 else 34
    (found,), effort = generate(open_decoder(fake, 96, 1), [Request(prompt, 24, (), draft)], fake.token_bytes)
    assert found.tokens.tolist() == answer.tokens.tolist()
    assert found.divergence == 5
    assert effort.calls < plain.calls / 2


def test_stop_strings_cut_the_text_and_caps_are_told_apart(fake):
    prompt = fake.tokenize("hello", add_bos=True)
    (whole,), _ = generate(open_decoder(fake, 96, 1), [Request(prompt, 16)], fake.token_bytes)
    raw = b"".join(fake.token_bytes(int(t)) for t in whole.tokens)
    stop = raw[6:8]
    (cut,), _ = generate(open_decoder(fake, 96, 1), [Request(prompt, 16, (stop,))], fake.token_bytes)
    assert cut.finish == "stop"
    assert cut.text == raw[: raw.find(stop)].decode(errors="replace")
    assert (whole.finish, len(whole.tokens)) == ("length", 16)


def test_what_cannot_be_answered_says_why(fake):
    decoder = open_decoder(fake, 16, 1)
    long, empty = Request(np.zeros(40, np.int32), 4), Request(NO_DRAFT, 4)
    fine = Request(fake.tokenize("abc"), 4)
    found, _ = generate(decoder, [long, empty, fine], fake.token_bytes)
    assert [a.finish for a in found[:2]] == ["error", "error"]
    assert "40 tokens" in found[0].note
    assert "empty" in found[1].note
    assert len(found[2].tokens) == 4


def test_a_slow_answer_times_out():
    slow = open_fake("m", {"vocab": "300", "sleep": "0.02"})
    request = Request(slow.tokenize("abc"), 200, seconds=0.1)
    (answer,), _ = generate(open_decoder(slow, 256, 1), [request], slow.token_bytes)
    assert answer.finish == "timeout"
    assert 1 < len(answer.tokens) < 20


def test_top_two_and_nan():
    logits = np.array([[1, 3, 2.5], [4, 4, 0], [-np.inf, 0, -np.inf]], np.float32)
    held = logits.copy()
    best, margin = top_two(logits)
    assert best.tolist() == [1, 0, 1]
    assert margin.tolist() == [0.5, 0.0, np.inf]
    np.testing.assert_array_equal(logits, held)
    with pytest.raises(EngineError, match="NaN"):
        top_two(np.array([[0, np.nan]], np.float32))


def test_sequences_that_begin_together_share_their_prefixes():
    """Identical, nested and diverging prompts in one call give the logits each gives alone, and go on alone."""
    engine = open_llamacpp(str(MODEL), {"n_threads": "1"})
    texts = ("\nsort 3 4 5 =", "\nsort 3 4 5 =", "\nsort 3 4", "\nsort 3 4 7 8 =", "\nmax 3 4 =", "\nmax 3 4 = 4", "\n")
    prompts = [engine.tokenize(text, add_bos=True) for text in texts]
    decoder = engine.decoder(64, 8)
    alone = []
    for prompt in prompts:
        alone.append(decoder.decode([Feed(0, 0, prompt, len(prompt))]).copy())
        decoder.drop(0, 0)
    slots = [3, 0, 7, 1, 5, 2, 6]
    together = [Feed(s, 0, p, min(3, len(p))) for s, p in zip(slots, prompts, strict=True)]
    found = np.split(decoder.decode(together).copy(), np.cumsum([feed.rows for feed in together])[:-1])
    assert decoder.computed < sum(map(len, prompts)) / 2
    for feed, rows, own in zip(together, found, alone, strict=True):
        np.testing.assert_allclose(rows, own[-feed.rows :], atol=0.05)
    # cut the second one to its first token and let it become another; the others go on undisturbed
    decoder.drop(0, 1)
    steps = [Feed(0, 1, prompts[4][1:], 1)]
    steps += [Feed(f.slot, len(f.tokens), np.array([300], np.int32), 1) for f in together if f.slot]
    after = decoder.decode(steps).copy()
    np.testing.assert_allclose(after[0], alone[4][-1], atol=0.05)
    for slot in range(8):
        decoder.drop(slot, 0)
    for feed, row in zip([f for f in together if f.slot], after[1:], strict=True):
        own = decoder.decode([Feed(0, 0, np.append(feed.tokens, 300).astype(np.int32), 1)])
        np.testing.assert_allclose(row, own[0], atol=0.05)
        decoder.drop(0, 0)
    decoder.close()
    engine.close()


def test_replay_is_plain_generation_of_a_quant(tmp_path):
    """About 100 prompts; where a token differs, its margin lies inside the measured batch-shape noise."""
    from quantvane.engines.quantize import quantize_file

    path = tmp_path / "q.gguf"
    quantize_file(str(MODEL), path, "Q4_K_M", None)
    settings = {"n_threads": "1"}
    reference, quant = open_llamacpp(str(MODEL), settings), open_llamacpp(str(path), settings)
    prompts = [reference.tokenize(text, add_bos=reference.vocabulary.add_bos) for text in own_prompts(100)]

    def run(engine, slots, drafts=None, **options):
        decoder = engine.decoder(96, slots)
        drafts = drafts or [NO_DRAFT] * len(prompts)
        requests = [Request(p, 24, (b"\n",), d) for p, d in zip(prompts, drafts, strict=True)]
        try:
            return generate(decoder, requests, engine.token_bytes, **options)
        finally:
            decoder.close()

    drafts = [a.tokens for a in run(reference, 16)[0]]
    plain, cost = run(quant, 1)
    for slots, serial in ((1, False), (16, False), (16, True)):
        found, effort = run(quant, slots, drafts, serial=serial)
        noise = shape_noise(plain[:32], found[:32])
        for a, b in zip(plain, found, strict=True):
            if a.tokens.tolist() != b.tokens.tolist():
                first = next(i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y)
                assert first in ambiguous(b, max(noise, 1e-3)), (a, b, noise)
        assert effort.calls < cost.calls / 2
        # it is not the reference's answers that came back
        assert any(a.tokens.tolist() != d.tolist() for a, d in zip(found, drafts, strict=True))
    own, _ = run(quant, 1, [a.tokens for a in plain])
    assert all(a.divergence is None for a, b in zip(own, plain, strict=True) if b.margins.min() > 0.05)
    reference.close()
    quant.close()
