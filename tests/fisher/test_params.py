"""Parameter space against dense matrices on a micro Llama: Gram, sketch, Gauss–Newton, labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.fisher import SKETCH_WIDTH, gauss_newton, gram_lambda, lanczos_lambda, trace_bounds
from quantvane.fisher.params import (
    empirical_gram,
    empirical_lambda,
    gradient_rows,
    sampled_labels,
    sampled_lambda,
    sketched_gram,
    true_lambda,
)
from quantvane.fisher.params_sketch import CountSketch
from quantvane.fisher.scored_model import scored_model
from reference.fisher_dense import jacobian, logit_matrices, softmax, top

torch = pytest.importorskip("torch")


class Tiny(torch.nn.Module):
    """Embedding, attention-free mixing, a gate and a head, wholly in double precision; P = 348."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(3)
        for name, shape in (("embed", (12, 6)), ("mix", (6, 6)), ("gate", (6, 6)), ("head", (12, 6))):
            value = torch.randn(shape, generator=gen, dtype=torch.float64) * 0.7
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, ids):
        x = self.embed[ids]
        x = torch.cumsum(x, 0) / torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]
        return (torch.tanh(x @ self.mix.T) * torch.sigmoid(x @ self.gate.T)) @ self.head.T


@pytest.fixture(scope="module")
def tiny():
    ids = torch.tensor([1, 5, 3, 3, 9, 0, 11, 2])
    return scored_model(Tiny().eval(), {"ids": ids[:-1]}, lambda z: z[2:], ids[3:])


@pytest.fixture(scope="module")
def dense(tiny):
    """Logits and the Jacobian (N, V, P) by central differences."""

    def logits(theta):
        with torch.no_grad():
            return tiny.logits(tiny.unflat(theta)).numpy()

    return logits(tiny.flat()), jacobian(logits, tiny.flat())


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 40, (1, 12))
    inputs = {"input_ids": ids, "use_cache": False}
    return scored_model(model, inputs, lambda out: out.logits[0, 5:11], ids[0, 6:12])


def test_empirical_fisher_against_differences(tiny, dense):
    z, jac = dense
    delta = softmax(z) - np.eye(z.shape[1])[tiny.labels.numpy()]
    g = np.einsum("nv,nvp->np", delta, jac)
    gram = empirical_gram(tiny)
    np.testing.assert_allclose(gram, g @ g.T / len(g), rtol=1e-6, atol=1e-9)
    assert empirical_lambda(tiny).value == pytest.approx(top(g.T @ g / len(g)), rel=1e-6)


def test_true_fisher_against_differences(tiny, dense):
    pytest.importorskip("curvlinops")
    z, jac = dense
    parts = zip(jac, logit_matrices(z, np.ones_like(z)), strict=True)
    matrix = sum(j.T @ a @ j for j, a in parts) / len(z)
    product = gauss_newton(tiny)
    vector = np.random.default_rng(0).normal(size=tiny.size)
    np.testing.assert_allclose(product(vector), matrix @ vector, rtol=1e-5, atol=1e-8)
    found = true_lambda(tiny, np.random.default_rng(1), steps=60, tolerance=1e-10)
    assert found.value == pytest.approx(top(matrix), rel=1e-6)
    few = true_lambda(tiny, np.random.default_rng(1), steps=2)
    assert few.value <= top(matrix) * (1 + 1e-6)
    assert np.abs(np.linalg.eigvalsh(matrix) - few.value).min() <= few.residual * (1 + 1e-6)


def test_true_is_the_expectation_of_sampled(tiny, dense):
    """Σ_y p(y) g(y) g(y)ᵀ by hand, and sampled λ_max above it on average (Jensen)."""
    pytest.importorskip("curvlinops")
    true = true_lambda(tiny, np.random.default_rng(1), steps=60, tolerance=1e-9).value
    found = sampled_lambda(tiny, np.random.default_rng(2), draws=60)
    assert found.value - 3 * found.spread * found.value > true
    assert found.fisher == "sampled"
    z, _ = dense
    draws = np.stack([sampled_labels(tiny, np.random.default_rng(s)).numpy() for s in range(2000)])
    for row in range(len(z)):
        share = np.bincount(draws[:, row], minlength=z.shape[1]) / len(draws)
        assert np.abs(share - softmax(z[row])).max() < 5 * math.sqrt(0.25 / len(draws))


def test_gram_against_lanczos_on_a_llama(llama):
    rows = gradient_rows(llama)[:].double().numpy()
    gram = empirical_gram(llama)
    found = lanczos_lambda(
        lambda v: rows.T @ (rows @ v) / len(rows), llama.size, np.random.default_rng(0), tolerance=1e-12
    )
    assert gram_lambda(gram).value == pytest.approx(found.value, rel=1e-10)
    bounds = trace_bounds(gram)
    assert bounds.lower <= found.value <= bounds.upper <= bounds.trace


def test_gauss_newton_of_a_llama_is_the_dense_matrix(llama):
    """Against Σ_y p(y) g(y) g(y)ᵀ from reverse-mode gradients of every label: nothing shared with the operator."""
    pytest.importorskip("curvlinops")
    with torch.no_grad():
        p = softmax(llama.logits(llama.params).double().numpy())
    matrix = np.zeros((llama.size, llama.size))
    for y in range(p.shape[1]):
        g = gradient_rows(llama, labels=torch.full_like(llama.labels, y))[:].double().numpy()
        matrix += (g * p[:, y : y + 1]).T @ g / len(p)
    found = true_lambda(llama, np.random.default_rng(0), steps=40, tolerance=1e-6)
    assert found.value == pytest.approx(top(matrix), rel=2e-5)


def test_gradients_that_do_not_fit_are_computed_again(llama):
    whole = empirical_gram(llama)
    pieces = empirical_gram(llama, memory=8 * llama.size * 2)  # blocks of two of the six rows
    np.testing.assert_allclose(pieces, whole, rtol=1e-6, atol=1e-9)


def test_weights_give_window_gradients(llama):
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]])
    tokens = empirical_gram(llama) * 6
    mixed = weights.double().numpy()
    np.testing.assert_allclose(
        empirical_gram(llama, weights=weights), mixed @ tokens @ mixed.T / 2, rtol=1e-5, atol=1e-8
    )


def sketch_errors(count, width, rows=6, size=400):
    """Relative errors of λ_max from sketches of ``count`` seeds, and the Gram entries' errors over their promise."""
    g = np.random.default_rng(0).normal(size=(rows, size)) + np.random.default_rng(1).normal(size=size)
    exact = g @ g.T / rows
    value = top(exact)
    norms = np.diag(exact)
    promise = (np.outer(norms, norms) + exact**2) / width
    errors, squares = [], np.zeros_like(exact)
    for seed in range(count):
        sketch = CountSketch(width, seed)
        held = np.stack([sketch.of([torch.from_numpy(row)]) for row in g])
        gram = held @ held.T / rows
        errors.append(top(gram) / value - 1)
        squares += (gram - exact) ** 2
    return np.array(errors), squares / count / promise


def test_sketch_error_is_as_stated():
    """Relative standard deviation at most √(2/width): 1.1% at the default width."""
    errors, ratio = sketch_errors(300, 1024)
    stated = math.sqrt(2 / 1024)
    noise = 1 + 4 / math.sqrt(2 * 300)  # of a standard deviation from 300 draws
    assert errors.std() <= stated * noise
    assert errors.std() > stated / 3  # the statement is not idle
    assert abs(errors.mean()) < stated
    assert (ratio < 1.5).all()
    assert math.sqrt(2 / SKETCH_WIDTH) < 0.0111


@pytest.mark.slow
def test_sketch_error_is_as_stated_over_many_seeds():
    errors, ratio = sketch_errors(4000, 2048)
    assert errors.std() <= math.sqrt(2 / 2048) * (1 + 4 / math.sqrt(8000))
    assert (ratio < 1.15).all()


def test_sketched_lambda_of_a_llama(llama):
    exact = empirical_lambda(llama)
    found = empirical_lambda(llama, sketch=SKETCH_WIDTH)
    assert abs(found.value / exact.value - 1) < 5 * found.spread
    assert math.isnan(found.upper)
    assert np.abs(sketched_gram(llama, seed=1) - sketched_gram(llama, seed=2)).max() > 0


def test_other_parameters_and_refusals(tiny):
    moved = tiny.at({name: value * 1.01 for name, value in tiny.params.items()})
    assert empirical_lambda(moved).value != empirical_lambda(tiny).value
    np.testing.assert_array_equal(tiny.at(tiny.unflat(tiny.flat())).flat(), tiny.flat())
    with pytest.raises(DataError):
        tiny.at({"embed": tiny.params["embed"]})
    with pytest.raises(DataError):
        gradient_rows(tiny, labels=tiny.labels[:-1])
    with pytest.raises(DataError):
        CountSketch(0)
    with pytest.raises(DataError):
        sampled_lambda(tiny, np.random.default_rng(0), draws=0)
