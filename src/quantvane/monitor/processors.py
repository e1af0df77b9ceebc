"""The monitor inside a generating process: every step sees the whole distribution, so λ_max is exact.

Both processors hand the scores back untouched. Put them first in the list, before anything that changes scores, for a
calibration of stage "raw"; calibrate with ``--top-k 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError
from quantvane.monitor.calibration import Calibration
from quantvane.monitor.records import Step, StreamSummary
from quantvane.monitor.statistic import KL_CAP, Measured
from quantvane.monitor.stream import StreamMonitor, state_table

__all__ = ["LlamaCppMonitor", "TransformersMonitor"]

OnStep = Callable[[int, Step], None]


class LlamaCppMonitor:
    """A logits processor for llama-cpp-python: ``logits_processor=LogitsProcessorList([LlamaCppMonitor(cal)])``.

    One instance watches one generation. The chosen token is not known when a distribution is seen, so NLL is NaN.

    Args:
        calibration: of the model in process, made with all of the vocabulary (``top_k`` 0).
        on_step: called with (0, step) after every token.

    Attributes:
        monitor: the stream. steps: number of tokens seen. last: the latest step, or None.

    Raises:
        DataError: a calibration on top-k lists; its thresholds are of bounds, not of exact values.
    """

    def __init__(self, calibration: Calibration, on_step: OnStep | None = None) -> None:
        _exact(calibration)
        self.monitor = StreamMonitor(calibration)
        self.last: Step | None = None
        self.steps = 0
        self._on_step = on_step
        self._before: npt.NDArray[np.float64] | None = None

    def __call__(self, input_ids: Any, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See llama-cpp-python's ``LogitsProcessor``: token ids so far, scores (V,) → scores."""
        measured, self._before = measure_logits(np.asarray(scores).reshape(-1), self._before)
        self.last = self.monitor.advance(measured)
        self.steps += 1
        if self._on_step is not None:
            self._on_step(0, self.last)
        return scores

    def finish(self) -> StreamSummary:
        """The generation as a whole."""
        return self.monitor.finish()


def measure_logits(
    logits: npt.NDArray[Any], before: npt.NDArray[np.float64] | None
) -> tuple[Measured | None, npt.NDArray[np.float64] | None]:
    """Exact numbers of one distribution (V,), and its log-probabilities for the next step; None where it is none."""
    from quantvane.fisher.logit import lambda_max  # here: a proxy needs no NumPy for its streams

    x = logits.astype(np.float64)
    top = x.max()
    if not math.isfinite(top):
        return None, None
    x -= top
    p = np.exp(x)
    total = p.sum()
    logp = x - math.log(total)
    p /= total
    alive = p > 0.0
    entropy = float(-(p[alive] * logp[alive]).sum())
    kl = math.nan
    if before is not None:
        kl = min(max(float((p[alive] * (logp[alive] - before[alive])).sum()), 0.0), KL_CAP)
    lam = float(lambda_max(logits))
    return Measured(lam, lam, max(entropy, 0.0), kl, math.nan), logp


class TransformersMonitor:
    """A logits processor for transformers: ``generate(logits_processor=[TransformersMonitor(cal, ends={eos})])``.

    One instance watches one ``generate`` call, one stream a row. Numbers are computed on the device of the scores, in
    float64, and come over in one transfer a step. NLL is NaN: the chosen token is not known when a distribution is
    seen.

    Args:
        calibration: of the model in process, made with all of the vocabulary (``top_k`` 0).
        ends: token ids that end a row; what is computed for it afterwards is padding and is not watched.
        on_step: called with (row, step) after every token.

    Attributes:
        monitors: one a row, once generation has begun. last: the latest step of each row, or None.

    Raises:
        DataError: a calibration on top-k lists; another number of rows than before.
    """

    def __init__(
        self, calibration: Calibration, ends: Collection[int] = (), on_step: OnStep | None = None
    ) -> None:
        _exact(calibration)
        self._calibration, self._ends, self._on_step = calibration, frozenset(ends), on_step
        self._table = state_table(calibration)
        self.monitors: list[StreamMonitor] = []
        self.last: list[Step | None] = []
        self._done: list[bool] = []
        self._before: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """See transformers' ``LogitsProcessor``: ids (rows, tokens), scores (rows, V) → scores."""
        rows = scores.shape[0]
        if not self.monitors:
            self.monitors = [StreamMonitor(self._calibration, self._table) for _ in range(rows)]
            self.last, self._done = [None] * rows, [False] * rows
        elif rows != len(self.monitors):
            raise DataError(
                "the number of rows changed",
                expected=f"{len(self.monitors)} rows, as at the first token",
                got=f"{rows} rows",
                remedy="make a new TransformersMonitor for every generate call; beams are not watched",
            )
        elif self._ends:
            newest = input_ids[:, -1].tolist()
            self._done = [done or token in self._ends for done, token in zip(self._done, newest, strict=True)]
        for row, measured in enumerate(self._measure(scores)):
            if self._done[row]:
                continue
            step = self.monitors[row].advance(measured)
            self.last[row] = step
            if self._on_step is not None:
                self._on_step(row, step)
        return scores

    def _measure(self, scores: Any) -> list[Measured | None]:
        import torch

        from quantvane.fisher.torch_logit import lambda_max_torch

        with torch.no_grad():
            logp = torch.log_softmax(scores.to(torch.float64), dim=-1)
            p = logp.exp()
            zero = torch.zeros_like(p)
            entropy = -torch.where(p > 0, p * logp, zero).sum(-1)
            kl = torch.full_like(entropy, math.nan)
            if self._before is not None:
                kl = torch.where(p > 0, p * (logp - self._before), zero).sum(-1)
            table = torch.stack([lambda_max_torch(scores), entropy, kl]).T.tolist()
        self._before = logp
        found: list[Measured | None] = []
        for lam, h, d in table:
            if not (math.isfinite(lam) and math.isfinite(h)):
                found.append(None)
                continue
            d = d if math.isnan(d) else min(max(d, 0.0), KL_CAP)
            found.append(Measured(lam, lam, max(h, 0.0), d, math.nan))
        return found

    def finish(self) -> list[StreamSummary]:
        """The rows as a whole."""
        return [monitor.finish() for monitor in self.monitors]


def _exact(calibration: Calibration) -> None:
    top_k = calibration.fingerprint.top_k
    if top_k:
        raise DataError(
            "the calibration was made on top-k lists",
            expected="top_k = 0: the whole vocabulary",
            got=f"top_k = {top_k}",
            remedy="calibrate with --top-k 0 to watch in process",
        )
