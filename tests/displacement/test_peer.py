"""The peer's per-token values, summary and printout: against a slow twin and what the peer printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.displacement.peer import PeerTokenValues, clip_effect, peer_summary, peer_token_values
from quantvane.errors import DataError
from quantvane.store.kld_file import KldFile
from quantvane.store.kld_rows import encode_rows
from reference.peer_slow import peer_token
from support_llama import chunk_logits, skip_unless_golden_kernels

GOLDEN = [
    ("kld-lm10m-ctx128", "lm10m-Q4_K_M.gguf", "Q4_K_M.txt"),
    ("kld-stories260K-ctx256", "stories260K-Q4_0.gguf", "Q4_0.txt"),
]


def encoded(logits):
    words = encode_rows(logits)
    heads = words.view(np.float32)
    return heads[:, 0].copy(), heads[:, 1].copy(), words[:, 4 : 4 + logits.shape[1]]


def case(rows=200, vocab=37, noise=0.5, spread=4.0, seed=0):
    """Reference logits, candidate logits, targets."""
    rng = np.random.default_rng(seed)
    ref = rng.normal(0, spread, (rows, vocab)).astype(np.float32)
    cand = ref + rng.normal(0, noise, ref.shape).astype(np.float32)
    return ref, cand, rng.integers(0, vocab, rows, dtype=np.int32)


def values(**changes):
    count = 200
    fields = {
        "kld": np.linspace(0.001, 1, count),
        "nll": np.linspace(0.1, 6, count, dtype=np.float32),
        "nll_base": np.linspace(0.2, 5, count, dtype=np.float32),
        "delta_p": np.linspace(-0.3, 0.2, count, dtype=np.float32),
        "same_top": np.arange(count) % 4 != 0,
        "clipped": np.zeros(count, np.bool_),
    }
    return PeerTokenValues(**{**fields, **changes})


# ---- per token


@pytest.mark.parametrize("vocab", [1, 2, 37, 512])
@pytest.mark.parametrize("spread", [0.0, 4.0, 12.0])
def test_values_equal_the_float64_twin(vocab, spread):
    ref, cand, targets = case(40, vocab, spread=spread)
    base = encoded(ref)
    got = peer_token_values(base, cand, targets)
    for row in range(len(targets)):
        twin = peer_token(
            float(base[0][row]), float(base[1][row]), base[2][row].tolist(), cand[row].tolist(), targets[row]
        )
        # float32 arithmetic on log-probabilities of up to about 60 nats
        assert got.kld[row] == pytest.approx(twin.kld, abs=1e-5)
        assert got.nll[row] == pytest.approx(twin.nll, abs=2e-5)
        assert got.nll_base[row] == pytest.approx(twin.nll_base, abs=2e-5)
        assert got.delta_p[row] == pytest.approx(twin.delta_p, abs=1e-5)
        assert got.same_top[row] == twin.same_top


def test_ties_go_to_the_first_index():
    ref = np.array([[1, 3, 3, 0]], np.float32)
    targets = np.zeros(1, np.int32)
    for cand, same in (([0, 5, 5, 5], True), ([0, 4, 5, 5], False)):
        got = peer_token_values(encoded(ref), np.array([cand], np.float32), targets)
        assert bool(got.same_top[0]) is same


def test_an_impossible_token_makes_the_divergence_infinite_not_nan():
    ref, cand, targets = case(3, 5, spread=1.0)
    cand[1, 2] = -np.inf
    got = peer_token_values(encoded(ref), cand, targets)
    assert got.kld[1] == np.inf
    assert np.isfinite(got.kld[[0, 2]]).all()


def test_only_tokens_on_the_floor_of_a_full_row_count_as_clipped():
    wide = np.array([0, -3, -15.9, -16.1, -40, -np.inf], np.float32)
    narrow = np.array([0, -3, -5, -5, -4, -15.5], np.float32)
    ref = np.repeat([wide, narrow], 6, axis=0).astype(np.float32) + np.float32(200)
    targets = np.tile(np.arange(6, dtype=np.int32), 2)
    got = peer_token_values(encoded(ref), ref, targets)
    assert got.clipped.tolist() == [False] * 3 + [True] * 3 + [False] * 6


def test_unfit_arrays_are_refused():
    ref, cand, targets = case(4, 6)
    base = encoded(ref)
    with pytest.raises(DataError, match="same positions and vocabulary"):
        peer_token_values(base, cand[:, :5], targets)
    with pytest.raises(DataError, match="wrong types"):
        peer_token_values(base, cand.astype(np.float64), targets)
    with pytest.raises(DataError, match="different lengths"):
        peer_token_values(base, cand, targets[:3])
    with pytest.raises(DataError, match="outside the vocabulary"):
        peer_token_values(base, cand, np.full(4, 6, np.int32))


def test_chunks_join_in_order():
    ref, cand, targets = case(30, 9)
    scale, low, codes = encoded(ref)
    whole = peer_token_values((scale, low, codes), cand, targets)
    parts = [
        peer_token_values((scale[s], low[s], codes[s]), cand[s], targets[s])
        for s in (slice(0, 11), slice(11, 11), slice(11, 30))
    ]
    joined = PeerTokenValues.concatenate(parts)
    assert len(joined) == 30
    for name in ("kld", "nll", "nll_base", "delta_p", "same_top", "clipped"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
        assert getattr(joined, name).dtype == getattr(whole, name).dtype


# ---- summary


def test_statistics_equal_plain_numpy():
    ref, cand, targets = case(501, 64)
    v = peer_token_values(encoded(ref), cand, targets)
    s = peer_summary(v)
    n, nll, base = len(v), v.nll.astype(float), v.nll_base.astype(float)
    delta = v.delta_p.astype(float)
    error = nll.std() / math.sqrt(n - 1)
    assert s.ppl.value == pytest.approx(math.exp(nll.mean()))
    assert s.ppl.uncertainty == pytest.approx(math.exp(nll.mean()) * error, rel=1e-5)
    assert s.correlation == pytest.approx(np.corrcoef(nll, base)[0, 1], rel=1e-5)
    assert s.ln_ratio.value == pytest.approx((nll - base).mean())
    assert s.ln_ratio.uncertainty == pytest.approx((nll - base).std() / math.sqrt(n - 1), rel=1e-4)
    assert s.ratio.value == pytest.approx(math.exp((nll - base).mean()))
    assert s.difference.value == pytest.approx(math.exp(nll.mean()) - math.exp(base.mean()))
    assert s.kld.value == pytest.approx(v.kld.mean())
    assert s.kld.uncertainty == pytest.approx(v.kld.std() / math.sqrt(n - 1))
    assert s.delta_p_rms.value == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-6)
    assert s.same_top.value == v.same_top.mean()
    for label, percent in (("99.9%", 99.9), ("90.0%", 90), ("Median", 50), ("0.1%", 0.1), ("Minimum", 0)):
        assert s.kld_at[label] == pytest.approx(np.percentile(v.kld, percent), rel=1e-4)
        assert s.delta_p_at[label] == pytest.approx(np.percentile(delta, percent), rel=1e-4, abs=1e-7)
    assert s.reason == ""


@pytest.mark.parametrize("count", [0, 1, 99])
def test_too_few_tokens_give_nan_and_the_reason(count):
    v = values()
    short = PeerTokenValues(*(getattr(v, n)[:count] for n in v.__dataclass_fields__))
    s = peer_summary(short)
    assert math.isnan(s.kld.value)
    assert f"{count} tokens" in s.reason
    assert s.text() == f"no summary: {s.reason}\n"


def test_nan_values_give_nan_and_the_reason():
    kld = values().kld.copy()
    kld[[3, 5]] = np.nan
    s = peer_summary(values(kld=kld))
    assert math.isnan(s.same_top.value)
    assert "2 of 200" in s.reason
    assert s.text().startswith("no summary: ")


def test_no_spread_makes_the_correlation_undefined_as_the_peer_prints_it():
    flat = np.full(200, 2.0, np.float32)
    s = peer_summary(values(nll=flat, nll_base=flat, delta_p=np.zeros(200, np.float32)))
    assert math.isnan(s.correlation)
    assert math.isnan(s.delta_p_rms.uncertainty)
    assert "correlation" in s.reason
    assert "delta_p_rms" in s.reason
    assert "Cor(ln(PPL(Q)), ln(PPL(base))):   -nan%\n" in s.text()
    assert "RMS Δp    :  0.000 ±  -nan %\n" in s.text()


def test_infinite_values_do_not_raise():
    kld, nll = values().kld.copy(), values().nll.copy()
    kld[0], nll[0] = np.inf, np.inf
    s = peer_summary(values(kld=kld, nll=nll))
    assert s.kld.value == s.ppl.value == math.inf
    assert "Maximum KLD:        inf\n" in s.text()
    huge = peer_summary(values(nll=np.linspace(0, 2000, 200, dtype=np.float32)))
    assert huge.ppl.value == math.inf


# ---- the clip


def test_clip_effect_from_the_file_alone_is_a_bound():
    clipped = np.arange(200) < 10
    effect = clip_effect(values(clipped=clipped))
    assert (effect.tokens, effect.count, effect.share) == (200, 10, 0.05)
    assert effect.nll_stored == pytest.approx(values().nll_base.astype(float).mean())
    assert math.isnan(effect.nll_exact)
    assert math.isnan(effect.shortfall)
    assert "lower bound" in effect.note


def test_clip_effect_with_the_exact_values_measures_the_shortfall():
    v = values(clipped=np.arange(200) < 10)
    exact = v.nll_base.astype(float) + np.where(v.clipped, 4.0, 1e-5)
    effect = clip_effect(v, exact)
    assert effect.shortfall == pytest.approx(10 * 4.0 / 200)
    assert effect.nll_exact == pytest.approx(exact.mean())
    with pytest.raises(DataError, match="exact NLLs"):
        clip_effect(v, exact[:-1])


def test_clip_effect_without_clipped_tokens_and_without_tokens():
    assert clip_effect(values()).shortfall == 0
    empty = PeerTokenValues(*(getattr(values(), n)[:0] for n in PeerTokenValues.__dataclass_fields__))
    assert math.isnan(clip_effect(empty).share)


# ---- what the peer printed


@pytest.mark.parametrize(("folder", "model", "printed"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_printout_equals_the_peers(shared, folder, model, printed):
    skip_unless_golden_kernels()
    place = shared / "golden" / folder
    with KldFile.open(place / "base.kld") as base:
        v = PeerTokenValues.concatenate(
            peer_token_values(base.rows(chunk), logits, base.targets(chunk))
            for chunk, logits in enumerate(chunk_logits(place / model, base.tokens))
        )
    assert peer_summary(v).text().splitlines() == (place / printed).read_text().rstrip().splitlines()


@pytest.mark.parametrize(("folder", "model", "printed"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_printed_base_perplexity_needs_no_engine(shared, folder, model, printed):
    place = shared / "golden" / folder
    with KldFile.open(place / "base.kld") as base:
        v = PeerTokenValues.concatenate(
            peer_token_values(base.rows(c), base.log_probs(c), base.targets(c))
            for c in range(base.header.n_chunk)
        )
    line = next(x for x in peer_summary(v).text().splitlines() if x.startswith("Mean PPL(base)"))
    assert line in (place / printed).read_text().splitlines()


@pytest.mark.parametrize(
    ("folder", "model"),
    [(GOLDEN[0][0], "lm10m/lm10m-f16.gguf"), (GOLDEN[1][0], "stories260K/stories260K-f16.gguf")],
)
def test_the_clip_explains_the_gap_to_the_peers_own_estimate(shared, folder, model):
    """The summary's base perplexity is that of the clipped file; the recording pass printed the true one."""
    skip_unless_golden_kernels()
    place = shared / "golden" / folder
    parts, exact = [], []
    with KldFile.open(place / "base.kld") as base:
        for chunk, logits in enumerate(chunk_logits(shared / "models" / model, base.tokens)):
            targets = base.targets(chunk)
            parts.append(peer_token_values(base.rows(chunk), logits, targets))
            exact.append(parts[-1].nll)
    effect = clip_effect(PeerTokenValues.concatenate(parts), np.concatenate(exact))
    true_ppl = float((place / "base.txt").read_text().split("PPL = ")[1].split()[0])
    assert math.exp(effect.nll_exact) == pytest.approx(true_ppl, rel=1e-5)
    # What is left beside the clip is 16-bit rounding.
    assert effect.nll_stored + effect.shortfall == pytest.approx(effect.nll_exact, abs=1e-5)
