"""What llama.cpp's ``--kl-divergence`` prints, to the digit: for comparison with numbers published elsewhere.

The values per token are in `peer_tokens`; here are the statistics of a whole run and their printout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.displacement.peer_tokens import (
    BaseRows,
    ClipEffect,
    PeerTokenValues,
    clip_effect,
    peer_token_values,
)

__all__ = [
    "BaseRows",
    "ClipEffect",
    "PeerEstimate",
    "PeerSummary",
    "PeerTokenValues",
    "clip_effect",
    "peer_summary",
    "peer_token_values",
]

MIN_TOKENS = 100
"""Below this many tokens the peer prints no summary."""

# Printed label (seven columns) → fraction; None is the peer's median, which is not its 50% percentile.
_KLD_LABELS: tuple[tuple[str, float | None], ...] = (
    ("Maximum", 1.0),
    ("99.9%  ", 0.999),
    ("99.0%  ", 0.99),
    ("95.0%  ", 0.95),
    ("90.0%  ", 0.9),
    ("Median ", None),
    ("10.0%  ", 0.1),
    (" 5.0%  ", 0.05),
    (" 1.0%  ", 0.01),
    (" 0.1%  ", 0.001),
    ("Minimum", 0.0),
)
_DELTA_LABELS = (*_KLD_LABELS[:5], ("75.0%  ", 0.75), _KLD_LABELS[5], ("25.0%  ", 0.25), *_KLD_LABELS[6:])


@dataclass(frozen=True, slots=True)
class PeerEstimate:
    """A value and the peer's uncertainty of it: one standard error, tokens taken as independent."""

    value: float
    uncertainty: float


_UNKNOWN = PeerEstimate(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class PeerSummary:
    """Every statistic the peer prints. Nats and fractions, not per cent; NaN with a ``reason``.

    Attributes:
        tokens: number of scored positions.
        ppl, ppl_base: exp of the mean NLL of candidate and stored base.
        correlation: of the two mean NLLs, cov/(σ·σ_base).
        ln_ratio, ratio, difference: ln PPL(Q)/PPL(base), its exp, and PPL(Q) − PPL(base).
        kld, delta_p: means. kld_at, delta_p_at: printed label (stripped) → percentile.
        delta_p_rms: root of the mean square of Δp. same_top: share of agreeing argmaxes.
        reason: why something is NaN, or "".
    """

    tokens: int
    ppl: PeerEstimate = _UNKNOWN
    ppl_base: PeerEstimate = _UNKNOWN
    correlation: float = math.nan
    ln_ratio: PeerEstimate = _UNKNOWN
    ratio: PeerEstimate = _UNKNOWN
    difference: PeerEstimate = _UNKNOWN
    kld: PeerEstimate = _UNKNOWN
    kld_at: dict[str, float] | None = None
    delta_p: PeerEstimate = _UNKNOWN
    delta_p_at: dict[str, float] | None = None
    delta_p_rms: PeerEstimate = _UNKNOWN
    same_top: PeerEstimate = _UNKNOWN
    reason: str = ""

    def text(self) -> str:
        """The peer's printout, from its first rule to "Same top p", ending in a newline.

        Where the peer prints nothing or nothing meaningful (no percentiles), one line says why.
        """
        if self.kld_at is None or self.delta_p_at is None:
            return f"no summary: {self.reason}\n"
        lines = ["====== Perplexity statistics ======"]
        lines += [
            f"{label:<30}: {_fixed(e.value, 10, 6)} ± {_fixed(e.uncertainty, 10, 6)}"
            for label, e in (("Mean PPL(Q)", self.ppl), ("Mean PPL(base)", self.ppl_base))
        ]
        lines.append(f"Cor(ln(PPL(Q)), ln(PPL(base))): {_fixed(100 * self.correlation, 6, 2)}%")
        lines += [
            f"{label:<30}: {_fixed(e.value, 10, 6)} ± {_fixed(e.uncertainty, 10, 6)}"
            for label, e in (
                ("Mean ln(PPL(Q)/PPL(base))", self.ln_ratio),
                ("Mean PPL(Q)/PPL(base)", self.ratio),
                ("Mean PPL(Q)-PPL(base)", self.difference),
            )
        ]
        lines += ["", "====== KL divergence statistics ======"]
        lines.append(f"Mean    KLD: {_fixed(self.kld.value, 10, 6)} ± {_fixed(self.kld.uncertainty, 10, 6)}")
        lines += [f"{label} KLD: {_fixed(self.kld_at[label.strip()], 10, 6)}" for label, _ in _KLD_LABELS]
        lines += ["", "====== Token probability statistics ======"]
        lines.append(f"Mean    Δp: {_percent(self.delta_p)}")
        lines += [
            f"{label} Δp: {_fixed(100 * self.delta_p_at[label.strip()], 6, 3)}%" for label, _ in _DELTA_LABELS
        ]
        lines.append(f"RMS Δp    : {_percent(self.delta_p_rms)}")
        lines.append(f"Same top p: {_percent(self.same_top)}")
        return "\n".join(lines) + "\n"


def peer_summary(values: PeerTokenValues) -> PeerSummary:
    """The peer's statistics of a whole run.

    Uncertainty of a mean: √((E[x²] − E[x]²)/(n−1)), 0 where rounding makes it negative. Squares of NLLs and
    of Δp are float32 products summed in float64. Percentiles: linear between order statistics, in float32.
    Ratio: exp(μ − μ_b) with √(σ² + σ_b² − 2cov) relative.

    Fewer than 100 tokens, or NaN among the values, give NaN everywhere and the reason.
    """
    count = len(values)
    if count < MIN_TOKENS:
        return PeerSummary(
            count, reason=f"{count} tokens, and the peer summarises no fewer than {MIN_TOKENS}"
        )
    broken = int((np.isnan(values.kld) | np.isnan(values.nll) | np.isnan(values.delta_p)).sum())
    if broken:
        return PeerSummary(
            count, reason=f"{broken} of {count} tokens have NaN values: NaN or infinite logits"
        )
    # Infinite values (a candidate logit of −inf) are the peer's inf and NaN, not a reason to warn.
    with np.errstate(all="ignore"):
        return _summary(values, count)


def _summary(values: PeerTokenValues, count: int) -> PeerSummary:
    nll, nll_base, delta = values.nll, values.nll_base, values.delta_p
    log_ppl, log_base = _mean(nll, nll * nll), _mean(nll_base, nll_base * nll_base)
    product = float((nll * nll_base).sum(dtype=np.float64))
    cov = (product / count - log_ppl.value * log_base.value) / (count - 1)

    ppl, ppl_base = _exp(log_ppl), _exp(log_base)
    ln_ratio = PeerEstimate(
        log_ppl.value - log_base.value,
        _root(_square(log_ppl.uncertainty) + _square(log_base.uncertainty) - 2 * cov),
    )
    difference = PeerEstimate(
        ppl.value - ppl_base.value,
        _root(
            _square(ppl.uncertainty) + _square(ppl_base.uncertainty) - 2 * (ppl.value * ppl_base.value * cov)
        ),
    )
    kld_sorted, delta_sorted = np.sort(values.kld.astype(np.float32)), np.sort(delta)
    squares = (delta * delta).astype(np.float64)
    mean_square = _mean(squares, squares * squares)
    root = math.sqrt(mean_square.value)
    rms = PeerEstimate(root, _ratio(0.5, root) * mean_square.uncertainty)
    agree = int(values.same_top.sum()) / count
    correlation = _ratio(cov, log_ppl.uncertainty * log_base.uncertainty)
    undefined = [
        name
        for name, x in (
            ("correlation", correlation),
            ("uncertainty of ln_ratio", ln_ratio.uncertainty),
            ("uncertainty of difference", difference.uncertainty),
            ("uncertainty of delta_p_rms", rms.uncertainty),
        )
        if math.isnan(x)
    ]
    return PeerSummary(
        tokens=count,
        ppl=ppl,
        ppl_base=ppl_base,
        correlation=correlation,
        ln_ratio=ln_ratio,
        ratio=_exp(ln_ratio),
        difference=difference,
        kld=_mean(values.kld, values.kld * values.kld),
        kld_at={label.strip(): _percentile(kld_sorted, fraction) for label, fraction in _KLD_LABELS},
        delta_p=_mean(delta, delta * delta),
        delta_p_at={label.strip(): _percentile(delta_sorted, fraction) for label, fraction in _DELTA_LABELS},
        delta_p_rms=rms,
        same_top=PeerEstimate(agree, math.sqrt(agree * (1 - agree) / (count - 1))),
        reason=f"undefined for lack of spread or infinite values: {', '.join(undefined)}"
        if undefined
        else "",
    )


def _mean(x: npt.NDArray[np.floating], squares: npt.NDArray[np.floating]) -> PeerEstimate:
    """Mean of x and its uncertainty, from the sums of x and of its squares as the peer takes them."""
    count = len(x)
    mean = float(x.sum(dtype=np.float64)) / count
    variance = float(squares.sum(dtype=np.float64)) / count - mean * mean
    # The peer's 0 for a variance that rounding made negative; NaN ends there too.
    return PeerEstimate(mean, math.sqrt(variance / (count - 1)) if variance > 0 else 0.0)


def _exp(log: PeerEstimate) -> PeerEstimate:
    """exp of an estimate, its uncertainty to first order."""
    value = float(np.exp(np.float64(log.value)))
    return PeerEstimate(value, value * log.uncertainty)


def _square(x: float) -> float:
    return x * x  # x**2 raises where this overflows to infinity


def _root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _ratio(a: float, b: float) -> float:
    return float(np.float64(a) / np.float64(b))


def _percentile(ordered: npt.NDArray[np.float32], fraction: float | None) -> float:
    """The peer's percentile of ascending float32 values, each step rounded to float32; None: the median."""
    last = len(ordered) - 1
    if fraction is None:
        middle = len(ordered) // 2
        both = np.float32(0.5) * (ordered[middle] + ordered[middle - 1])
        return float(both if len(ordered) % 2 == 0 else ordered[middle])
    if fraction in (0.0, 1.0):
        return float(ordered[0 if fraction == 0.0 else last])
    place = np.float32(fraction) * np.float32(last)
    index = min(int(place), last)
    part = place - np.float32(index)
    return float((np.float32(1) - part) * ordered[index] + part * ordered[min(index + 1, last)])


def _fixed(value: float, width: int, digits: int) -> str:
    """C's ``%width.digitsf``; an undefined result is printed as on x86, whose own NaN is negative."""
    text = "-nan" if math.isnan(value) else f"{value:.{digits}f}"
    return text.rjust(width)


def _percent(estimate: PeerEstimate) -> str:
    return f"{_fixed(100 * estimate.value, 6, 3)} ± {_fixed(100 * estimate.uncertainty, 5, 3)} %"
