"""Quantiles of a sample read in blocks against those of the whole sample: not nearly, exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.stats import ranked as module
from quantvane.stats.quantiles import block_quantiles, quantile_intervals, quantile_sorted
from quantvane.stats.ranked import BlockSample
from quantvane.stats.resampling import Resampling

PROBS = (0.5, 0.9, 0.95, 0.99, 0.999)


def sample(values, owner, block=997):
    passes = []

    def blocks():
        passes.append(1)
        for start in range(0, len(values), block):
            yield owner[start : start + block], values[start : start + block]

    return BlockSample(blocks, int(owner.max()) + 1), passes


def clustered(kind, n, groups):
    """Values whose clusters differ, as tokens of windows do."""
    rng = np.random.default_rng([n, groups])
    owner = np.sort(rng.integers(0, groups, n)).astype(np.int32)
    owner[:groups] = np.arange(groups)
    owner.sort()
    level = rng.normal(0.0, 1.0, groups)[owner]
    values = np.exp(level + rng.normal(0.0, 2.0, n) - 5)
    if kind == "zeros":
        values[rng.random(n) < 0.6] = 0.0
    elif kind == "equal":
        values[:] = 0.25
    elif kind == "few values":
        values = np.round(level)
    elif kind == "infinite":
        values[rng.random(n) < 0.003] = math.inf
    elif kind == "one cluster apart":
        values[owner == 0] *= 1e4
    return values, owner


KINDS = ["plain", "zeros", "equal", "few values", "infinite", "one cluster apart"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "groups"), [(20_000, 100), (20_000, 3), (3_000, 1_500), (500, 1)])
def test_the_same_numbers_as_from_the_whole(kind, n, groups, monkeypatch):
    monkeypatch.setattr(module, "_SHORT", 100)  # else all of so short a sample is kept
    values, owner = clustered(kind, n, groups)
    draws = Resampling(groups, 3, 200)
    read, _ = sample(values, owner)
    assert block_quantiles(read, PROBS, draws) == quantile_intervals(values, owner, PROBS, draws)
    assert read.size == n
    assert read.largest == values.max()
    falling = np.sort(values)[::-1]
    for k in (1, 2, n // 20, n // 2, n):
        assert read.nth_largest(k) == falling[k - 1]
    edge = float(falling[n // 20])
    number, total = read.above(edge)
    assert number == np.count_nonzero(values > edge)
    assert total == pytest.approx(float(values[values > edge].sum()), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=200),
    st.integers(1, 7),
    st.sampled_from([(0.0, 1.0), (0.5,), (0.1, 0.999, 0.3)]),
)
def test_any_values(values, groups, probabilities):
    values = np.array(values)
    owner = (np.arange(len(values)) % groups).astype(np.int32)
    groups = int(owner.max()) + 1
    read, _ = sample(values, owner, 7)
    for reach in (0.0, 1.0):
        ranked = read.ranked(probabilities, reach)
        assert ranked.counts.sum() == len(values)
        known = ranked.values[~np.isnan(ranked.values)]
        assert np.all(known[:-1] >= known[1:])
        up_to = np.cumsum(ranked.counts)
        for p in probabilities:
            want = quantile_sorted(np.sort(values), p)
            rank = len(values) - 1 - int(p * (len(values) - 1))  # of the lower neighbour, from the top
            got = ranked.values[np.searchsorted(up_to, rank + 1)]
            assert got == np.sort(values)[::-1][rank]
            assert math.isnan(want) or got <= want or got == pytest.approx(want, rel=1e-12)


def test_it_reads_further_where_a_resample_reaches_further(monkeypatch):
    monkeypatch.setattr(module, "_SHORT", 100)
    monkeypatch.setattr(module, "_REACH", 0.0)
    monkeypatch.setattr(module, "_ICC", 0.0)
    values, owner = clustered("plain", 20_000, 20)
    read, passes = sample(values, owner)
    draws = Resampling(20, 0, 200)
    assert block_quantiles(read, PROBS, draws) == quantile_intervals(values, owner, PROBS, draws)
    assert len(passes) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_little_of_a_long_sample(kind):
    values, owner = clustered(kind, 400_000, 400)
    ranked = sample(values, owner, 4096)[0].ranked(PROBS)
    assert len(ranked.values) < 0.35 * len(values)
    assert ranked.counts.sum() == len(values)
