"""Output distributions along a line of weights θ + tδ: values and two derivatives at t = 0. Pure numpy.

With h the final hidden states, W and b the head, z = W h + b and p = softmax(z):

    z' = W h' + W'h + b',     z'' = W h'' + 2 W'h'           (W and b move linearly, so W'' = b'' = 0)
    p' = p∘(z' − m),          m = p·z'
    p'' = p∘((z' − m)² − Var_p(z') + z'' − p·z'')
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvane.types import FloatArray

__all__ = ["Jet", "States", "covariance", "covariance_first", "covariance_second", "softmax"]


def softmax(logits: FloatArray) -> FloatArray:
    """Row by row, shifted by the maximum; −inf gives 0."""
    p: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


@dataclass(frozen=True, slots=True)
class States:
    """A model's last step at one point of the line.

    Attributes:
        hidden: (N, d) final hidden states h, one row a scored position.
        weight: (V, d) head W. bias: (V,) b, or None.
    """

    hidden: FloatArray
    weight: FloatArray
    bias: FloatArray | None = None

    def logits(self) -> FloatArray:
        """(N, V) W h + b."""
        z = self.hidden @ self.weight.T
        return z if self.bias is None else z + self.bias


@dataclass(frozen=True, slots=True)
class Jet:
    """A model's last step and its derivatives in t at t = 0.

    Attributes:
        at: value. first: derivative of hidden states, W and b. hidden2: (N, d) second derivative of h.
    """

    at: States
    first: States
    hidden2: FloatArray

    def logits1(self) -> FloatArray:
        """z', (N, V)."""
        z = self.first.hidden @ self.at.weight.T + self.at.hidden @ self.first.weight.T
        return z if self.first.bias is None else z + self.first.bias

    def logits2(self) -> FloatArray:
        """z'', (N, V)."""
        return self.hidden2 @ self.at.weight.T + 2.0 * self.first.hidden @ self.first.weight.T

    def probabilities(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """p, p', p'', each (N, V)."""
        p, z1, z2 = softmax(self.at.logits()), self.logits1(), self.logits2()
        z1 = z1 - np.einsum("ij,ij->i", p, z1)[:, None]
        spread = z1**2 + z2
        return p, p * z1, p * (spread - np.einsum("ij,ij->i", p, spread)[:, None])

    def scaled(self, factor: float) -> Jet:
        """The jet along factor·δ."""
        bias = None if self.first.bias is None else self.first.bias * factor
        first = States(self.first.hidden * factor, self.first.weight * factor, bias)
        return Jet(self.at, first, self.hidden2 * factor**2)


Rows = npt.NDArray[np.float64]


def covariance(p: Rows, v: Rows) -> Rows:
    """(diag p − ppᵀ) v, row by row."""
    out: Rows = p * (v - np.einsum("ij,ij->i", p, v)[:, None])
    return out


def covariance_first(p: Rows, p1: Rows, v: Rows) -> Rows:
    """d/dt of diag p − ppᵀ, times v: (diag p' − p'pᵀ − pp'ᵀ) v."""
    a, b = np.einsum("ij,ij->i", p, v)[:, None], np.einsum("ij,ij->i", p1, v)[:, None]
    out: Rows = p1 * (v - a) - p * b
    return out


def covariance_second(p: Rows, p1: Rows, p2: Rows, v: Rows) -> Rows:
    """d²/dt² of diag p − ppᵀ, times v: (diag p'' − p''pᵀ − pp''ᵀ − 2p'p'ᵀ) v."""
    a, b, c = (np.einsum("ij,ij->i", x, v)[:, None] for x in (p, p1, p2))
    out: Rows = p2 * (v - a) - p * c - 2.0 * p1 * b
    return out
