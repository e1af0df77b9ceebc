"""Zone rules, scores, resampling, null, ceiling: each against a definition written out, or a truth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.errors import DataError, SpecError
from quantvane.stats.correlation import Draws
from quantvane.study.cohort import log_odds, score_weights, scores
from quantvane.study.decomposition import parts_of
from quantvane.study.null import fit_relation, noise_ceiling
from quantvane.study.resample import bootstrap_scores, items_interval, split_items
from quantvane.study.zone import Judged, half_scores, holdout, judge, parse_rule, sweep, zone_members
from support_study import cohort


@pytest.fixture
def simulated():
    rng = np.random.default_rng(0)
    volume = np.linspace(0.05, 1.5, 12)
    return cohort(rng, volume, -0.1 * volume, {"kld_mean": volume**2}, items=601, tasks=5)


def test_the_composites_weigh_items_as_declared(simulated):
    correct = simulated.correct[3]
    by_task = [correct[simulated.task == t].mean() for t in range(5)]
    groups = [correct[simulated.group[simulated.task] == g].mean() for g in range(2)]
    assert score_weights(simulated, "items").weights @ correct == pytest.approx(correct.mean())
    assert score_weights(simulated, "tasks").weights @ correct == pytest.approx(np.mean(by_task))
    assert score_weights(simulated, "groups").weights @ correct == pytest.approx(np.mean(groups))
    named = score_weights(simulated, "task0=3,group1=1").weights @ correct
    assert named == pytest.approx(0.75 * by_task[0] + 0.25 * groups[1])
    assert [s.name for s in scores(simulated)][:4] == ["composite", "group0", "group1", "task0"]


def test_a_part_that_is_not_there_is_a_reason_and_nonsense_is_refused(simulated):
    assert "'mmlu' has no outcomes" in score_weights(simulated, "mmlu=1").reason
    assert math.isnan(judge(simulated, score_weights(simulated, "mmlu=1")).ref)
    for text in ("mmlu", "task0=0", "task0=x", "=1"):
        with pytest.raises(SpecError):
            score_weights(simulated, text)


def test_volume_times_direction_is_the_difference(simulated):
    for score in scores(simulated):
        parts = parts_of(simulated, score)
        known = parts.volume > 0
        assert np.allclose((parts.volume * parts.direction)[known], parts.delta[known], atol=1e-12)
        difference = simulated.correct @ score.weights - simulated.ref_correct @ score.weights
        assert np.allclose(parts.delta, difference, atol=1e-12)


def test_the_rules_choose_as_written():
    judged = Judged(0.8, np.array([0.81, 0.79, 0.783, 0.70]), np.array([0.01, 0.01, 0.001, 0.01]))
    x = np.array([0.1, 0.02, math.nan, 0.5])
    assert zone_members(parse_rule("score"), judged, x).tolist() == [True, True, False, False]
    assert zone_members(parse_rule("score:0.025"), judged, x).tolist() == [True, True, True, False]
    assert zone_members(parse_rule("kld:0.1"), judged, x).tolist() == [True, True, False, False]
    assert zone_members(parse_rule("nearest:2"), judged, x).tolist() == [True, True, False, False]
    assert zone_members(parse_rule("nearest:9"), judged, x).tolist() == [True, True, False, True]
    assert zone_members(parse_rule("same:0.05"), judged, x).tolist() == [True, True, False, False]
    for text in ("near", "score:2", "kld:-1", "score:x", "same:0"):
        with pytest.raises(SpecError):
            parse_rule(text)


def test_the_error_of_a_score_is_that_of_its_items(simulated):
    one = judge(simulated, score_weights(simulated, "items"))
    difference = simulated.correct[5].astype(float) - simulated.ref_correct
    assert one.error[5] == pytest.approx(difference.std() / math.sqrt(601))
    halves = half_scores(simulated, score_weights(simulated, "groups").weights[None, :])[0]
    whole = judge(simulated, score_weights(simulated, "groups"))
    assert np.allclose(halves.scores, whole.scores)
    assert np.allclose(halves.error, whole.error)


def test_halves_share_no_item_and_cover_all(simulated):
    splits = split_items(simulated, "groups", np.random.default_rng(1), 8)
    assert np.allclose(splits.weights[0].sum(1), 1)
    assert np.allclose(splits.weights[1].sum(1), 1)
    assert ((splits.weights[0] > 0) ^ (splits.weights[1] > 0)).all()
    for task in range(5):
        sizes = splits.first[:, simulated.task == task].sum(1)
        assert set(sizes - (simulated.task == task).sum() // 2) <= {0, 1}


def test_resampled_scores_scatter_as_the_items_do(simulated):
    score = score_weights(simulated, "items")
    boot = bootstrap_scores(simulated, score, np.random.default_rng(2), 1500)
    whole = judge(simulated, score)
    assert np.allclose((boot.candidates - boot.ref[:, None]).std(0), whole.error, rtol=0.12)
    low, high = items_interval(simulated.displacement[0].values, whole.scores, boot.candidates)
    assert low < -0.9 < high + 0.1
    assert all(map(math.isnan, items_interval(np.ones(12), whole.scores, boot.candidates)))


def test_the_relation_is_found_again():
    rng = np.random.default_rng(5)
    x = np.exp(rng.uniform(-6, 0, 400))
    truth = -0.3 * x**0.7
    noise = np.full(400, 1e-4**2)
    found = fit_relation(x, truth * (1 + 0.2 * rng.normal(size=400)) + 1e-4 * rng.normal(size=400), noise)
    assert (found.scale, found.power) == (pytest.approx(0.3, rel=0.1), pytest.approx(0.7, abs=0.06))
    assert found.scatter == pytest.approx(0.2, abs=0.04)
    assert fit_relation(x, truth, noise).scatter < 0.02
    assert "only 3 candidates" in fit_relation(x[:3], truth[:3], noise[:3]).reason


def test_the_ceiling_is_one_without_noise_and_has_reasons(simulated):
    rng = np.random.default_rng(6)
    splits = split_items(simulated, "items", rng, 30)
    everyone = np.ones(12, bool)
    found = noise_ceiling(simulated, everyone, splits, Draws(0, 200))
    assert 0.95 < found.value <= 1
    assert found.low <= found.value
    few = noise_ceiling(simulated, np.arange(12) < 3, splits, Draws(0))
    assert math.isnan(few.value)
    assert "only 3 candidates" in few.reason
    pure = cohort(rng, np.full(12, 0.3), np.zeros(12), {"kld_mean": np.arange(12.0)}, items=400)
    noise = noise_ceiling(pure, everyone, split_items(pure, "items", rng, 60), Draws(0, 200))
    assert noise.value < 0.75


def test_the_sweep_ends_with_the_whole_cohort_and_the_holdout_has_reasons(simulated):
    x, rule = simulated.displacement[0].values, parse_rule("score:0.02")
    judged = judge(simulated, score_weights(simulated, "groups"))
    steps = sweep(rule, judged, x)
    assert [s.members for s in steps] == sorted(s.members for s in steps)
    assert steps[-1].members == 12
    assert any(s.rule == rule for s in steps)
    assert [s.members for s in sweep(parse_rule("nearest:6"), judged, x)] == list(range(5, 13))
    splits = split_items(simulated, "groups", np.random.default_rng(1), 10)
    assert "fewer than 5 candidates" in holdout(simulated, parse_rule("nearest:4"), x, splits).reason
    assert holdout(simulated, parse_rule("nearest:12"), x, splits).mean < -0.8


def test_log_odds_of_answers_and_choices():
    found = log_odds(np.array([math.log(0.25), 0.0, -1.5]), np.array([False, False, True]))
    assert found == pytest.approx([math.log(1 / 3), math.log(1e6 - 1), -1.5], rel=1e-6)


def test_arrays_that_do_not_fit_are_refused(simulated):
    from dataclasses import replace

    with pytest.raises(DataError):
        replace(simulated, kld=simulated.kld[:, :5])
    part = simulated.of(np.arange(12) < 6)
    assert len(part.names) == len(part.displacement[0].values) == len(part.correct) == 6
