from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvane.direction import count_as, count_flips
from quantvane.errors import DataError

outcomes = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("ab"), st.sampled_from("ab")), max_size=60)


@given(outcomes)
def test_counts_and_the_identity(rows):
    ref, cand, a, b = ([row[i] for row in rows] for i in range(4))
    found = count_flips(np.array(ref, bool), np.array(cand, bool), a, b)
    assert found.drops == sum(r and not c for r, c in zip(ref, cand, strict=True))
    assert found.leapfrogs == sum(c and not r for r, c in zip(ref, cand, strict=True))
    assert found.sidesteps == sum(not r and not c and x != y for r, c, x, y in rows)
    assert found.changed == sum(x != y for *_, x, y in rows)
    flips = found.drops + found.leapfrogs
    if flips:
        volume = Fraction(flips, found.n)
        way = Fraction(found.leapfrogs - found.drops, flips)
        assert volume * way == Fraction(sum(cand) - sum(ref), found.n)
        assert -1 <= found.direction <= 1
    else:
        assert math.isnan(found.direction)


def test_without_answers_sidesteps_are_unknown_not_zero():
    found = count_flips([False, True], [False, True])
    assert found.sidesteps is None
    assert math.isnan(found.answer_churn)


@pytest.mark.parametrize(
    ("ref", "cand"), [([1, 0], [1]), ([0.5, 1], [1, 1]), ([[True]], [[True]]), (["yes"], ["no"]), ([math.nan], [1])]
)
def test_what_is_no_outcome_is_refused(ref, cand):
    with pytest.raises(DataError):
        count_flips(ref, cand)


def test_answers_on_one_side_only_are_refused():
    with pytest.raises(DataError, match="pair up"):
        count_flips([True], [True], ["a"], None)


def test_states_count_as_declared():
    scored = [True, False, True, True, False]
    states = [None, "wrong", "truncated", "error", "timeout"]
    outcome, stay = count_as(scored, states)
    assert outcome.tolist() == [True, False, True, False, False]
    assert stay.all()
    outcome, stay = count_as(scored, states, {"truncated": "wrong", "error": "excluded", "timeout": "correct"})
    assert outcome.tolist()[:3] == [True, False, False]
    assert outcome[4]
    assert stay.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("rule", [{"late": "wrong"}, {"timeout": "maybe"}, {"correct": "wrong"}])
def test_declarations_that_mean_nothing(rule):
    with pytest.raises(DataError):
        count_as([True], ["timeout"], rule)


def test_states_that_contradict_the_outcome():
    with pytest.raises(DataError, match="contradict"):
        count_as([False], ["correct"])
    with pytest.raises(DataError, match="no states"):
        count_as([False], ["sleepy"])
