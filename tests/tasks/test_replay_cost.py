"""Replay pays by the measured cost of calls, or is plain generation: scripted decoders whose calls cost what we say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantvane.engines.decoding import open_decoder
from quantvane.engines.fake import open_fake
from quantvane.tasks.agreement import FIRST, FRESH, REJOINED, Agreement, Company
from quantvane.tasks.cost import UNMEASURED, CallCost, measure_cost
from quantvane.tasks.generation import generate
from quantvane.tasks.greedy import NO_DRAFT, Request

V = 64
# Seconds of a call with n tokens: bound by memory, by arithmetic alone, and as plain as a call in a shared batch.
LAWS = {
    "memory": lambda n: 1.0 + 0.02 * n,
    "between": lambda n: 1.0 + 0.5 * n,
    "arithmetic": lambda n: 0.02 + 1.0 * n,
}


def priced(law, sequences=1):
    """What `measure_cost` would find: calls whose shape does not matter."""
    sizes = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
    step = law(sequences)
    return CallCost(sequences, sizes, tuple(law(n) for n in sizes), step, step, step)


class Scripted:
    """A model that answers each prompt with a known text, whatever was fed ahead; counts what its calls would take."""

    def __init__(self, answers, slots, law):
        self.slots, self.context, self.capacity, self.rows = slots, 256, 512, 512
        self.ends, self.can_cut = frozenset(), True
        self._answers = {tuple(p.tolist()): a for p, a in answers}
        self._held = [[] for _ in range(slots)]
        self._law = law
        self.seconds, self.calls = 0.0, []

    def decode(self, feeds):
        out = []
        for feed in feeds:
            held = self._held[feed.slot]
            assert len(held) == feed.start
            held += feed.tokens.tolist()
            out += [self._next(held[: len(held) - back]) for back in range(feed.rows - 1, -1, -1)]
        self.calls.append([(len(f.tokens), f.rows) for f in feeds])
        self.seconds += self._law(sum(len(f.tokens) for f in feeds))
        logits = np.zeros((len(out), V), np.float32)
        logits[np.arange(len(out)), out] = 1
        return logits

    def _next(self, held):
        for prompt, answer in self._answers.items():
            n = len(prompt)
            if tuple(held[:n]) == prompt:
                fits = held[n:] == answer[: len(held) - n].tolist() and len(held) - n < len(answer)
                return int(answer[len(held) - n]) if fits else V - 1
        raise AssertionError("a prompt nobody knows")

    def drop(self, slot, start):
        del self._held[slot][start:]

    def close(self):
        pass


def texts(kept, *, items=80, length=40, seed=1):
    """Requests with drafts, and the model's own answers, which keep to the draft at each token with chance ``kept``."""
    rng = np.random.default_rng(seed)
    requests, answers = [], []
    for item in range(items):
        prompt = np.array([item % 32, item // 32, *rng.integers(0, 32, size=6)], np.int32)
        draft = rng.integers(0, V - 1, size=length).astype(np.int32)
        left = np.flatnonzero(rng.random(length) > kept)
        first = int(left[0]) if len(left) else length
        own = np.concatenate([draft[:first], rng.integers(0, V - 1, size=length - first)]).astype(np.int32)
        requests.append(Request(prompt, length, (), draft))
        answers.append((prompt, own))
    return requests, answers


def run(requests, answers, slots, law, cost, *, serial=False, drafted=True):
    decoder = Scripted(answers, slots, law)
    wanted = requests if drafted else [Request(r.prompt, r.max_tokens) for r in requests]
    found, effort = generate(decoder, wanted, lambda token: b"x", serial=serial, fit=Agreement(cost))
    assert [a.tokens.tolist() for a in found] == [own.tolist() for _, own in answers]
    return decoder, effort


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.8, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_replay_never_loses_by_the_prices_it_was_given(law, kept, slots):
    """The same answers as plain generation, at no more than 5% above its seconds, and at far less where drafts fit."""
    requests, answers = texts(kept)
    plain, _ = run(requests, answers, slots, LAWS[law], UNMEASURED, drafted=False)
    replay, effort = run(requests, answers, slots, LAWS[law], priced(LAWS[law], slots))
    assert replay.seconds <= 1.05 * plain.seconds
    assert 0 <= effort.vain <= effort.ahead
    if law == "memory" and kept == 1.0:
        assert effort.vain == 0
        assert replay.seconds < plain.seconds / (8 if slots == 1 else 1.5)


@pytest.mark.parametrize("slots", [1, 4])
def test_where_tokens_cost_as_much_as_steps_the_batches_are_those_of_plain_generation(slots):
    requests, answers = texts(0.9)
    plain, _ = run(requests, answers, slots, LAWS["arithmetic"], UNMEASURED, drafted=False)
    replay, effort = run(requests, answers, slots, LAWS["arithmetic"], priced(LAWS["arithmetic"], slots))
    assert replay.calls == plain.calls
    assert effort.ahead == 0


def test_a_wrong_price_loses_what_is_wrong_with_it():
    """The rule believes its prices: without them it looks too far where tokens are dear and drafts leave early."""
    requests, answers = texts(0.85)
    law = LAWS["arithmetic"]
    plain, _ = run(requests, answers, 1, law, UNMEASURED, drafted=False)
    blind, _ = run(requests, answers, 1, law, UNMEASURED)
    told, _ = run(requests, answers, 1, law, priced(law))
    assert told.seconds <= plain.seconds < blind.seconds


def test_drafts_are_verified_in_growing_pieces():
    """Sixteen at first, then twice as many as were right in a row: an early divergence wastes little."""
    requests, answers = texts(1.0, items=1, length=200)
    fit = Agreement(priced(LAWS["memory"]))
    for place in (FIRST, FRESH):
        for _ in range(1000):
            fit.count(place, True)
    decoder = Scripted(answers, 1, LAWS["memory"])
    generate(decoder, requests, lambda token: b"x", fit=fit)
    rows = [rows for ((_, rows),) in decoder.calls]
    assert rows == [17, 35, 105, 43]  # each with the row behind the piece
    assert sum(rows) == 200


def test_what_was_learnt_serves_the_next_requests():
    requests, answers = texts(1.0, items=8)
    fit = Agreement(priced(LAWS["memory"], 4))
    calls = []
    for _ in range(2):
        decoder = Scripted(answers, 4, LAWS["memory"])
        generate(decoder, requests, lambda token: b"x", fit=fit)
        calls.append(len(decoder.calls))
    assert calls[1] < calls[0]  # in company the first tokens are only looked at


def test_the_account_bounds_what_is_lost_to_drafts_that_deceive():
    """Counts that say yes for ever, and drafts that never fit: the account says no, until steps have made up for it."""
    cost = priced(LAWS["between"])
    fit, alone = Agreement(cost), Company(1, 1, True)
    for _ in range(2000):
        fit.count(FIRST, True)
        fit.count(FRESH, True)
    lost, calls, most = 0.0, 0, 0.0
    while ahead := fit.reach(FIRST, alone):
        fit.settle(alone, ahead, 0)
        most = cost.extra(1, steady=True)[ahead - 1] / cost.token(1)
        lost, calls = lost + most, calls + 1
    assert 16 < lost <= 16 + 0.01 * calls + most
    for _ in range(100 * int(lost)):
        fit.settle(alone, 0, 0)
    assert fit.reach(FIRST, alone) > 0


def test_reach_by_hand():
    """The rule by trying every k, for some curves, inside steps and beside prompts."""
    sizes = (1, 2, 4, 8, 16, 64)
    for seconds in ((1, 1.1, 1.3, 1.7, 2.5, 7.0), (1, 1.9, 2.0, 3.9, 6.0, 24.0), (1, 2, 4, 8, 16, 64)):
        cost = CallCost(1, sizes, tuple(map(float, seconds)), 0.9, 1.1, 0.9)
        fit = Agreement(cost)
        for place, rights, wrongs in ((FIRST, 80, 3), (FRESH, 400, 20), (REJOINED, 10, 60)):
            for right in [True] * rights + [False] * wrongs:
                fit.count(place, right)
        chances = {FIRST: (84 / 87.5, 408 / 429), FRESH: (408 / 429, 408 / 429), REJOINED: (11 / 72, 11 / 72)}
        for place, (first, then) in chances.items():
            for company in (Company(1, 1, True), Company(1, 1, False), Company(30, 1, False)):
                gains = {0: 0.0}
                for k in range(1, 400):
                    saved = sum(first * then ** (j - 1) for j in range(1, k + 1)) * 0.9
                    # among steps, the call itself is no longer a step, and the step behind it is dearer
                    without = 0.9 if company.steady else cost.call(company.base)
                    extra = cost.call(company.base + k) - without + (0.2 if company.steady else 0.0)
                    gains[k] = saved - 1.05 * extra
                assert fit.reach(place, company) == max(gains, key=gains.get), (seconds, place, company)


def test_company_that_would_fall_out_of_step_stays_in_step():
    """In a shared cache: what is saved must exceed what disorder costs; one sequence alone does not mind."""
    kept = {"sequences": 4, "sizes": (1, 4, 8, 64), "seconds": (1.0, 2.0, 2.4, 8.0), "step": 2.0, "after": 2.0}
    for full, most in ((2.0, 512), (3.2, 0)):
        fit = Agreement(CallCost(**kept, full=full))
        fit.expect([100] * 10)
        for right in [True] * 950 + [False] * 50:
            fit.count(FRESH, right)
        assert (fit.reach(FRESH, Company(4, 4, True)) > 0) == (most > 0)
        assert fit.reach(FRESH, Company(1, 1, True)) > 0


def test_costs_are_measured_on_a_decoder_that_is_left_empty():
    slow = open_fake("m", {"vocab": "300"})
    decoder = open_decoder(slow, 64, 4)
    rng = np.random.default_rng(3)
    requests = [
        Request(rng.integers(0, 256, size=9).astype(np.int32), 20, (), rng.integers(0, 256, size=20).astype(np.int32))
        for _ in range(6)
    ]
    for serial in (False, True):
        cost = measure_cost(decoder, requests, serial=serial)
        assert cost.sequences == (1 if serial else 4)
        assert cost.rounds >= 4
        assert min(*cost.seconds, cost.step, cost.after, cost.full) > 0
        assert CallCost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
        assert (np.diff([cost.call(n) for n in range(2000)]) >= 0).all()
        assert cost.token(cost.sequences) == pytest.approx(cost.step / cost.sequences)
        assert [len(held) for held in decoder._held] == [0] * 4
    assert measure_cost(decoder, []) is UNMEASURED
    assert measure_cost(decoder, [Request(np.zeros(400, np.int32), 4)]) is UNMEASURED
    assert measure_cost(decoder, [Request(np.zeros(63, np.int32), 4, (), NO_DRAFT)]) is UNMEASURED
