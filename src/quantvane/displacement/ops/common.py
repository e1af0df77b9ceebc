"""What every kernel shares: the last, per-position step, and the refusal of rows that are no distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.types import TokenMetrics

__all__ = ["assemble", "bad_row"]


def assemble(columns: dict[str, npt.NDArray[Any]]) -> TokenMetrics:
    """Complete a kernel's columns with the fields that follow from others.

    A kernel delivers every field of `TokenMetrics` but ``hellinger``, ``fisher_rao``, ``delta_p`` and
    ``same_top1``, and in their place ``h2`` = ½Σ(√p−√q)² = 1−Σ√(pq).

    Taking the angle from h2 and not from Σ√(pq) keeps it accurate for nearby rows, where the cosine is flat:
    1−cos φ = 2 sin²(φ/2), so 2φ = 4·arcsin √(h2/2).
    """
    done = dict(columns)
    h2 = np.clip(done.pop("h2"), 0.0, 1.0)
    done["hellinger"] = np.sqrt(h2)
    done["fisher_rao"] = 4.0 * np.arcsin(np.sqrt(0.5 * h2))
    done["delta_p"] = np.exp(-done["nll_cand"]) - np.exp(-done["nll_ref"])
    done["same_top1"] = done["top1_ref"] == done["top1_cand"]
    return TokenMetrics(**done)


def bad_row(side: str, row: int, values: npt.NDArray[Any]) -> DataError:
    """The error for a row of logits that defines no distribution.

    Args:
        side: ``"ref_logits"`` or ``"cand_logits"``.
        row: its number within the array the caller passed.
        values: (V,) the logits at fault.
    """
    nan = np.isnan(values)
    if nan.any():
        what = f"NaN logits at row {row} of {side}"
        got = f"{int(nan.sum())} NaN of {values.size}, the first at index {int(nan.argmax())}"
    elif np.isposinf(values).any():
        what = f"infinite logits at row {row} of {side}"
        got = f"+inf at index {int(np.isposinf(values).argmax())}"
    else:
        what = f"no possible token at row {row} of {side}"
        got = "every logit is -inf"
    return DataError(
        what,
        expected="logits below +inf, of which at least one is finite",
        got=got,
        remedy="the model's output is damaged there: run it at a higher precision, or leave the row out",
    )
