"""The same metrics in plain float64 torch: exact, slow, for the few rows a fast kernel declines."""

from __future__ import annotations

import math

import torch

__all__ = ["EXACT_ROWS", "exact_rows", "lambda_max"]

EXACT_ROWS = 16  # rows at a time: about 20 float64 temporaries of a row each


def lambda_max(p: torch.Tensor) -> torch.Tensor:
    """λ_max of diag(p) − ppᵀ for each row of p (n, V) float64, by Newton on the secular equation.

    1/ψ(λ) − 1 + λ/p₁ = 0 on (p₂, p₁), ψ(λ) = Σ_{i≥2} p_i/(λ−p_i); 1/ψ is concave and increasing, so the
    steps from the lower bound of p₁, p₂ and s = Σ_{i≥2} p_i rise monotonically. Ties of p₁ and p₂ give p₁;
    s = 0 gives 0.
    """
    top, where = p.max(dim=1, keepdim=True)
    rest = p.scatter(1, where, 0.0)
    p2 = rest.max(dim=1, keepdim=True).values
    s = rest.sum(dim=1, keepdim=True)
    r = (s - p2).clamp_min(0.0)
    b = 2 * top * p2 + r * (top + p2)
    lam = 0.5 * (b + (b * b - 4 * top * p2 * r).clamp_min(0.0).sqrt())
    lam = torch.minimum(torch.maximum(lam, p2 * (1 + 1e-15)), top)
    for _ in range(12):
        gap = lam - rest
        gap = torch.where(gap > 0, gap, lam * 1e-16)
        q = rest / gap
        psi = q.sum(dim=1, keepdim=True)
        slope = (q / gap).sum(dim=1, keepdim=True)
        step = (1 / psi - 1 + lam / top) / (slope / (psi * psi) + 1 / top)
        lam = torch.minimum(torch.maximum(lam - step, p2), top)
    lam = torch.where(p2 >= top, top, lam)
    lam = torch.where(s <= 0, torch.zeros_like(lam), lam)
    lam = torch.where(torch.isnan(top), top, lam)
    return lam.squeeze(1)


def _top_sets(x: torch.Tensor, k: int) -> torch.Tensor:
    """Columns (n, k) of the k largest entries; of equal ones the first columns."""
    return torch.sort(x, dim=1, descending=True, stable=True).indices[:, :k]


def _weighted(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Σ p·x over columns with 0·anything = 0."""
    return torch.where(p > 0, p * x, 0.0).sum(dim=1)


def exact_rows(
    ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, top_k: int
) -> dict[str, torch.Tensor]:
    """Every field of TokenMetrics for logits ref, cand (n, V) and tokens (n,), in float64.

    A row with a NaN, a +inf or no finite logit gives NaN in every float field, −1 in every index and False.
    """
    x, z = ref.double(), cand.double()
    la, lb = torch.log_softmax(x, dim=1), torch.log_softmax(z, dim=1)
    p, q = la.exp(), lb.exp()
    bad = torch.isnan(la).any(dim=1) | torch.isnan(lb).any(dim=1)
    d = torch.where((p > 0) | (q > 0), lb - la, 0.0)
    phi = torch.where(d.abs() < 1e-3, d * d * (0.5 + d * (1 / 6 + d / 24)), torch.expm1(d) - d)
    phi_rev = torch.where(d.abs() < 1e-3, d * d * (0.5 - d * (1 / 6 - d / 24)), torch.expm1(-d) + d)
    # Σ p·φ(d), φ(d) = eᵈ − 1 − d, is Σ (q − p − p·d): where p = 0 its summand is q.
    kld = torch.where(p > 0, p * phi, q).sum(dim=1)
    kld_rev = torch.where(q > 0, q * phi_rev, p).sum(dim=1)
    half = torch.log(0.5 * (p + q))
    jsd = 0.5 * (_weighted(p, la - half) + _weighted(q, lb - half))
    h2 = (0.5 * ((0.5 * lb).exp() - (0.5 * la).exp()).square().sum(dim=1)).clamp(0.0, 1.0)
    at = tokens.long()[:, None]
    nll_ref, nll_cand = -la.gather(1, at).squeeze(1), -lb.gather(1, at).squeeze(1)
    k = min(top_k, x.shape[1])
    set_ref, set_cand = _top_sets(x, k), _top_sets(z, k)
    top_ref, top_cand = set_ref[:, 0], set_cand[:, 0]
    level = z.gather(1, top_ref[:, None])
    before = torch.arange(z.shape[1], device=z.device)[None, :] < top_ref[:, None]
    rank = ((z > level) | ((z == level) & before)).sum(dim=1)
    overlap = (set_ref[:, :, None] == set_cand[:, None, :]).any(dim=2).sum(dim=1).double() / k
    out = {
        "kld": kld,
        "kld_rev": kld_rev,
        "jsd": jsd.clamp(0.0, math.log(2.0)),
        "tv": 0.5 * (p - q).abs().sum(dim=1),
        "hellinger": h2.sqrt(),
        "fisher_rao": 4.0 * torch.asin((0.5 * h2).sqrt()),
        "nll_ref": nll_ref,
        "nll_cand": nll_cand,
        "delta_p": (-nll_cand).exp() - (-nll_ref).exp(),
        "entropy_ref": -_weighted(p, la),
        "entropy_cand": -_weighted(q, lb),
        "pmax_ref": p.max(dim=1).values,
        "pmax_cand": q.max(dim=1).values,
        "lambda_ref": lambda_max(p),
        "lambda_cand": lambda_max(q),
        "topk_overlap": overlap,
    }
    out = {name: torch.where(bad, math.nan, value) for name, value in out.items()}
    minus = torch.full_like(rank, -1)
    out["top1_ref"] = torch.where(bad, minus, top_ref).int()
    out["top1_cand"] = torch.where(bad, minus, top_cand).int()
    out["rank_in_cand"] = torch.where(bad, minus, rank).int()
    out["same_top1"] = (top_ref == top_cand) & ~bad
    return out
