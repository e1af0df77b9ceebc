"""Who may replace the reference."""

from __future__ import annotations

import numpy as np
import pytest

from quantvane.choose.pareto import Point, pareto_front
from quantvane.choose.verdicts import Entry, Rules, choose_among
from quantvane.errors import DataError

N = 2000


def entry(name, size, drops=0, leaps=0, n=N, right=1500, seed=0):
    """A model that loses ``drops`` of the reference's right items and wins ``leaps`` of its wrong ones."""
    correct = np.arange(n) < right
    rng = np.random.default_rng(seed)
    correct[rng.choice(right, drops, replace=False)] = False
    correct[right + rng.choice(n - right, leaps, replace=False)] = True
    return Entry(name, size, dict(enumerate(correct.tolist())))


REF = entry("ref", 1000)


def test_the_smallest_certified_is_chosen():
    cohort = [entry("big", 800, 3, 3, seed=1), entry("mid", 500, 6, 5, seed=2), entry("small", 200, 400, 5, seed=3)]
    choice = choose_among(REF, cohort, Rules(0.02))
    assert [v.verdict for v in choice.verdicts] == ["equivalent", "equivalent", "worse"]
    assert choice.chosen == "mid"
    assert choice.verdicts[0].tied_with == ("mid",)
    assert choice.verdicts[2].tied_with == ()
    assert choice.front == ("small", "mid", "big", "ref") or set(choice.front) <= {"small", "mid", "big", "ref"}


def test_a_size_limit_and_its_reason():
    choice = choose_among(REF, [entry("big", 800, 3, 3)], Rules(0.02, max_bytes=700))
    assert choice.chosen is None
    assert "small enough" in choice.reason
    assert choice.verdicts[0].verdict == "equivalent"
    assert not choice.verdicts[0].qualifies


def test_too_few_items_stay_undecided_and_say_how_many_are_needed():
    small_ref, few = entry("ref", 1000, n=60, right=45), entry("few", 10, 1, 1, n=60, right=45)
    choice = choose_among(small_ref, [few], Rules(0.02))
    (verdict,) = choice.verdicts
    assert verdict.verdict == "undecided"
    assert verdict.items_needed > 60
    assert str(verdict.items_needed) in choice.reason


def test_picking_from_many_costs_significance():
    """A candidate that is certified alone may not be among twenty."""
    one = entry("one", 10, 30, 22, seed=4)
    alone = choose_among(REF, [one], Rules(0.0135)).verdicts[0]
    others = [entry(f"o{i}", 20, 30, 22, seed=4) for i in range(19)]
    among = choose_among(REF, [one, *others], Rules(0.0135)).verdicts[0]
    assert alone.p <= 0.05 < among.p
    assert (alone.verdict, among.verdict) == ("equivalent", "undecided")


def test_better_qualifies():
    choice = choose_among(REF, [entry("up", 10, 0, 200)], Rules(0.02))
    assert choice.verdicts[0].verdict == "better"
    assert choice.chosen == "up"


def test_the_noise_floor_makes_ties():
    a, b = entry("a", 10, 40, 0, seed=5), entry("b", 20)
    assert choose_among(REF, [a, b], Rules(0.02)).verdicts[0].tied_with == ()
    assert choose_among(REF, [a, b], Rules(0.02, floor_flips=40)).verdicts[0].tied_with == ("b",)


def test_sequential_rules_use_the_confidence_sequence():
    same = choose_among(REF, [entry("same", 10, 2, 2)], Rules(0.05, sequential=True)).verdicts[0]
    assert same.verdict == "equivalent"
    assert np.isnan(same.p)
    assert -0.05 < same.low <= 0 <= same.high < 0.05
    # the first 60 items do not decide, whatever TOST would say of them
    early = Entry("early", 10, {k: v for k, v in REF.correct.items() if k < 60})
    assert choose_among(REF, [early], Rules(0.05, sequential=True)).verdicts[0].verdict == "undecided"


def test_items_that_do_not_match_are_refused():
    with pytest.raises(DataError, match="share"):
        choose_among(REF, [Entry("x", 1, {"other": True})], Rules(0.02))
    with pytest.raises(DataError):
        choose_among(REF, [], Rules(0.02))


def dominated(points, p):
    return any(q.size <= p.size and q.score >= p.score and (q.size, q.score) != (p.size, p.score) for q in points)


def test_the_front_is_what_nothing_dominates():
    rng = np.random.default_rng(1)
    for _ in range(50):
        sizes, scores = rng.integers(1, 6, size=8), rng.integers(0, 5, size=8) / 4
        points = [Point(f"m{i}", int(s), float(v)) for i, (s, v) in enumerate(zip(sizes, scores, strict=True))]
        assert set(pareto_front(points)) == {p.name for p in points if not dominated(points, p)}
