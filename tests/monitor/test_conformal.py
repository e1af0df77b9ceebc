import math

import numpy as np
import pytest
from scipy.stats import beta

from quantvane.errors import DataError
from quantvane.monitor import conformal_threshold, trajectories_needed
from quantvane.monitor.conformal import conformal_rank


def test_the_rank_is_the_defined_one():
    for n in (1, 18, 19, 20, 99, 100, 1234):
        for alpha in (0.01, 0.05, 0.1, 0.3, 0.5):
            k = math.ceil((n + 1) * (1 - alpha) - 1e-9)
            assert conformal_rank(n, alpha) == (k if k <= n else None)


def test_the_threshold_is_an_extreme_whatever_the_order():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    assert conformal_threshold(values, 0.05) == 95.0
    assert conformal_threshold(values[:18], 0.05) == math.inf
    assert conformal_threshold(values[:19], 0.05) == values[:19].max()


def test_the_pac_rank_is_the_smallest_that_serves():
    for n, alpha, delta in ((60, 0.05, 0.1), (300, 0.05, 0.05), (1000, 0.01, 0.1), (40, 0.2, 0.01)):
        serves = [k for k in range(1, n + 1) if beta.cdf(alpha, n + 1 - k, k) >= 1 - delta]
        assert conformal_rank(n, alpha, delta) == (serves[0] if serves else None)


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, None), (0.01, None), (0.3, None), (0.05, 0.1), (0.01, 0.01)])
def test_needed_is_exactly_where_it_turns_finite(alpha, delta):
    n = trajectories_needed(alpha, delta)
    assert math.isfinite(conformal_threshold(range(n), alpha, delta))
    assert n == 1 or conformal_threshold(range(n - 1), alpha, delta) == math.inf


def test_known_counts():
    assert trajectories_needed(0.05) == 19
    assert trajectories_needed(0.05, 0.05) == 59  # the textbook's 59 for a 95/95 tolerance limit


def test_nothing_to_calibrate_on_and_bad_rates():
    assert conformal_threshold([], 0.05) == math.inf
    for bad in ({"alpha": 0.0}, {"alpha": 1.0}, {"alpha": math.nan}, {"alpha": 0.1, "delta": 0.0}):
        with pytest.raises(DataError):
            conformal_threshold([1.0], **bad)
    with pytest.raises(DataError, match="not a number"):
        conformal_threshold([1.0, math.nan], 0.5)
