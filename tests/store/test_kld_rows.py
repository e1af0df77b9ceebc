"""The row encoder against its slow twin, byte for byte, and the decoder against the encoder."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.store.kld_rows import HEAD_WORDS, decode_rows, encode_rows, row_words
from reference.kld_rows_slow import decode_row, encode_row


def split(words, size):
    heads = words.view(np.float32)
    return heads[:, 0].copy(), heads[:, 1].copy(), words[:, HEAD_WORDS : HEAD_WORDS + size]


def usual(width):
    return st.floats(-width, width, width=32, allow_subnormal=False)


# Differences of much smaller values would give a subnormal scale, which the twin does not model.
visible = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(
    lambda x: x == 0 or abs(x) > 1e-20
)
logit = st.one_of(usual(20), usual(2), visible, st.sampled_from([-np.inf, 0.0, -0.0, 7.5, -3.0e38]))


@st.composite
def logit_rows(draw):
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 33)))
    values = draw(hnp.arrays(np.float32, shape, elements=logit.filter(lambda x: x == 0 or abs(x) > 1e-20)))
    values[:, draw(st.integers(0, shape[1] - 1))] = draw(
        usual(100).filter(lambda x: x == 0 or abs(x) > 1e-20)
    )
    return values


@given(logit_rows())
@settings(max_examples=120, deadline=None)
def test_encoder_equals_twin(logits):
    expected = b"".join(encode_row([float(x) for x in row]) for row in logits)
    assert encode_rows(logits).tobytes() == expected


@pytest.mark.parametrize("size", [1, 2, 3, 511, 4096])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 5.0, 1000.0])
def test_encoder_equals_twin_on_normal_rows(size, spread):
    logits = np.random.default_rng(size).normal(0, 1, (3, size)).astype(np.float32) * np.float32(spread)
    expected = b"".join(encode_row([float(x) for x in row]) for row in logits)
    assert encode_rows(logits).tobytes() == expected


@given(logit_rows())
@settings(max_examples=40, deadline=None)
def test_decoder_equals_twin(logits):
    size = logits.shape[1]
    words = encode_rows(logits)
    expected = [decode_row(row.tobytes(), size) for row in words]
    np.testing.assert_array_equal(decode_rows(*split(words, size)), np.array(expected, np.float32))


@pytest.mark.parametrize("size", [2, 361, 4096])
def test_decoded_values_are_the_clipped_log_softmax(size):
    logits = np.random.default_rng(3).normal(0, 6, (8, size)).astype(np.float32)
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_p = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    floor = log_p.max(axis=1, keepdims=True) - 16
    decoded = decode_rows(*split(encode_rows(logits), size))
    # Half a step of 16/65535, and float32 rounding of values near 30.
    np.testing.assert_allclose(decoded, np.maximum(log_p, floor), rtol=0, atol=8 / 65535 + 8e-6)
    assert (decoded.max(axis=1) - decoded.min(axis=1) < 16.0001).all()


def test_codes_round_half_to_even():
    # The row spans 65535 steps of 2⁻¹³, so that the scale is exactly one step.
    step = 2.0**-13
    logits = np.array([[0, 0.5, 1.5, 2.5, 65535]], np.float64) * step
    words = encode_rows(logits.astype(np.float32))
    assert words[0, HEAD_WORDS : HEAD_WORDS + 5].tolist() == [0, 0, 2, 2, 65535]


def test_constant_rows_have_scale_zero_and_uniform_probabilities():
    words = encode_rows(np.full((1, 5), 3.25, np.float32))
    scale, low, codes = split(words, 5)
    assert scale[0] == 0
    assert low[0] == np.float32(-np.log(5.0))
    assert not codes.any()


def test_padding_word_is_zero_for_odd_vocabularies():
    words = encode_rows(np.random.default_rng(0).normal(0, 1, (4, 7)).astype(np.float32))
    assert words.shape == (4, row_words(7)) == (4, 12)
    assert not words[:, -1].any()


@pytest.mark.parametrize(
    "row", [[np.nan, 1, 2], [1, np.nan, 2], [np.inf, 0, 0], [-np.inf, -np.inf, -np.inf]], ids=str
)
def test_rows_without_log_softmax_are_refused(row):
    logits = np.zeros((3, 3), np.float32)
    logits[1] = row
    with pytest.raises(DataError, match="first row 1"):
        encode_rows(logits)


@pytest.mark.parametrize("logits", [np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((2, 0), np.float32)])
def test_wrong_shapes_and_types_are_refused(logits):
    with pytest.raises(DataError, match="shape or type"):
        encode_rows(logits)


def test_no_rows_give_no_rows():
    assert encode_rows(np.zeros((0, 6), np.float32)).shape == (0, 10)
