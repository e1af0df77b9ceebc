"""Slow, obvious twins of the head, hidden and parameter spaces: F itself, and its eigenvalues by a dense solver."""

from __future__ import annotations

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def head_logits(weight, hidden, bias=None, scale=1.0, softcap=None):
    """(N, V) logits and their slope ∂z/∂(Wh + b)."""
    z = hidden @ weight.T + (0 if bias is None else bias)
    z = z * scale
    if softcap is None:
        return z, np.full_like(z, scale)
    z = softcap * np.tanh(z / softcap)
    return z, scale * (1 - (z / softcap) ** 2)


def logit_matrices(z, slope):
    p = softmax(z)
    return [s[:, None] * (np.diag(q) - np.outer(q, q)) * s for q, s in zip(p, slope, strict=True)]


def head_empirical_matrix(z, slope, hidden, labels):
    p = softmax(z)
    eye = np.eye(z.shape[1])
    rows = [np.outer(s * (eye[y] - q), h).ravel() for q, s, h, y in zip(p, slope, hidden, labels, strict=True)]
    g = np.stack(rows)
    return g.T @ g / len(g)


def head_true_matrix(z, slope, hidden):
    parts = [np.kron(a, np.outer(h, h)) for a, h in zip(logit_matrices(z, slope), hidden, strict=True)]
    return sum(parts) / len(parts)


def hidden_matrices(z, slope, weight):
    return [weight.T @ a @ weight for a in logit_matrices(z, slope)]


def top(matrix):
    return float(np.linalg.eigvalsh(matrix)[-1])


def jacobian(function, theta, step=1e-6):
    """Central differences of a vector function, (outputs, P); an error of about step² relative."""
    columns = []
    for k in range(len(theta)):
        move = np.zeros_like(theta)
        move[k] = step
        columns.append((function(theta + move) - function(theta - move)) / (2 * step))
    return np.stack(columns, axis=-1)
