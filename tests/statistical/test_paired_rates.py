"""The claims of docs/direction.md: coverage, size, power, and error under continuous peeking."""

from __future__ import annotations

import math

import paired_trials as trials
import pytest

from quantvane.stats.equivalence import items_needed
from quantvane.stats.pairs import PairCounts

pytestmark = pytest.mark.slow
TRIALS = 2000
NOISE = 100 * 3 * math.sqrt(0.05 * 0.95 / TRIALS)  # three standard errors of a rate of 5%


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize(("up", "down"), [(0.02, 0.05), (0.05, 0.05), (0.05, 0.15), (0.11, 0.11)])
def test_intervals_hold_the_truth(n, up, down):
    assert 94.4 <= trials.exact_coverage(n, up, down).inside <= 98
    assert trials.exact_direction_coverage(n, up, down) >= 95


@pytest.mark.parametrize("n", [50, 100, 200, 400])
@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("times", [1, 1.5, 2, 4])
def test_equivalence_is_claimed_in_at_most_five_percent_at_its_margin(n, margin, times):
    for sign in (1, -1):
        ends = (times + sign) * margin / 2, (times - sign) * margin / 2
        assert trials.exact_equivalence_rate(n, *ends, margin) <= 5.0


@pytest.mark.parametrize(("n", "flips"), [(50, 0.1), (200, 0.22), (400, 0.1)])
def test_mcnemar_is_exact(n, flips):
    assert trials.exact_mcnemar_size(n, flips) <= 5.0


@pytest.mark.parametrize(("flips", "margin"), [(0.1, 0.05), (0.2, 0.05)])
def test_items_needed_give_the_power(flips, margin):
    half = round(5000 * flips)
    needed = items_needed(PairCounts(10000, half, half), margin).items
    assert 79 <= trials.exact_equivalence_rate(needed, flips / 2, flips / 2, margin) <= 85


@pytest.mark.parametrize(("groups", "up", "down"), [(20, 0.1, 0.1), (80, 0.05, 0.05), (200, 0.05, 0.1)])
def test_clustered_intervals_hold_the_truth(groups, up, down):
    found = trials.clustered_rates(1, TRIALS, groups, up, down, 0.05)
    assert found.delta >= 95 - NOISE
    assert found.direction >= 95 - NOISE
    assert found.design_effect > 1.8
    if up == down:
        assert found.mcnemar <= 5 + NOISE
    else:
        assert found.equivalent <= 5 + NOISE  # the true difference is the margin


@pytest.mark.parametrize("flips", [0.02, 0.1, 0.4])
def test_peeking_after_every_item_costs_nothing(flips):
    assert trials.peeking_error(2, TRIALS, 2000, flips) <= 5.0


def test_peeking_costs_nothing_where_the_share_of_flips_depends_on_the_past():
    assert trials.peeking_error(3, TRIALS // 2, 1000, 0.1, fickle=True) <= 5.0


@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.05, 0.1)])
@pytest.mark.parametrize("groups", [False, True])
def test_the_confidence_sequence_holds_the_truth_at_all_times(up, down, groups):
    found = trials.sequential_rates(4, TRIALS // 2, 2000, up, down, 0.05, groups)
    assert found.covered >= 95
    wrong = found.better + (found.worse if up == down else found.equivalent)
    assert wrong <= 5
