"""The study's statistical promises, on simulated cohorts with a known truth; margins include the trials' noise."""

from __future__ import annotations

import pytest
import study_trials as trials

pytestmark = pytest.mark.slow
N = 1000
WITHIN = 0.02 + 0.014  # two points, and two standard errors of 1000 trials


@pytest.mark.parametrize("n", [12, 30])
@pytest.mark.parametrize("r", [0.0, -0.85])
def test_intervals_over_candidates_cover(n, r):
    assert abs(trials.candidate_intervals(N, n, r)["jackknife"] - 0.95) <= WITHIN


def test_permutations_keep_their_level():
    assert abs(trials.permutation_level(N, 20) - 0.05) <= WITHIN


def test_the_interval_over_items_covers():
    assert abs(trials.item_intervals(N)["coverage"] - 0.95) <= WITHIN


def test_the_null_rejects_as_it_says_and_finds_a_silent_zone():
    assert trials.null_law(N, trials.relation_holds)["rejected"] <= 0.05 + WITHIN
    assert trials.null_law(200, trials.silent_near)["rejected"] > 0.5


def test_the_ceiling_is_what_the_perfect_metric_reaches():
    found = trials.ceiling_against_truth(300)
    assert found["ceiling"] == pytest.approx(found["perfect_metric"], abs=0.03)


def test_only_a_metric_of_direction_is_found_in_a_silent_zone():
    volume = trials.zone_tests(N, lambda rng, v, d: v)
    noise = trials.zone_tests(N, lambda rng, v, d: rng.normal(size=len(v)))
    direction = trials.zone_tests(200, lambda rng, v, d: -v * d)
    assert volume["found"] <= 0.05 + WITHIN
    assert noise["found"] <= 0.05 + WITHIN
    assert abs(volume["jackknife_has_0"] - 0.95) <= WITHIN
    assert direction["found"] > 0.95


def test_intervals_of_the_items_estimators_cover():
    for name, coverage in trials.item_estimators(N).items():
        assert abs(coverage - 0.95) <= WITHIN, name
