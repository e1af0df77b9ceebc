"""Per-item prediction, router and margin flow against their slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.study.prediction import auroc, log_mean_ratio, predict
from quantvane.study.resample import split_items
from quantvane.study.router import route
from quantvane.study.signed import margin_flow
from reference import study_slow as slow
from support_study import cohort


@pytest.fixture
def simulated():
    rng = np.random.default_rng(0)
    return cohort(rng, np.linspace(0.2, 1, 6), np.zeros(6), {"kld_mean": np.linspace(0.2, 1, 6)}, items=80, tasks=4)


def test_auroc_counts_every_pair_ties_half():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 6, (4, 40)).astype(float)
    positive = rng.random((4, 40)) < 0.3
    positive[3] = False  # a candidate without positives takes no part
    found = auroc(values, positive, ~positive)
    assert found.value == pytest.approx(slow.auroc(values, positive, ~positive), abs=1e-12)
    assert found.low < found.value < found.high
    assert "only 0 positive" in auroc(values, positive & False, ~positive).reason
    upper = np.arange(20)[None] > 9
    assert "complete separation" in auroc(np.arange(20.0)[None], upper, ~upper).reason


def test_the_ratio_is_of_geometric_means_within_candidates():
    rng = np.random.default_rng(2)
    values = np.exp(rng.normal(size=(5, 60)) + np.arange(5)[:, None])
    failed = rng.random((5, 60)) < np.linspace(0.1, 0.6, 5)[:, None]
    found = log_mean_ratio(values, failed, ~failed)
    assert found.value == pytest.approx(slow.log_mean_ratio(values, failed, ~failed), rel=1e-12)
    assert found.low < found.value < found.high
    assert "only 0 failed" in log_mean_ratio(values, failed & False, ~failed).reason


def test_a_zero_divergence_is_left_out_and_counted(simulated):
    from dataclasses import replace

    kld = simulated.kld.copy()
    kld[0, :7], kld[1, 3] = 0.0, math.nan
    found = predict(replace(simulated, kld=kld), np.ones(6, bool))
    assert found[0].without == 8
    assert found[0].failed + found[0].passed == 6 * 80 - 8
    assert [(p.items, p.region) for p in found][:3] == [("all", "full"), ("all", "zone"), ("group0", "full")]


def test_the_router_counts_every_pair_and_item(simulated):
    splits = split_items(simulated, "items", np.random.default_rng(3), 2)
    x = simulated.displacement[0].values
    routes = {(r.rule, r.region): r for r in route(simulated, np.arange(6) < 4, x, splits)}
    share, cases = slow.router(simulated.correct, -simulated.kld.astype(float))
    assert routes["kld", "full"].accuracy.value == pytest.approx(share)
    assert routes["kld", "full"].cases == cases
    share, cases = slow.router(simulated.correct[:4], np.abs(simulated.evidence[:4]).astype(float))
    assert (routes["margin", "zone"].accuracy.value, routes["margin", "zone"].cases) == (pytest.approx(share), cases)
    assert routes["random", "full"].accuracy.value == 0.5
    assert math.isnan(routes["nll", "full"].accuracy.value)
    assert routes["nll", "full"].accuracy.reason
    alone = route(simulated, np.arange(6) < 1, x, splits)
    assert all(r.accuracy.reason == "fewer than two candidates with outcomes" for r in alone if r.region == "zone")


@pytest.mark.parametrize("threshold", [0.0, 0.37])
def test_margin_flow_lets_every_shift_meet_every_margin(threshold):
    rng = np.random.default_rng(4)
    ref, shift = rng.normal(1, 1, 23), rng.normal(-0.1, 1, (5, 23)) * np.arange(5)[:, None]
    assert np.allclose(margin_flow(ref, shift, threshold), slow.margin_flow(ref, shift, threshold), atol=1e-12)
    shift[2, 4] = math.nan
    assert np.isnan(margin_flow(ref, shift)).tolist() == [False, False, True, False, False]
