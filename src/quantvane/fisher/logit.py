"""λ_max of the logit-space Fisher information diag(p) − ppᵀ: exact, and between closed forms.

p is a softmax output over V tokens. 0 ≤ λ ≤ ½; 0 only for one-hot p, ½ only for p = (½, ½, 0, …).
Nothing here subtracts from 1: the mass beside the largest probability is summed, or −expm1(ln p₁).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.fisher.secular import rise, two_atom_bounds
from quantvane.fisher.tails import MASS_SLACK
from quantvane.types import FloatArray

__all__ = [
    "lambda_bracket",
    "lambda_heuristic_interval",
    "lambda_max",
    "lambda_max_from_logprobs",
    "published_heuristic",
]

_CHUNK = 1 << 18  # elements in flight: two float64 buffers of 2 MiB, or one row where V is larger


def lambda_max(logits: npt.ArrayLike) -> FloatArray:
    """Largest eigenvalue of diag(p) − ppᵀ, p = softmax(logits), in O(V) a row.

    Solves p₁/(p₁−λ) = Σ_{i≥2} pᵢ/(λ−pᵢ) by a Newton iteration that rises monotonically from a closed-form
    lower bound (see `quantvane.fisher.secular`). Relative error below 1e-12, also next to one-hot.

    Args:
        logits: (..., V), any real dtype; −inf is probability 0. Shifts along the last axis do not matter.

    Returns:
        (...) float64. 0 for one-hot rows and V = 1; p₁ where the largest probability is tied; NaN for a row
        that holds NaN or +inf or only −inf, since it is no distribution.

    Raises:
        DataError: no last axis, an empty one, or values that are not real numbers.

    >>> float(lambda_max([0.0, 0.0]))
    0.5
    """
    array = _real(logits, "logits")
    rows = array.reshape(-1, array.shape[-1])
    out = np.empty(len(rows), dtype=np.float64)
    per_chunk = max(1, _CHUNK // rows.shape[1])
    for begin in range(0, len(rows), per_chunk):
        out[begin : begin + per_chunk] = _chunk(rows[begin : begin + per_chunk].astype(np.float64))
    return out.reshape(array.shape[:-1])


def lambda_max_from_logprobs(logprobs: npt.ArrayLike) -> FloatArray:
    """`lambda_max` for normalised log-probabilities over the whole vocabulary, which it checks to be that.

    Args:
        logprobs: (..., V) natural logarithms of probabilities that sum to 1.

    Returns:
        (...) float64, NaN where the row holds NaN.

    Raises:
        DataError: a row's mass is off 1 by more than a single-precision log-softmax explains. Top-k lists go
            to `lambda_bounds_topk`.
    """
    array = _real(logprobs, "log-probabilities")
    rows = array.reshape(-1, array.shape[-1])
    per_chunk = max(1, _CHUNK // rows.shape[1])
    for begin in range(0, len(rows), per_chunk):
        with np.errstate(over="ignore"):
            mass = np.exp(rows[begin : begin + per_chunk].astype(np.float64)).sum(axis=-1)
        wrong = np.abs(mass - 1.0) > MASS_SLACK
        if bool(wrong.any()):
            row = int(wrong.argmax())
            raise DataError(
                "log-probabilities do not sum to a distribution",
                expected="exp(logprobs) summing to 1 over the last axis",
                got=f"mass {mass[row]:.9g} in row {begin + row}",
                remedy="pass raw scores to lambda_max, a top-k list to lambda_bounds_topk",
            )
    return lambda_max(array)


def lambda_bracket(
    p1: npt.ArrayLike, p2: npt.ArrayLike, s: npt.ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """Closed-form bounds of λ_max from the two largest probabilities alone.

    With r = s − p₂ and b = 2p₁p₂ + r(p₁+p₂):  (b + √(b² − 4p₁p₂r))/2 ≤ λ ≤ p₁(s+p₂). Their ratio is at most
    4 − 2√2 ≈ 1.172. Both are equalities for two tokens.

    Args:
        p1, p2: the largest and second largest probability, broadcast together.
        s: mass of everything but the largest. By default 1 − p₁, which is only as good as the rounding of
            ``p1``: next to one-hot pass the sum, or −expm1(ln p₁).

    Returns:
        lower, upper, in the broadcast shape; NaN where an argument is NaN.

    Raises:
        DataError: not 0 ≤ p₂ ≤ p₁ ≤ 1, or p₂ > s beyond rounding.
    """
    first, second = np.asarray(p1, dtype=np.float64), np.asarray(p2, dtype=np.float64)
    mass = 1.0 - first if s is None else np.asarray(s, dtype=np.float64)
    first, second, mass = np.broadcast_arrays(first, second, mass)
    bad = (second < 0) | (second > first) | (first > 1 + MASS_SLACK) | (second > mass + MASS_SLACK)
    if bool(bad.any()):
        at = int(bad.ravel().argmax())
        raise DataError(
            "these are not the two largest probabilities of a distribution",
            expected="0 ≤ p2 ≤ p1 ≤ 1 and p2 ≤ s",
            got=f"p1={first.ravel()[at]:.9g}, p2={second.ravel()[at]:.9g}, s={mass.ravel()[at]:.9g}",
            remedy="sort the probabilities in descending order and normalise them",
        )
    return two_atom_bounds(first, second, np.maximum(mass - second, 0.0))


def lambda_heuristic_interval(
    p1: npt.ArrayLike, s: npt.ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """The interval p₁(1−p₁) ≤ λ_max ≤ 2p₁(1−p₁), from the largest probability alone.

    Rigorous, if wide: the lower end is a diagonal entry, the upper Gershgorin's disc (capped at min(p₁, ½),
    which λ never exceeds).

    Args:
        p1: largest probability, any shape.
        s: 1 − p₁ computed accurately (the sum of the others, or −expm1(ln p₁)); by default 1 − p₁.

    Raises:
        DataError: p₁ outside [0, 1].
    """
    first = np.asarray(p1, dtype=np.float64)
    if bool(((first < 0) | (first > 1 + MASS_SLACK)).any()):
        raise DataError(
            "p1 is no probability",
            expected="0 ≤ p1 ≤ 1",
            got=f"values in [{np.nanmin(first):.9g}, {np.nanmax(first):.9g}]",
            remedy="pass the largest probability, not its logarithm",
        )
    mass = np.maximum(1.0 - first, 0.0) if s is None else np.asarray(s, dtype=np.float64)
    product = first * mass
    return product, np.minimum(2.0 * product, np.minimum(first, 0.5))


def published_heuristic(logits: npt.ArrayLike) -> FloatArray:
    """A point estimate found in published code, p₁(1−p₁)(1 + ½·H/ln V). **Not a bound**: for comparison only.

    H is the entropy in nats. The value falls below the rigorous lower bound or above the rigorous upper bound
    on a large share of distributions.

    Args:
        logits: (..., V), as for `lambda_max`.

    Returns:
        (...) float64; NaN for V = 1 (ln V = 0) and for rows that are no distribution.
    """
    array = _real(logits, "logits")
    size = array.shape[-1]
    rows = array.reshape(-1, size)
    out = np.full(len(rows), np.nan)
    per_chunk = max(1, _CHUNK // size)
    for begin in range(0, len(rows) if size > 1 else 0, per_chunk):
        x = rows[begin : begin + per_chunk].astype(np.float64)
        valid = _shift(x)
        p = np.exp(x)
        total = p.sum(axis=-1)
        with np.errstate(invalid="ignore"):
            weighted = np.where(p > 0.0, p * x, 0.0).sum(axis=-1)
        entropy = np.log(total) - weighted / total
        np.put_along_axis(p, p.argmax(axis=-1)[:, None], 0.0, axis=-1)
        value = (p.sum(axis=-1) / total / total) * (1.0 + 0.5 * entropy / math.log(size))
        out[begin : begin + per_chunk] = np.where(valid, value, np.nan)
    return out.reshape(array.shape[:-1])


def _real(values: npt.ArrayLike, name: str) -> npt.NDArray[np.floating | np.integer]:
    """An array with a non-empty last axis of real numbers, not copied where it already is one."""
    array = np.asarray(values)
    if array.ndim == 0 or array.shape[-1] == 0 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{name} must be an array of real numbers with a last axis over the vocabulary",
            expected="shape (..., V) with V ≥ 1 and a real dtype",
            got=f"shape {array.shape}, dtype {array.dtype}",
            remedy="pass a numpy array, one row of scores a position",
        )
    return array


def _shift(x: FloatArray) -> npt.NDArray[np.bool_]:
    """Subtract each row's maximum in place; rows that are no distribution become zeros and False."""
    top = x.max(axis=-1)
    valid: npt.NDArray[np.bool_] = np.isfinite(top)  # NaN propagates through max; ±inf is caught here too
    if not bool(valid.all()):
        x[~valid] = 0.0
        top = np.where(valid, top, 0.0)
    x -= top[:, None]
    return valid


def _chunk(x: FloatArray) -> FloatArray:
    """`lambda_max` of (n, V) float64 rows, which it overwrites."""
    valid = _shift(x)
    np.exp(
        x, out=x
    )  # unnormalised: λ is homogeneous, so one division by the total at the end is all it takes
    np.put_along_axis(x, x.argmax(axis=-1)[:, None], 0.0, axis=-1)  # the largest is exactly 1 and set apart
    rest, second = x.sum(axis=-1), x.max(axis=-1)
    one = np.ones_like(rest)
    start, ceiling = two_atom_bounds(one, second, np.maximum(rest - second, 0.0))
    open_rows = (rest > 0.0) & (second < 1.0) & valid
    start = np.where(open_rows, start, 1.0)
    x /= start[:, None]
    buffer = np.empty_like(x)

    def psi(z: FloatArray) -> tuple[FloatArray, FloatArray]:
        # t = u/(z−u); Σ u/(z−u)² = Σ t(1+t)/z saves a division per entry
        np.subtract(z[:, None], x, out=buffer)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            np.divide(x, buffer, out=buffer)
            value = buffer.sum(axis=-1)
            return value, (value + np.einsum("ij,ij->i", buffer, buffer)) / z

    root = start.copy()
    if bool(open_rows.any()):
        root = start * rise(psi, start, np.where(open_rows, ceiling / start, 1.0))
    value = np.where(second >= 1.0, 1.0, np.where(rest > 0.0, root, 0.0)) / (one + rest)
    out: FloatArray = np.where(valid, np.minimum(value, 0.5), np.nan)
    return out
