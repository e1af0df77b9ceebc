"""ggml's roundings against slow twins, and the types they belong to."""

from __future__ import annotations

import numpy as np
import pytest

from quantvane.engines.ggml_rounding import ROUNDINGS, rounding_of
from reference import ggml_rounding_slow as slow

TWINS = {"q8_0": slow.q8_0, "q8_K": slow.q8_k}


def states(rows: int = 6, width: int = 512) -> np.ndarray:
    """Rows of many sizes; one of zeros, one with ties for the largest, one with halves between integers."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-4, 4, (rows, 1))).astype(np.float32)
    x[0] = 0
    x[1, 5], x[1, 9] = -50.0, 50.0
    x[2] = np.arange(width, dtype=np.float32) % 5 - 1.5
    x[2, ::32] = 127.0
    x[2, ::256] = -127.0
    return x


@pytest.mark.parametrize("name", ["q8_0", "q8_K"])
def test_blocks_equal_the_twin(name: str) -> None:
    x = states()
    expected = np.array([TWINS[name](row) for row in x.tolist()], np.float32)
    np.testing.assert_array_equal(ROUNDINGS[name](x), expected)


@pytest.mark.parametrize(("name", "twin"), [("f16", slow.f16), ("bf16", slow.bf16)])
def test_scalars_equal_the_twin(name: str, twin) -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    ties = (rng.integers(0, 1 << 16, 2000, dtype=np.uint64) << 16).astype(np.uint32) | np.uint32(0x8000)
    x = np.concatenate([bits, ties]).view(np.float32)
    x = x[np.isfinite(x)]
    np.testing.assert_array_equal(ROUNDINGS[name](x), np.array([twin(v) for v in x.tolist()], np.float32))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_rounding_twice_changes_nothing(name: str) -> None:
    once = ROUNDINGS[name](states())
    np.testing.assert_array_equal(ROUNDINGS[name](once), once)


def test_types() -> None:
    assert rounding_of("F16") == "f16"
    assert rounding_of("Q6_K") == rounding_of("IQ4_XS") == "q8_K"
    assert rounding_of("Q4_0") == rounding_of("IQ4_NL") == "q8_0"
    assert rounding_of("Q4_1") is None  # its dot product uses a rounded sum besides
    assert rounding_of("A_TYPE_OF_TOMORROW") is None
