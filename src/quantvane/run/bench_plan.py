"""What decides the numbers of a ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantvane.run.plan import check_fields
from quantvane.spec import ModelSpec, canonical_hash

__all__ = ["FLOOR", "REFERENCE", "BenchSpec", "jobs_of"]

REFERENCE = "reference"
FLOOR = "noise floor"


@dataclass(frozen=True, slots=True)
class BenchSpec:
    """One bench.

    Attributes:
        reference, candidates: models under their settings. names: unique names of the candidates.
        tasks: as `quantvane.tasks.harness.load_tasks` takes them; so ``limit``, ``fewshot``, ``metrics``, ``filters``
            (the last two as (task, name) pairs).
        chat_template: prompts go through the reference's own chat template, for every model the same.
        replay: verify the reference's stored answers. one_at_a_time: answers grow one sequence at a time.
        slots: sequences at once. context: longest request with its answer; 0 for as long as the tasks need.
        seconds: allowed for one answer; 0 for no limit. measured: divergence and log-probabilities of answers.
        floor: also the reference against itself under another setting.
        margin, alpha: of equivalence. until_decided: stop a candidate when its confidence sequence decides; items then
            come in random order. seed: of that order.
    """

    reference: ModelSpec
    candidates: tuple[ModelSpec, ...]
    names: tuple[str, ...]
    tasks: tuple[str, ...]
    limit: int | None = None
    fewshot: int | None = None
    metrics: tuple[tuple[str, str], ...] = ()
    filters: tuple[tuple[str, str], ...] = ()
    chat_template: bool = False
    replay: bool = False
    one_at_a_time: bool = False
    slots: int = 32
    context: int = 0
    seconds: float = 0.0
    measured: bool = True
    floor: bool = True
    margin: float = 0.02
    alpha: float = 0.05
    until_decided: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks: Sequence[tuple[bool, str, str, Any]] = (
            (bool(self.candidates), "there is nothing to compare", "at least one candidate", 0),
            (bool(self.tasks), "there is no task to run", "at least one --tasks TASK", 0),
            (self.limit is None or self.limit > 0, "limit out of range", "1 or more items of each task", self.limit),
            (1 <= self.slots <= 256, "slots out of range", "1 to 256", self.slots),
            (self.context == 0 or self.context >= 8, "context out of range", "8 tokens or more", self.context),
            (self.seconds >= 0, "timeout out of range", "0 seconds or more", self.seconds),
            (0 < self.margin < 1, "margin out of range", "a share of items between 0 and 1", self.margin),
            (0 < self.alpha < 0.5, "alpha out of range", "between 0 and 0.5", self.alpha),
        )
        check_fields(checks, "bench")

    @property
    def each_alpha(self) -> float:
        """The error probability of one candidate's sequential decision, so that all together keep to ``alpha``."""
        return self.alpha / len(self.candidates)

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["reference"] = self.reference.text
        data["candidates"] = [c.text for c in self.candidates]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BenchSpec:
        values = dict(data)
        values["reference"] = ModelSpec.parse(data["reference"])
        values["candidates"] = tuple(ModelSpec.parse(c) for c in data["candidates"])
        for name in ("names", "tasks"):
            values[name] = tuple(data[name])
        for name in ("metrics", "filters"):
            values[name] = tuple((task, value) for task, value in data[name])
        return cls(**values)

    @property
    def hash(self) -> str:
        return canonical_hash(self.to_dict())


def jobs_of(spec: BenchSpec) -> list[str]:
    """The models to run, by name: the reference, the candidates, then the floor."""
    return [REFERENCE, *spec.names, *([FLOOR] if spec.floor else [])]
