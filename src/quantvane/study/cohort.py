"""The study's input: a cohort's stored displacement and outcomes as plain arrays, and scores made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quantvane.errors import DataError, SpecError
from quantvane.types import FloatArray

__all__ = ["Cohort", "Displacement", "Score", "log_odds", "score_weights", "scores"]

Bools = npt.NDArray[np.bool_]
Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Displacement:
    """One displacement metric of every candidate on one corpus at one context length.

    Attributes:
        variant: its name, see `quantvane.study.variants.VARIANTS`. values: (C,), larger is further; NaN where
            unknown, with the reason in ``reason``.
    """

    variant: str
    corpus: str
    context: int
    values: FloatArray
    reason: str = ""

    @property
    def key(self) -> str:
        return f"{self.variant} · {self.corpus} · {self.context}"


@dataclass(frozen=True, slots=True)
class Cohort:
    """C candidates of one reference on N items of T tasks in G groups (a group is one bench run).

    Attributes:
        reference: its name. names: of the candidates. bits: (C,) bits per weight.
        displacement: metrics on corpora.
        tasks, groups: names. task: (N,) task of each item. group: (T,) group of each task.
        choice: (N,) whether the item is a choice between given texts (else a generated answer).
        ref_correct: (N,). correct: (C, N). kld: (C, N) mean KLD over the item's scored positions, nats.
        ref_evidence: (N,), evidence: (C, N): of a choice ln p(right) − largest ln p(wrong), of a generated answer
            ln p(right answer); NaN where unknown.
        floor: mean KLD of the reference against itself, nats, NaN where unknown.
    """

    reference: str
    names: tuple[str, ...]
    bits: FloatArray
    displacement: tuple[Displacement, ...]
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    task: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]
    choice: Bools
    ref_correct: Bools
    correct: Bools
    kld: Floats32
    ref_evidence: Floats32
    evidence: Floats32
    floor: float = math.nan

    def __post_init__(self) -> None:
        candidates, items = len(self.names), len(self.task)
        wanted = {
            "bits": (candidates,), "group": (len(self.tasks),), "choice": (items,), "ref_correct": (items,),
            "correct": (candidates, items), "kld": (candidates, items), "ref_evidence": (items,),
            "evidence": (candidates, items),
        }  # fmt: skip
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise DataError(
                    f"the cohort's '{name}' does not fit", expected=str(shape), got=str(getattr(self, name).shape)
                )

    def of(self, members: Bools) -> Cohort:
        """The same with some candidates only; (C,) bool."""
        return replace(
            self,
            names=tuple(name for name, in_ in zip(self.names, members, strict=True) if in_),
            bits=self.bits[members],
            displacement=tuple(replace(d, values=d.values[members]) for d in self.displacement),
            correct=self.correct[members],
            kld=self.kld[members],
            evidence=self.evidence[members],
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A declared score: a weighted share of items right.

    Attributes:
        name: "composite", a group or a task. weights: (N,), summing to 1 over the items it counts.
        reason: why there is none; weights are then all 0.
    """

    name: str
    weights: FloatArray
    reason: str = ""


def log_odds(evidence: npt.NDArray[np.floating], choice: Bools) -> FloatArray:
    """Log-odds of the right answer, nats: a choice's margin as it is; of a generated answer ln p − ln(1 − p).

    p is kept at most 1 − 1e−6, so that an answer that is certain does not outweigh all others.
    """
    values = evidence.astype(np.float64)
    log_p = np.minimum(values, math.log1p(-1e-6))
    with np.errstate(divide="ignore", invalid="ignore"):
        generated = log_p - np.log(-np.expm1(log_p))
    out: FloatArray = np.where(choice, values, generated)
    return out


def score_weights(cohort: Cohort, composite: str = "groups", chosen: Bools | None = None) -> Score:
    """The item weights of the declared composite.

    Args:
        composite: "items" (every item counts the same), "tasks" (mean of the tasks' scores), "groups" (mean of the
            bench runs' scores), or "NAME=W,NAME=W" over names of groups or tasks.
        chosen: (N,) items to be counted; all by default.

    Raises:
        SpecError: a composite that cannot be read.
    """
    counted = np.ones(len(cohort.task), bool) if chosen is None else chosen
    if not counted.any():
        return Score("composite", np.zeros(len(cohort.task)), "there are no outcomes")
    if composite == "items":
        return Score("composite", counted / counted.sum())
    if composite in ("tasks", "groups"):
        label = cohort.task if composite == "tasks" else cohort.group[cohort.task]
        return Score("composite", _equal(label, counted))
    total = np.zeros(len(cohort.task))
    parts = _weights(composite)
    whole = sum(parts.values())
    for name, weight in parts.items():
        mine = counted & _named(cohort, name)
        if not mine.any():
            return Score("composite", np.zeros(len(cohort.task)), f"the composite's part '{name}' has no outcomes")
        total += weight / whole * mine / mine.sum()
    return Score("composite", total)


def _equal(label: npt.NDArray[np.int32], counted: Bools) -> FloatArray:
    sizes = np.bincount(label[counted], minlength=int(label.max()) + 1)
    present = int((sizes > 0).sum())
    out: FloatArray = counted / (np.maximum(sizes, 1)[label] * present)
    return out


def _named(cohort: Cohort, name: str) -> Bools:
    if name in cohort.groups:
        found: Bools = cohort.group[cohort.task] == cohort.groups.index(name)
        return found
    if name in cohort.tasks:
        mine: Bools = cohort.task == cohort.tasks.index(name)
        return mine
    return np.zeros(len(cohort.task), bool)


def _weights(text: str) -> dict[str, float]:
    parts: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        try:
            parts[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name.strip() or not parts[name.strip()] > 0:
            raise SpecError(
                f"the composite '{text}' cannot be read",
                expected="items, tasks, groups, or NAME=WEIGHT,… with weights above 0",
                got=part,
                remedy="correct --composite",
            )
    return parts


def scores(cohort: Cohort, composite: str = "groups") -> tuple[Score, ...]:
    """The composite, then every group (where there are several), then every task."""
    out = [score_weights(cohort, composite)]
    names = [*(cohort.groups if len(cohort.groups) > 1 else ()), *cohort.tasks]
    for name in dict.fromkeys(names):
        mine = _named(cohort, name)
        weights: FloatArray = mine / max(1, int(mine.sum()))
        out.append(Score(name, weights, "" if mine.any() else "no outcomes"))
    return tuple(out)
