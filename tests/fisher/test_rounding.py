"""Round-to-nearest and the size of rounding noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.fisher.rounding import draw_noise, measure_noise, round_to_nearest


def slow_rtn(row: np.ndarray, bits: int, group: int) -> np.ndarray:
    out = []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        levels = np.linspace(part.min(), part.max(), 2**bits)
        out += [levels[np.abs(levels - x).argmin()] for x in part]
    return np.array(out)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [5, 64, 150])
def test_rounds_to_the_nearest_level_of_its_group(bits: int, n: int) -> None:
    weight = np.random.default_rng(bits).normal(size=(3, n))
    found = round_to_nearest(weight, bits, 64)
    np.testing.assert_allclose(found, np.stack([slow_rtn(row, bits, 64) for row in weight]), atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_error_is_at_most_half_a_step_and_rounding_twice_changes_nothing(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).standard_cauchy(size=(2, 40))
    found = round_to_nearest(weight, bits, 16)
    for start in (0, 16, 32):
        part, moved = weight[:, start : start + 16], found[:, start : start + 16]
        half = np.ptp(part, axis=1, keepdims=True) / (2**bits - 1) / 2
        assert (np.abs(part - moved) <= half * (1 + 1e-9)).all()
        np.testing.assert_array_equal(part.min(axis=1), moved.min(axis=1))
        np.testing.assert_array_equal(part.max(axis=1), moved.max(axis=1))
    np.testing.assert_allclose(round_to_nearest(found, bits, 16), found, rtol=1e-9, atol=1e-12)


def test_constant_groups_are_kept() -> None:
    weight = np.full((2, 70), 0.3)
    np.testing.assert_array_equal(round_to_nearest(weight, 2), weight)


@pytest.mark.parametrize(
    ("weight", "bits", "group"), [(np.array([np.nan, 1.0]), 4, 64), (np.ones(3), 0, 64), (np.ones(3), 4, 0), ([], 4, 8)]
)
def test_refuses(weight: object, bits: int, group: int) -> None:
    with pytest.raises(DataError):
        round_to_nearest(weight, bits, group)


def test_noise_of_round_to_nearest_is_a_twelfth_of_a_squared_step() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, size=(200, 64))
    noise = measure_noise({"w": weight, "b": np.ones(3)}, {"w": round_to_nearest(weight, 6), "b": np.ones(3)})
    step = np.ptp(weight, axis=1) / 63
    assert noise.scale["w"] == pytest.approx(np.sqrt(np.mean(step**2) / 12), rel=0.02)
    assert noise.scale["b"] == 0.0
    assert noise.norm == pytest.approx(np.linalg.norm(round_to_nearest(weight, 6) - weight))
    drawn = draw_noise(noise, {"w": weight.shape, "b": (3,)}, np.random.default_rng(1))
    assert np.linalg.norm(drawn["w"]) == pytest.approx(noise.norm, rel=0.03)
    assert not drawn["b"].any()


def test_noise_refuses_other_models() -> None:
    with pytest.raises(DataError, match="do not match"):
        measure_noise({"a": np.ones(2)}, {"b": np.ones(2)})
    with pytest.raises(DataError, match="shape"):
        measure_noise({"a": np.ones(2)}, {"a": np.ones(3)})
