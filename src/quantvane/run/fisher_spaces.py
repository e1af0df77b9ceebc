"""λ_max of one model on one window, in each space: engines on one side, the pure functions on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.engines.base import Engine, require
from quantvane.engines.output_head import OutputHead, output_heads
from quantvane.errors import CapabilityError
from quantvane.fisher.estimates import LambdaEstimate
from quantvane.fisher.head import head_empirical, head_sampled, head_true
from quantvane.fisher.hidden import hidden_lambda
from quantvane.fisher.output_map import OutputMap
from quantvane.fisher.params import empirical_lambda, sampled_lambda, true_lambda
from quantvane.fisher.scored_model import ScoredModel, scored_model
from quantvane.run.fisher_plan import NEEDS, FisherSpec
from quantvane.run.lockstep import Rows
from quantvane.types import FloatArray, Window

__all__ = ["Reader", "scored_window"]

_ROWS_BYTES = 64 << 20
Readings = dict[str, float]


def scored_window(engine: Any, window: Window) -> ScoredModel:
    """A transformers engine's model on one window, as a function of its parameters.

    Raises:
        CapabilityError: no gradients, or a model that computes in half precision, whose gradients are noise.
    """
    require(engine, "gradients", "parameter space")
    dtype = str(engine.info.settings.get("dtype", "float32"))
    if dtype != "float32":
        raise CapabilityError(
            "gradients are taken in single precision",
            expected="dtype=float32",
            got=f"dtype={dtype}",
            remedy="leave ?dtype out of the model spec",
        )
    import torch

    device = next(engine.model.parameters()).device
    ids = torch.from_numpy(window.tokens.astype(np.int64))[None].to(device)
    scored = torch.from_numpy(np.ascontiguousarray(window.scored)).to(device)
    labels = torch.from_numpy(window.targets[window.scored].astype(np.int64)).to(device)
    inputs = {"input_ids": ids, "use_cache": False}
    return scored_model(engine.model, inputs, lambda output: output.logits[0][scored], labels)


@dataclass(frozen=True, slots=True)
class _Head:
    own: OutputHead
    map: OutputMap


class Reader:
    """One model's readings: window by window NLL, entropy, and per space λ, an upper bound and a residual.

    Args:
        engine: an engine that has what the spec's spaces need.

    Raises:
        CapabilityError: it has not; the space is named.
    """

    def __init__(self, engine: Engine, spec: FisherSpec, backend: str = "numba") -> None:
        for space in spec.spaces:
            require(engine, NEEDS[space], f"the {space} space")
        self._engine, self._spec, self._backend = engine, spec, backend
        self._head = self._find_head() if {"hidden", "head"} & set(spec.spaces) else None

    def _find_head(self) -> _Head:
        heads = output_heads(self._engine)
        if not heads:
            raise CapabilityError(
                f"the output head of engine '{self._engine.info.engine}' is not known",
                expected="a head that can be computed apart from the model",
                got="none",
                remedy="leave the hidden and head spaces out",
            )
        head = heads[0]
        return _Head(head, OutputMap(head.weight, head.bias, head.scale, head.softcap))

    def unit(self, windows: Sequence[Window]) -> list[Readings]:
        """Readings of each window of a unit.

        ``lambda_logit`` and ``lambda_hidden`` are means over the window's scored positions, ``lambda_head`` and
        ``lambda_params`` are of the window's own F.
        """
        engine: Any = self._engine
        blocks = engine.hidden(windows) if self._head else engine.logits(windows)
        rows = Rows(blocks, engine.info.engine)
        out = []
        for window in windows:
            targets = window.targets[window.scored].astype(np.int32)
            parts, at = [], 0
            held: list[Any] = []
            while at < len(targets):
                block = rows.take(min(rows.ready(), len(targets) - at))
                if self._head:
                    block = self._head.own.round(np.asarray(block, np.float32)).copy()
                    held.append(block)
                parts.append(self._tokens(block, targets[at : at + len(block)]))
                at += len(block)
            out.append(self._window(window, targets, np.concatenate(parts), np.concatenate(held) if held else None))
        return out

    def _tokens(self, block: Any, targets: npt.NDArray[np.int32]) -> FloatArray:
        """(rows, 3): NLL, entropy, λ_logit, a few rows at a time."""
        from quantvane.displacement import token_metrics

        width = len(self._engine.vocabulary)
        step = max(1, _ROWS_BYTES // (4 * width))
        out = []
        for start in range(0, len(block), step):
            part = block[start : start + step]
            z = self._head.own.logits(part) if self._head else part
            m = token_metrics(z, z, targets[start : start + step], backend=self._backend)
            out.append(np.column_stack([m.nll_ref, m.entropy_ref, m.lambda_ref]))
        return np.concatenate(out)

    def _window(self, window: Window, targets: Any, tokens: FloatArray, hidden: Any) -> Readings:
        readings: Readings = {"nll": float(tokens[:, 0].mean()), "entropy": float(tokens[:, 1].mean())}
        for space in self._spec.spaces:
            # The same start vectors and label noise for every model: pairs differ by the models alone.
            rng = np.random.default_rng([self._spec.seed, window.index])
            if space == "logit":
                mean = float(tokens[:, 2].mean())
                found = LambdaEstimate(mean, upper=mean, fisher="true")
            elif space == "hidden":
                found = self._hidden(hidden, rng)
            elif space == "head":
                found = self._in_head(hidden, targets, rng)
            else:
                found = self._params(window, rng)
            readings |= {
                f"lambda_{space}": found.value, f"upper_{space}": found.upper, f"residual_{space}": found.residual,
            }  # fmt: skip
        return readings

    def _map(self) -> OutputMap:
        if self._head is None:
            raise CapabilityError("this space needs the head", expected="a head", got="none")
        return self._head.map

    def _hidden(self, hidden: Any, rng: np.random.Generator) -> LambdaEstimate:
        found = hidden_lambda(self._map(), hidden, rng, steps=self._spec.steps)
        means = [float(values.mean()) for values in (found.value, found.upper, found.residual)]
        return LambdaEstimate(means[0], means[1], means[2], found.steps, "true")

    def _in_head(self, hidden: Any, targets: Any, rng: np.random.Generator) -> LambdaEstimate:
        head = self._map()
        if self._spec.fisher == "empirical":
            return head_empirical(head, hidden, targets)
        if self._spec.fisher == "sampled":
            return head_sampled(head, hidden, rng, draws=self._spec.draws)
        return head_true(head, hidden, rng, steps=self._spec.steps)

    def _params(self, window: Window, rng: np.random.Generator) -> LambdaEstimate:
        model, spec = scored_window(self._engine, window), self._spec
        if spec.fisher == "empirical":
            return empirical_lambda(model, sketch=spec.sketch, seed=spec.seed)
        if spec.fisher == "sampled":
            return sampled_lambda(model, rng, draws=spec.draws, sketch=spec.sketch)
        return true_lambda(model, rng, steps=spec.steps)
