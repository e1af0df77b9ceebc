import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from quantvane.errors import DataError, OutputError, ProtocolMismatchError
from quantvane.monitor import Measured, StreamMonitor, load_calibration, trajectories_needed
from quantvane.monitor.fit import Settings, fit, needed, rate_of, split, thresholds_of
from quantvane.monitor.trajectories import averages, base_of, extremes, scores, stack
from support_monitor import MARK, NAMES, calibration

T = 12


def healthy(rng, n):
    """Streams with a level of their own, tokens around it; some short, some with gaps."""
    level = rng.normal(size=(n, 1)) * 0.3
    ln_lambda = np.log(0.15) + level + rng.normal(size=(n, T)) * 0.7
    lam = np.minimum(np.exp(ln_lambda), 0.49)
    data = np.stack([lam, lam * 1.001, rng.exponential(1.5, (n, T)) * np.exp(level), rng.exponential(2.0, (n, T)),
                     rng.exponential(2.0, (n, T))], axis=-1)  # fmt: skip
    data[:, 0, 3] = np.nan
    for i in range(0, n, 7):
        data[i, rng.integers(3, T) :] = np.nan
    for i in range(0, n, 11):
        data[i, rng.integers(1, 3)] = np.nan
    return data


def test_it_survives_its_file(tmp_path):
    cal = calibration(delta=0.1, base=replace(calibration().base, kl_still=-math.inf))
    cal.save(tmp_path / "cal.json")
    assert load_calibration(tmp_path / "cal.json") == cal
    assert "NaN" not in (tmp_path / "cal.json").read_text()


def test_files_that_are_no_calibration_are_refused(tmp_path):
    path = tmp_path / "cal.json"
    with pytest.raises(OutputError):
        load_calibration(path)
    good = calibration().to_dict()
    for bad in (
        {**good, "schema": 2}, [], {k: v for k, v in good.items() if k != "base"}, {**good, "alpha": "x"},
        {**good, "fingerprint": {"model": "m"}}, {**good, "thresholds": {"flat": 1.0}}, {**good, "horizon": 0},
    ):  # fmt: skip
        path.write_text(json.dumps(bad))
        with pytest.raises(DataError):
            load_calibration(path)


def test_another_deployment_is_refused_with_the_fields_that_differ():
    cal = calibration()
    cal.check(MARK)
    changed = {
        "model": "n", "quantization": "Q2_K", "engine": "vllm", "engine_version": "2", "hardware": "gpu",
        "stage": "sampled", "temperature": 0.7, "top_k": 5, "horizon": 99,
    }  # fmt: skip
    assert set(changed) == set(asdict(MARK))
    for name, value in changed.items():
        with pytest.raises(ProtocolMismatchError) as caught:
            cal.check(replace(MARK, **{name: value}))
        assert f"{name} differ" in caught.value.message
        assert repr(value) in caught.value.got
    with pytest.raises(ProtocolMismatchError, match="model, temperature differ"):
        cal.check(replace(MARK, model="n", temperature=0.7))


def test_infinite_thresholds_are_no_calibration():
    with pytest.raises(DataError, match="finite"):
        calibration(thresholds=dict.fromkeys(NAMES, math.inf))


def test_arrays_give_what_streams_give():
    rng = np.random.default_rng(0)
    data = healthy(rng, 60)
    cal = calibration(horizon=T)
    found = extremes(data, cal.base, cal.smoothing, cal.statistics)
    means = scores(data, cal.base)
    for i, rows in enumerate(data):
        monitor = StreamMonitor(cal)
        for row in rows:
            monitor.advance(None if np.isnan(row[0]) else Measured(*map(float, row)))
        summary = monitor.finish()
        assert summary.extremes == pytest.approx({name: found[name][i] for name in cal.statistics}, rel=1e-12)
        assert summary.means == pytest.approx({name: means[name][i] for name in means}, rel=1e-12)


def test_base_describes_the_trajectories():
    data = healthy(np.random.default_rng(1), 400)
    base = base_of(data, 0.3)
    ln = np.log(data[..., :2]).mean(-1)
    assert base.lambda_max == pytest.approx(math.exp(np.nanmean(ln)))
    smooth = averages(data, base, 0.3)
    assert np.nanmean(smooth["sigma"] < base.sigma_calm) == pytest.approx(0.1, abs=0.01)
    assert np.nanmean(smooth["kl"] < base.kl_still) == pytest.approx(0.01, abs=0.005)
    with pytest.raises(DataError, match="nothing was observed"):
        base_of(np.full((3, T, 5), np.nan), 0.3)


@pytest.mark.parametrize("method", ["joint", "bonferroni"])
@pytest.mark.parametrize("delta", [None, 0.1])
def test_too_few_are_refused_and_the_number_said_is_the_smallest(method, delta):
    rules = Settings(0.1, delta, method)
    n = needed(rules)
    assert split(n)[1] >= trajectories_needed(rules.per_threshold, delta) > split(n - 1)[1]
    data = healthy(np.random.default_rng(2), n)
    assert fit(data, MARK, rules).n == split(n)[1]
    with pytest.raises(DataError, match="too few") as caught:
        fit(data[1:], MARK, rules)
    assert f"at least {n} " in caught.value.expected
    assert "record 1 more" in caught.value.remedy


def test_unobserved_trajectories_are_counted_and_not_used():
    data = healthy(np.random.default_rng(3), 300)
    data[::10] = np.nan
    cal = fit(data, MARK, Settings(0.1))
    assert cal.report["trajectories"]["unobserved"] == 30
    assert sum(cal.report["trajectories"][k] for k in ("normal", "thresholds", "held_out")) == 270


def test_joint_thresholds_are_one_threshold_of_one_number():
    rng = np.random.default_rng(4)
    tuning = {"a_high": rng.normal(size=100), "b_high": 5 + 3 * rng.normal(size=100)}
    own = {"a_high": rng.normal(size=199), "b_high": 5 + 3 * rng.normal(size=199)}
    rules = Settings(0.1)
    object.__setattr__(rules, "statistics", ("a_high", "b_high"))
    limits = thresholds_of(tuning, own, rules)
    over = (own["a_high"] > limits["a_high"]) | (own["b_high"] > limits["b_high"])
    assert over.sum() == 19  # k = 180 of 199 lie at or below, but for rounding of the one that defines it
    assert limits["b_high"] > limits["a_high"]


def test_lower_thresholds_lie_below():
    cal = fit(healthy(np.random.default_rng(5), 600), MARK, Settings(0.05))
    assert all(cal.lower[name] < cal.thresholds[name] for name in cal.statistics)


def test_the_held_out_rate_and_its_interval():
    assert rate_of([]) == {"value": None, "ci": None, "alarms": 0, "n": 0, "reason": "no trajectory was held out"}
    found = rate_of([True] * 5 + [False] * 95)
    assert found["value"] == 0.05
    assert found["ci"] == pytest.approx([0.01643, 0.11283], abs=1e-4)  # tables of Clopper and Pearson
    assert rate_of([False] * 10)["ci"][0] == 0.0


def test_short_and_long_trajectories_fit_one_array():
    rows = [np.ones((3, 5)), np.ones((20, 5)), np.empty((0, 5))]
    data = stack(rows, 4)
    assert np.isfinite(data[..., 0]).sum(axis=1).tolist() == [3, 4, 0]
    with pytest.raises(DataError, match="shape"):
        stack([np.ones((3, 4))], 4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["joint", "bonferroni"])
@pytest.mark.parametrize("delta", [None, 0.1])
def test_the_promise_over_many_calibrations(method, delta):
    """Split: mean rate α (joint) or at most α. PAC: at most δ of the calibrations exceed α."""
    rng = np.random.default_rng(6)
    fresh = healthy(rng, 4000)
    rules = Settings(0.1, delta, method)
    rates = []
    for _ in range(200):
        cal = fit(healthy(rng, 400), MARK, rules)
        found = extremes(fresh, cal.base, cal.smoothing, cal.statistics)
        rates.append(np.mean(np.any([found[k] > x for k, x in cal.thresholds.items()], axis=0)))
    # the fresh streams are one sample, the same for all calibrations: its own error does not average out
    mean, error = np.mean(rates), math.sqrt(np.var(rates) / len(rates) + 0.1 * 0.9 / len(fresh))
    if delta is None:
        assert mean <= 0.1 + 3 * error
        if method == "joint":
            assert mean >= 0.1 - 1 / 200 - 3 * error
    else:
        # the true rate of each is known to ±0.005: count clear exceedances
        assert np.mean(np.array(rates) > 0.1) <= delta + 3 * math.sqrt(delta * (1 - delta) / 200)
