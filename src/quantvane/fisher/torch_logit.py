"""`lambda_max` for torch tensors, on the device where the logits are. Imports torch only when called."""

from __future__ import annotations

from typing import Any

from quantvane.errors import DataError

__all__ = ["lambda_max_torch"]

_CHUNK = 1 << 24  # elements in flight: two float64 buffers of 128 MiB
_STEPS = 6  # 4 suffice in double precision; a fixed count keeps the device from waiting for the host


def lambda_max_torch(logits: Any) -> Any:
    """Largest eigenvalue of diag(p) − ppᵀ, p = softmax(logits), without leaving the device.

    The same equation, start and Newton iteration as `quantvane.fisher.lambda_max`, in float64; no gradient is
    kept.

    Args:
        logits: tensor (..., V) of any real dtype, on a device that has float64.

    Returns:
        tensor (...) float64 on the same device: 0 for one-hot rows, NaN for rows that are no distribution.

    Raises:
        DataError: no last axis, or an empty one.
    """
    import torch

    if logits.ndim == 0 or logits.shape[-1] == 0 or logits.is_complex():
        raise DataError(
            "logits must be a real tensor with a last axis over the vocabulary",
            expected="shape (..., V) with V ≥ 1",
            got=f"shape {tuple(logits.shape)}, dtype {logits.dtype}",
            remedy="pass one row of scores a position",
        )
    with torch.no_grad():
        rows = logits.reshape(-1, logits.shape[-1])
        parts = rows.split(max(1, _CHUNK // rows.shape[1]))
        values = [_rows(torch, part.to(torch.float64)) for part in parts if len(part)]
        joined = torch.cat(values) if values else rows.new_empty((0,), dtype=torch.float64)
        return joined.reshape(logits.shape[:-1])


def _rows(torch: Any, x: Any) -> Any:
    top, at = x.max(dim=-1, keepdim=True)
    valid = torch.isfinite(top)
    x = torch.where(valid, x - torch.where(valid, top, torch.zeros_like(top)), torch.zeros_like(x)).exp_()
    x.scatter_(-1, at, 0.0)  # the largest is exactly 1 and set apart
    rest, second = x.sum(dim=-1, keepdim=True), x.max(dim=-1, keepdim=True).values
    thin = (rest - second).clamp_min(0.0)
    total = 1.0 + second + thin
    root = torch.hypot(2.0 * second, thin * (1.0 - second))
    start = 0.5 * (2.0 * second + thin * (1.0 + second) + root) / total
    start = torch.minimum(torch.maximum(start, second), torch.ones_like(start))
    ceiling = torch.minimum(torch.maximum((2.0 * second + thin) / total, start), torch.ones_like(start))
    solve = valid & (rest > 0.0) & (second < 1.0)
    start = torch.where(solve, start, torch.ones_like(start))
    x /= start
    z = torch.ones_like(start)
    bound = torch.where(solve, ceiling / start, torch.ones_like(start))
    for _ in range(_STEPS):
        term = x / (z - x)
        psi = term.sum(dim=-1, keepdim=True)
        slope = (psi + (term * term).sum(dim=-1, keepdim=True)) / z
        gain = torch.nan_to_num(slope / (psi * psi), nan=0.0, posinf=0.0)
        step = (1.0 - start * z - 1.0 / psi) / (gain + start)
        z = torch.minimum(z + torch.nan_to_num(step, nan=0.0, posinf=0.0).clamp_min(0.0), bound)
    root = torch.where(rest > 0.0, start * z, torch.zeros_like(z))
    value = torch.where(second >= 1.0, torch.ones_like(root), root) / (1.0 + rest)
    return torch.where(valid, value.clamp_max(0.5), torch.full_like(value, float("nan"))).squeeze(-1)
