"""token_metrics against its twin, and the laws every divergence must obey, for every CPU backend."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.displacement import metrics, token_metrics
from quantvane.errors import CapabilityError, DataError
from quantvane.types import TOKEN_FIELDS
from reference.displacement_twin import twin

BACKENDS = ["numpy", "numba"]
VOCABULARIES = [1, 2, 3, 5, 17, 101, 257, 4099]
EXACT = {"topk_overlap", "top1_ref", "top1_cand", "rank_in_cand", "same_top1"}
DIVERGENCES = ["kld", "kld_rev", "jsd", "tv", "hellinger", "fisher_rao"]
# √ of a cancelling sum: the twin itself is no better than this near 0.
LOOSE = {"hellinger": 3e-8, "fisher_rao": 6e-8}
TOLERANCE = {"numpy": 1e-12, "numba": 1e-6}

backends = pytest.mark.parametrize("backend", BACKENDS)


def logits(rng, rows, vocab, noise=0.3, dtype=np.float32):
    """Rows like a language model's: a wide bulk and a few large entries; the candidate is a noisy copy."""
    ref = rng.normal(size=(rows, vocab)) * 2.5
    ref[rng.random((rows, vocab)) < min(1.0, 5 / vocab)] += 9.0
    cand = ref + noise * rng.normal(size=(rows, vocab))
    return ref.astype(dtype), cand.astype(dtype), rng.integers(0, vocab, rows)


def assert_agrees(got, expected, backend, skip=()):
    for name, values in expected.items():
        if name in skip:
            continue
        have = getattr(got, name)
        if name in EXACT:
            np.testing.assert_array_equal(have, values, err_msg=name)
        else:
            tolerance = max(TOLERANCE[backend], LOOSE.get(name, 0.0))
            np.testing.assert_allclose(have, values, rtol=tolerance, atol=tolerance, err_msg=name)


@backends
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_the_twin(backend, vocab, dtype):
    rng = np.random.default_rng(vocab)
    ref, cand, tokens = logits(rng, 6, vocab, dtype=dtype)
    if dtype == np.float64:  # the fast kernels read float32
        ref, cand = ref.astype(np.float32).astype(dtype), cand.astype(np.float32).astype(dtype)
    got = token_metrics(ref, cand, tokens, backend)
    assert_agrees(got, twin(ref, cand, tokens, dense=vocab < 1000), backend)


@backends
@pytest.mark.parametrize("vocab", [2, 3, 17, 257])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 4.0, 20.0])
def test_agrees_from_uniform_to_certain(backend, vocab, scale):
    rng = np.random.default_rng(7)
    ref, cand = (rng.normal(size=(8, vocab)).astype(np.float32) * np.float32(scale) for _ in range(2))
    tokens = rng.integers(0, vocab, 8)
    assert_agrees(token_metrics(ref, cand, tokens, backend), twin(ref, cand, tokens), backend)


@pytest.mark.parametrize("vocab", [1000, 4099, 32003])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.5, 6.0])
def test_fast_kernel_agrees_at_large_vocabularies(vocab, scale):
    rng = np.random.default_rng(11)
    ref = (rng.normal(size=(4, vocab)) * scale).astype(np.float32)
    ref[2, 5] += 30  # nearly one-hot
    ref[3, :7] = ref[3].max()  # ties at the top
    cand = (ref + 0.5 * rng.normal(size=ref.shape)).astype(np.float32)
    tokens = rng.integers(0, vocab, 4)
    exact = token_metrics(ref, cand, tokens, "numpy").to_dict()
    fast = token_metrics(ref, cand, tokens, "numba")
    assert_agrees(fast, exact, "numba")
    for side in ("lambda_ref", "lambda_cand"):
        np.testing.assert_allclose(getattr(fast, side), exact[side], rtol=1e-6)


@backends
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_identical_rows_are_exactly_zero_apart(backend, vocab):
    ref, _, tokens = logits(np.random.default_rng(1), 5, vocab)
    ref[0, 0] = -np.inf if vocab > 1 else 0.0
    got = token_metrics(ref, ref.copy(), tokens, backend)
    for name in [*DIVERGENCES, "delta_p", "rank_in_cand"]:
        assert (getattr(got, name) == 0).all(), name
    assert (got.topk_overlap == 1).all()
    assert got.same_top1.all()


@backends
@pytest.mark.parametrize("noise", [1e-5, 4e-5, 1e-4, 1e-3])
def test_small_divergences_keep_relative_accuracy(backend, noise):
    """kld, jsd and h2 between 1e-11 and 1e-6 to 1%, where the twin itself cancels away."""
    rng = np.random.default_rng(3)
    ref, cand, tokens = logits(rng, 4, 4099, noise=noise)
    # Second-order expansion at the logits as stored: kld = kld_rev = Var_p(t)/2, jsd = Var/8, h2 = Var/8.
    x, y = ref.astype(np.float64), cand.astype(np.float64)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    t = x - y
    t -= (p * t).sum(axis=1, keepdims=True)
    variance = (p * t * t).sum(axis=1)
    got = token_metrics(ref, cand, tokens, backend)
    for name, factor in (("kld", 1 / 2), ("kld_rev", 1 / 2), ("jsd", 1 / 8)):
        np.testing.assert_allclose(getattr(got, name), factor * variance, rtol=1e-2, err_msg=name)
    np.testing.assert_allclose(got.hellinger, np.sqrt(variance / 8), rtol=1e-2)
    np.testing.assert_allclose(got.fisher_rao, np.sqrt(variance), rtol=1e-2)


@backends
def test_rounding_noise_stays_below_any_threshold(backend):
    rng = np.random.default_rng(4)
    ref, _, tokens = logits(rng, 4, 32003)
    cand = np.nextafter(ref, np.where(rng.random(ref.shape) < 0.5, np.inf, -np.inf).astype(np.float32))
    got = token_metrics(ref, cand.astype(np.float32), tokens, backend)
    assert (got.kld < 1e-12).all()
    assert (got.kld >= 0).all()


@backends
def test_a_constant_shift_changes_nothing(backend):
    rng = np.random.default_rng(5)
    # Multiples of 2⁻⁸ below 64: the shifted row is exact in float32.
    ref = (np.round(rng.normal(size=(6, 257)) * 2.5 * 256) / 256).astype(np.float32)
    tokens = rng.integers(0, 257, 6)
    got = token_metrics(ref, ref + np.float32(37.25), tokens, backend)
    for name in DIVERGENCES:
        assert (np.abs(getattr(got, name)) < 1e-7).all(), name
    assert (got.kld < 1e-13).all()
    np.testing.assert_allclose(got.nll_cand, got.nll_ref, rtol=1e-12)
    np.testing.assert_allclose(got.lambda_cand, got.lambda_ref, rtol=1e-7)


@backends
def test_rows_at_different_offsets_lose_nothing(backend):
    """x − y is not exact in float32 when the sides lie 50 apart: the kernel must centre each side first."""
    ref, cand, tokens = logits(np.random.default_rng(12), 8, 4099, noise=1.0)
    cand = (cand + 50.3).astype(np.float32)
    expected = twin(ref, cand, tokens, dense=False)
    got = token_metrics(ref, cand, tokens, backend)
    for name in ["kld", "kld_rev", "jsd", "tv"]:
        np.testing.assert_allclose(getattr(got, name), expected[name], rtol=5e-7, err_msg=name)


@backends
@pytest.mark.parametrize("vocab", [2, 17, 4099])
def test_swapping_the_sides_swaps_the_fields(backend, vocab):
    ref, cand, tokens = logits(np.random.default_rng(6), 5, vocab, noise=1.0)
    there, back = token_metrics(ref, cand, tokens, backend), token_metrics(cand, ref, tokens, backend)
    tolerance = 10 * TOLERANCE[backend]
    np.testing.assert_allclose(there.kld, back.kld_rev, rtol=tolerance, atol=1e-14)
    for name in ["jsd", "tv", "hellinger", "fisher_rao", "topk_overlap"]:
        np.testing.assert_allclose(getattr(there, name), getattr(back, name), rtol=tolerance, atol=1e-14)
    for one, other in (("nll_ref", "nll_cand"), ("lambda_ref", "lambda_cand"), ("top1_ref", "top1_cand")):
        np.testing.assert_array_equal(getattr(there, one), getattr(back, other))


values = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, 5.0, float("-inf")]))


@backends
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_small_row(backend, data):
    """Ties, −inf entries and all scales: agreement with the twin and the bounds between divergences."""
    vocab = data.draw(st.integers(1, 7))
    row = st.lists(values, min_size=vocab, max_size=vocab).filter(lambda r: max(r) > -math.inf)
    ref, cand = (np.array([data.draw(row)], dtype=np.float32) for _ in range(2))
    tokens = np.array([data.draw(st.integers(0, vocab - 1))])
    k = data.draw(st.integers(1, 8))
    got = token_metrics(ref, cand, tokens, backend, top_k=k)
    assert_agrees(got, twin(ref, cand, tokens, top_k=k), backend, skip=LOOSE)
    eps = TOLERANCE[backend]
    kld, jsd, tv = float(got.kld[0]), float(got.jsd[0]), float(got.tv[0])
    hellinger, arc = float(got.hellinger[0]), float(got.fisher_rao[0])
    assert min(kld, got.kld_rev[0], jsd, tv, hellinger, arc) >= 0
    assert jsd <= math.log(2) + eps
    assert arc <= math.pi + eps
    assert hellinger**2 <= tv + eps
    assert tv <= math.sqrt(2) * hellinger + eps
    assert 2 * tv**2 <= kld + eps  # Pinsker
    assert 0 <= got.lambda_ref[0] <= 0.5 + eps


@backends
def test_impossible_tokens(backend):
    half, quarter = math.log(0.5), math.log(0.25)
    ref = np.array([[half, half, -np.inf], [half, quarter, quarter], [half, half, -np.inf]], dtype=np.float32)
    cand = ref[[1, 0, 2]]
    got = token_metrics(ref, cand, np.array([2, 2, 0]), backend)
    np.testing.assert_allclose(got.kld, [0.5 * math.log(2), np.inf, 0.0], atol=1e-7)
    np.testing.assert_allclose(got.kld_rev, [np.inf, 0.5 * math.log(2), 0.0], atol=1e-7)
    np.testing.assert_allclose(got.tv, [0.25, 0.25, 0.0], atol=1e-7)
    np.testing.assert_allclose(got.nll_ref, [np.inf, math.log(4), math.log(2)], atol=1e-7)
    np.testing.assert_allclose(got.delta_p, [0.25, -0.25, 0.0], atol=1e-7)


@backends
def test_a_padded_vocabulary_changes_nothing(backend):
    """Columns at −inf on both sides are as if they were not there."""
    ref, cand, tokens = logits(np.random.default_rng(8), 4, 300)
    padding = np.full((4, 800), -np.inf, dtype=np.float32)
    bare = token_metrics(ref, cand, tokens, backend)
    padded = token_metrics(np.hstack([ref, padding]), np.hstack([cand, padding]), tokens, backend)
    for name in TOKEN_FIELDS:
        got, expected = getattr(padded, name), getattr(bare, name)
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9, err_msg=name)


@backends
def test_disjoint_one_hot_rows(backend):
    ref = np.full((1, 600), -np.inf, dtype=np.float32)
    cand = ref.copy()
    ref[0, 3] = cand[0, 500] = 1.0
    got = token_metrics(ref, cand, [3], backend)
    assert got.kld[0] == got.kld_rev[0] == got.nll_cand[0] == np.inf
    assert got.jsd[0] == pytest.approx(math.log(2), abs=1e-7)
    assert got.tv[0] == pytest.approx(1.0)
    assert got.fisher_rao[0] == pytest.approx(math.pi, abs=1e-3)
    assert got.entropy_ref[0] == got.lambda_ref[0] == got.lambda_cand[0] == 0
    assert got.rank_in_cand[0] == 4


@backends
def test_far_apart_but_possible(backend):
    """Differences beyond the range of exp must not overflow or vanish."""
    ref, cand = np.array([[0.0, -300.0]], dtype=np.float32), np.array([[-300.0, 0.0]], dtype=np.float32)
    got = token_metrics(ref, cand, [1], backend)
    assert got.kld[0] == pytest.approx(300, rel=1e-6)
    assert got.kld_rev[0] == pytest.approx(300, rel=1e-6)
    assert got.nll_ref[0] == pytest.approx(300)


@backends
def test_ties_go_to_the_first_index(backend):
    ref = np.zeros((2, 600), dtype=np.float32)
    cand = np.zeros((2, 600), dtype=np.float32)
    ref[0, 400] = 1.0
    cand[1, [7, 300]] = 2.0
    ref[1, 300] = 2.0
    got = token_metrics(ref, cand, [0, 0], backend, top_k=3)
    np.testing.assert_array_equal(got.top1_ref, [400, 300])
    np.testing.assert_array_equal(got.top1_cand, [0, 7])
    np.testing.assert_array_equal(got.rank_in_cand, [400, 1])
    np.testing.assert_allclose(got.topk_overlap, [2 / 3, 2 / 3])  # {400,0,1}∩{0,1,2}; {300,0,1}∩{7,300,0}


@backends
def test_nearly_one_hot_keeps_relative_accuracy(backend):
    """1−p of 1e-9: λ, entropy and nll are of that size and must not drown."""
    ref = np.zeros((1, 4099), dtype=np.float32)
    ref[0, 70] = 29.0
    tail = 4098 * math.exp(-29.0)
    got = token_metrics(ref, ref, [70], backend)
    assert got.nll_ref[0] == pytest.approx(math.log1p(tail), rel=1e-6)
    p1, p_i = 1 / (1 + tail), math.exp(-29.0) / (1 + tail)
    assert got.entropy_ref[0] == pytest.approx(-p1 * math.log(p1) - 4098 * p_i * math.log(p_i), rel=1e-6)
    s = 4098 * p_i
    # All the others equal: ψ(λ) = s/(λ−p_i), so that λ = p1·(s + p_i).
    assert got.lambda_ref[0] == pytest.approx(p1 * (s + p_i), rel=1e-6)


@backends
@pytest.mark.parametrize("cuts", [[1], [3, 4], [2, 5, 11], list(range(1, 13))])
def test_sharded_equals_unsharded(backend, cuts):
    ref, cand, tokens = logits(np.random.default_rng(9), 13, 1500)
    ref[4, 77] = -np.inf
    whole = token_metrics(ref, cand, tokens, backend)
    parts = [
        token_metrics(*part, backend)
        for part in zip(np.split(ref, cuts), np.split(cand, cuts), np.split(tokens, cuts), strict=True)
    ]
    for name in TOKEN_FIELDS:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
        assert joined.dtype == getattr(whole, name).dtype


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_do_not_change_results(monkeypatch, threads):
    ref, cand, tokens = logits(np.random.default_rng(13), 23, 700)
    whole = token_metrics(ref, cand, tokens, "numba")
    monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
    again = token_metrics(ref, cand, tokens, "numba")
    for name in TOKEN_FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("vocab", [1, 2, 257, 4099])
def test_peer_fields_are_the_same_numbers(vocab):
    from quantvane.displacement.ops.numba_rows import PEER_FIELDS, rows_peer

    ref, cand, tokens = logits(np.random.default_rng(14), 7, vocab)
    if vocab > 2:
        ref[1, 0], cand[2, 0] = -np.inf, -np.inf
    full, light = token_metrics(ref, cand, tokens, "numba"), rows_peer(ref, cand, tokens)
    assert tuple(light) == PEER_FIELDS
    for name, values in light.items():
        if name == "kld":
            np.testing.assert_allclose(values, full.kld, rtol=1e-6, atol=1e-12)
        else:
            np.testing.assert_array_equal(values, getattr(full, name), err_msg=name)
    same = rows_peer(ref, ref, tokens)
    assert (same["kld"] == 0).all()


@backends
def test_layout_of_the_input_does_not_matter(backend):
    ref, cand, tokens = logits(np.random.default_rng(10), 6, 515)
    plain = token_metrics(ref, cand, tokens, backend)
    odd = token_metrics(np.asfortranarray(ref), cand[::-1][::-1], tokens.tolist(), backend)
    for name in TOKEN_FIELDS:
        np.testing.assert_array_equal(getattr(odd, name), getattr(plain, name), err_msg=name)


@backends
def test_no_rows_give_empty_fields(backend):
    got = token_metrics(np.zeros((0, 9), np.float32), np.zeros((0, 9), np.float32), [], backend)
    assert len(got) == 0
    assert got.top1_ref.dtype == np.int32
    assert got.same_top1.dtype == np.bool_


@backends
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.nan, "NaN logits at row 3 of"),
        (np.inf, "infinite logits at row 3 of"),
        (None, "no possible token at row 3 of"),
    ],
)
@pytest.mark.parametrize("side", ["ref_logits", "cand_logits"])
@pytest.mark.parametrize("vocab", [3, 700])
def test_rows_that_are_no_distribution_are_named(backend, bad, message, side, vocab):
    arrays = {name: np.zeros((5, vocab), np.float32) for name in ("ref_logits", "cand_logits")}
    if bad is None:
        arrays[side][3] = -np.inf
    else:
        arrays[side][3, :] = -np.inf  # a fault must show even among impossible tokens
        arrays[side][3, 1] = bad
        arrays[side][3, vocab - 1] = 2.0
    with pytest.raises(DataError, match=message):
        token_metrics(**arrays, tokens=np.zeros(5, int), backend=backend)


@backends
@pytest.mark.parametrize(
    "change",
    [
        {"ref_logits": np.zeros((2, 4), int)},
        {"ref_logits": np.zeros(4, np.float32)},
        {"ref_logits": np.zeros((2, 0), np.float32)},
        {"cand_logits": np.zeros((2, 5), np.float32)},
        {"tokens": np.array([0, 4])},
        {"tokens": np.array([-1, 0])},
        {"tokens": np.array([0.0, 1.0])},
        {"tokens": np.array([0])},
        {"top_k": 0},
        {"top_k": 2.5},
    ],
)
def test_input_that_does_not_fit_is_refused(backend, change):
    call = {
        "ref_logits": np.zeros((2, 4), np.float32),
        "cand_logits": np.zeros((2, 4), np.float32),
        "tokens": np.array([0, 1]),
        "backend": backend,
    }
    with pytest.raises(DataError) as caught:
        token_metrics(**{**call, **change})
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.remedy


def test_an_unknown_backend_is_refused():
    with pytest.raises(CapabilityError, match="unknown backend 'cuda'"):
        token_metrics(np.zeros((1, 2)), np.zeros((1, 2)), [0], "cuda")


def test_a_backend_that_cannot_load_is_not_replaced(monkeypatch):
    monkeypatch.setitem(metrics.BACKENDS, "numba", "quantvane.displacement.ops.not_there")
    with pytest.raises(CapabilityError, match="cannot be loaded"):
        token_metrics(np.zeros((1, 2)), np.zeros((1, 2)), [0], "numba")


def test_importing_displacement_is_light():
    code = (
        "import sys, quantvane.displacement\n"
        "bad = {'numba', 'torch', 'scipy', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_are_frozen():
    got = token_metrics(np.zeros((1, 2)), np.zeros((1, 2)), [0])
    assert replace(got, kld=np.ones(1)).kld[0] == 1
    with pytest.raises(AttributeError):
        got.kld = np.ones(1)
