"""The values that llama.cpp's ``--kl-divergence`` computes for every token, with its own arithmetic.

These are the peer's definitions, not ours (`quantvane.displacement.token_metrics`): the base is rounded to 16
bits and clipped at 16 nats below its mode, is not renormalised, tokens below −16 are left out of the sum, and
every uncertainty treats tokens as independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from quantvane.displacement.ops.peer_numba import peer_pass
from quantvane.errors import DataError
from quantvane.types import FloatArray

__all__ = ["BaseRows", "ClipEffect", "PeerTokenValues", "clip_effect", "peer_token_values"]

BaseRows = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint16]]
"""Rows of a base file: scale (T,) float32, min_log_prob (T,) float32, codes (T, V) uint16."""

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PeerTokenValues:
    """The peer's values at T scored positions; every field is (T,). Nats.

    Attributes:
        kld: float64, as the peer adds it up; its percentiles use the value rounded to float32.
        nll, nll_base: float32, −ln q(y) of the candidate and of the stored base.
        delta_p: float32, q(y) − p(y).
        same_top: bool, the two argmaxes agree (the first index wins a tie).
        clipped: bool, the observed token lies on the base's floor of 16 nats below the mode, so that
            ``nll_base`` is only a lower bound of the reference's.
    """

    kld: FloatArray
    nll: Float32Array
    nll_base: Float32Array
    delta_p: Float32Array
    same_top: npt.NDArray[np.bool_]
    clipped: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kld)

    @classmethod
    def concatenate(cls, parts: Iterable[PeerTokenValues]) -> PeerTokenValues:
        """Join the values of several chunks, in order; at least one part."""
        every = list(parts)
        return cls(*(np.concatenate([getattr(part, f.name) for part in every]) for f in fields(cls)))


def peer_token_values(
    base: BaseRows, cand_logits: Float32Array, targets: npt.NDArray[np.int32]
) -> PeerTokenValues:
    """The peer's per-token pass, with its float32 steps where it has them.

    With b_i = scale·code_i + min_log_prob and ℓ = ln Σ exp(l − max l):
    nll = max l + ℓ − l_y; nll_base = −b_y; kld = Σ over b_i > −16 of exp(b_i)·(b_i − l_i + max l + ℓ);
    delta_p = exp(−nll) − exp(−nll_base). NaN logits give NaN. Source: llama.cpp, tools/perplexity.

    Args:
        base: rows of the base file (see `BaseRows`), T rows over V tokens.
        cand_logits: (T, V) float32, the candidate's logits at the same positions.
        targets: (T,) int32, the observed next tokens.

    Raises:
        DataError: shapes, types or vocabularies that do not fit, or a target outside the vocabulary.
    """
    scale, min_log_prob, codes = base
    _check(base, cand_logits, targets)
    count = len(targets)
    kld, floats, same_top = np.empty(count), np.empty((3, count), np.float32), np.empty(count, np.bool_)
    if count:
        peer_pass(
            np.ascontiguousarray(scale),
            np.ascontiguousarray(min_log_prob),
            codes,
            np.ascontiguousarray(cand_logits),
            np.ascontiguousarray(targets),
            kld,
            floats,
            same_top,
        )
    # A row that spans less than 16 nats has its true minimum at code 0. The tolerance covers the rounding of
    # (mx − (mx − 16))/65535 for logits up to several hundred.
    spans_all = scale >= np.float32(16 * (1 - 1e-5) / 65535)
    clipped = spans_all & (codes[np.arange(count), targets] == 0)
    nll, nll_base, delta_p = floats
    return PeerTokenValues(kld, nll, nll_base, delta_p, same_top, clipped)


def _check(base: BaseRows, cand_logits: Float32Array, targets: npt.NDArray[np.int32]) -> None:
    scale, min_log_prob, codes = base
    types = [str(a.dtype) for a in (scale, min_log_prob, codes, cand_logits, targets)]
    if types != ["float32", "float32", "uint16", "float32", "int32"]:
        raise DataError(
            "arrays for the peer's pass have the wrong types",
            expected="base float32, float32, uint16; logits float32; targets int32",
            got=", ".join(types),
        )
    count = len(scale)
    if codes.ndim != 2 or cand_logits.shape != codes.shape or codes.shape[1] < 1:
        raise DataError(
            "candidate and base do not have the same positions and vocabulary",
            expected=f"logits of shape {codes.shape}, as the base",
            got=f"shape {cand_logits.shape}",
            remedy="compare models with the same vocabulary, at the positions the base was recorded at",
        )
    if not scale.shape == min_log_prob.shape == targets.shape == (len(codes),):
        raise DataError(
            "arrays for the peer's pass have different lengths",
            expected=f"({len(codes)},) each, as many as the base has rows",
            got=f"scale {scale.shape}, min_log_prob {min_log_prob.shape}, targets {targets.shape}",
        )
    if count and (targets.min() < 0 or targets.max() >= codes.shape[1]):
        raise DataError(
            "a target token is outside the vocabulary",
            expected=f"ids from 0 to {codes.shape[1] - 1}",
            got=f"ids from {targets.min()} to {targets.max()}",
        )


@dataclass(frozen=True, slots=True)
class ClipEffect:
    """What the base file's floor of 16 nats below the mode did to the reference's NLL.

    Attributes:
        tokens: scored positions. count: those whose observed token lies on the floor. share: count/tokens.
        nll_stored: mean NLL from the file, a lower bound (up to 16-bit rounding) of the true mean.
        nll_exact: mean NLL of the reference itself; NaN where only the file is known.
        shortfall: mean of (exact − stored) over all tokens, counting clipped ones only: what the clip took
            from the mean, apart from rounding; 0 where nothing was clipped, NaN where it cannot be known.
        note: one sentence on what may be concluded.
    """

    tokens: int
    count: int
    share: float
    nll_stored: float
    nll_exact: float
    shortfall: float
    note: str


def clip_effect(values: PeerTokenValues, nll_exact: npt.NDArray[np.floating] | None = None) -> ClipEffect:
    """How far the 16-nat clip biases the base's mean NLL, and with it every perplexity ratio against it.

    Args:
        values: from `peer_token_values`; only the base's part is used.
        nll_exact: (T,) the reference's own −ln p(y) at the same positions, where it is known.

    Raises:
        DataError: ``nll_exact`` of another length.
    """
    tokens, count = len(values), int(values.clipped.sum())
    if nll_exact is not None and nll_exact.shape != (tokens,):
        raise DataError(
            "exact NLLs do not match the base's tokens",
            expected=f"shape ({tokens},)",
            got=f"shape {nll_exact.shape}",
        )
    if tokens == 0:
        return ClipEffect(0, 0, math.nan, math.nan, math.nan, math.nan, "no tokens were scored")
    on_floor = f"{count} of {tokens} tokens on the base file's floor"
    stored = values.nll_base.astype(np.float64)
    mean_stored, mean_exact, shortfall = float(stored.mean()), math.nan, math.nan
    if nll_exact is not None:
        exact = nll_exact.astype(np.float64)
        mean_exact = float(exact.mean())
        shortfall = float(np.where(values.clipped, exact - stored, 0.0).sum() / tokens)
        note = (
            f"{on_floor}; the clip lowers the base's mean NLL by {shortfall:.6f} nats and raises every "
            f"perplexity ratio against it by a factor {math.exp(shortfall):.6f}"
        )
    elif count == 0:
        shortfall = 0.0
        note = f"{on_floor}: the clip changed nothing"
    else:
        note = (
            f"{on_floor}: their true NLL is at least the stored one, so that (but for 16-bit rounding) the "
            "base's perplexity is a lower bound and every ratio against it an upper bound; how far off, the "
            "file cannot say"
        )
    return ClipEffect(tokens, count, count / tokens, mean_stored, mean_exact, shortfall, note)
