"""Displacement at each scored position, by a backend chosen by name.

The definitions are in `quantvane.types.TokenMetrics`; a backend (``displacement/ops``) only computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import CapabilityError, DataError
from quantvane.types import TokenMetrics

__all__ = ["BACKENDS", "Kernel", "load_kernel", "token_metrics"]

Kernel = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64], int], TokenMetrics]

BACKENDS: dict[str, str] = {
    "numpy": "quantvane.displacement.ops.numpy_rows",
    "numba": "quantvane.displacement.ops.numba_rows",
    "triton": "quantvane.displacement.ops.triton_backend",
}
"""Backend name → module with a function ``rows``; imported when first asked for."""

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def load_kernel(backend: str) -> Kernel:
    """The kernel of a backend.

    Raises:
        CapabilityError: no backend of that name, or a library it needs is not installed. Another backend is
            never put in its place.
    """
    if backend not in BACKENDS:
        raise CapabilityError(
            f"unknown backend '{backend}'",
            expected=f"one of {sorted(BACKENDS)}",
            got=repr(backend),
            remedy="name one of these backends",
        )
    try:
        module = import_module(BACKENDS[backend])
    except ImportError as error:
        raise CapabilityError(
            f"backend '{backend}' cannot be loaded",
            expected="its library to be installed",
            got=str(error),
            remedy=f"install what it needs, or name another backend of {sorted(BACKENDS)}",
        ) from error
    kernel: Kernel = module.rows
    return kernel


def token_metrics(
    ref_logits: npt.ArrayLike,
    cand_logits: npt.ArrayLike,
    tokens: npt.ArrayLike,
    backend: str = "numpy",
    *,
    top_k: int = 10,
) -> TokenMetrics:
    """Displacement of a candidate from the reference at T scored positions.

    With p = softmax(ref_logits[r]), q = softmax(cand_logits[r]), y = tokens[r], every field of
    `quantvane.types.TokenMetrics` at row r, in nats. Rows do not touch each other: cutting the input into any
    pieces gives bit-identical results.

    A logit of −inf means probability 0, and only that does: 0·ln 0 = 0, ``kld`` is +inf where the candidate
    excludes a token that the reference allows (``kld_rev`` the other way round), ``nll`` of an excluded token
    is +inf. Identical rows give exactly 0 in every divergence.

    Args:
        ref_logits, cand_logits: (T, V) float16, float32 or float64; any offset per row.
        tokens: (T,) integers in [0, V), the observed tokens.
        backend: ``"numpy"`` computes in float64 throughout; ``"numba"`` reads float32 (float64 input is
            rounded to it), sums in float64, agrees within 1e-6 absolute at the usual scale of logits, and is
            many times faster; ``"triton"`` does on an NVIDIA GPU what numba does, to the same 1e-6 (needs torch
            and triton; ``top_k`` at most 26).
        top_k: k of ``topk_overlap``; where V < k the sets hold all V. Of equal logits the smaller index is
            taken first.

    Returns:
        A record of (T,) arrays; empty arrays for T = 0.

    Raises:
        DataError: shapes, types or tokens that do not fit; a row with NaN or +inf, or all −inf (named).
        CapabilityError: an unknown or missing backend.

    >>> import numpy as np
    >>> logits = np.log([[0.5, 0.25, 0.25]])
    >>> round(float(token_metrics(logits, np.zeros((1, 3)), [0]).kld[0]), 6)
    0.05889
    """
    kernel = load_kernel(backend)
    ref, cand = np.asarray(ref_logits), np.asarray(cand_logits)
    for name, array in (("ref_logits", ref), ("cand_logits", cand)):
        if array.dtype not in _DTYPES:
            raise DataError(
                f"{name} is not an array of floats",
                expected="float16, float32 or float64",
                got=str(array.dtype),
                remedy="convert the logits to float32",
            )
        if array.ndim != 2 or array.shape[1] == 0:
            raise DataError(
                f"{name} is not a table of logits",
                expected="shape (T, V) with V ≥ 1",
                got=f"shape {array.shape}",
                remedy="pass one row of V logits per scored position",
            )
    if ref.shape != cand.shape:
        raise DataError(
            "reference and candidate logits differ in shape",
            expected=f"cand_logits of shape {ref.shape}",
            got=f"shape {cand.shape}",
            remedy="both models must score the same positions over the same vocabulary",
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise DataError(
            "top_k is not a positive whole number",
            expected="an integer ≥ 1",
            got=repr(top_k),
            remedy="pass for example top_k=10",
        )
    return kernel(ref, cand, _checked_tokens(tokens, *ref.shape), int(top_k))


def _checked_tokens(tokens: npt.ArrayLike, rows: int, vocab: int) -> npt.NDArray[np.int64]:
    given = np.asarray(tokens)
    if given.size == 0 and given.shape == (rows,):
        return np.zeros(0, dtype=np.int64)  # [] has dtype float64
    if given.shape != (rows,) or given.dtype.kind not in "iu":
        raise DataError(
            "tokens do not fit the logits",
            expected=f"integers of shape ({rows},)",
            got=f"{given.dtype} of shape {given.shape}",
            remedy="pass the observed token of every row",
        )
    outside = (given < 0) | (given >= vocab)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"token outside the vocabulary at row {row}",
            expected=f"a token in [0, {vocab})",
            got=str(given[row]),
            remedy="check that tokens and logits come from the same tokenizer",
        )
    return given.astype(np.int64, copy=False)
