"""``flips``: outcome files in, paired comparisons out, per task and pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvane.direction.compare import OutcomeComparison, compare_outcomes
from quantvane.direction.states import count_as, declared
from quantvane.errors import DataError, SpecError
from quantvane.stats.multiplicity import holm
from quantvane.tasks.outcomes import Alignment, Outcome, OutcomeSet, align, first_few
from quantvane.tasks.reading import ReadOptions, read_outcomes

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["POOLED", "CandidateFlips", "FlipsResult", "FloorFlips", "compare_sets", "flips"]

POOLED = "(pooled)"


@dataclass(frozen=True, slots=True)
class FloorFlips:
    """The reference against itself on the same items: under another setting, run again, or with other sampling seeds.

    Attributes:
        drops, leapfrogs: of the run with most flips. shared: items that flip for the candidate and in any of the runs.
        inside: whether the candidate has no more flips than that run: then they are no evidence of anything.
        runs: how many runs the floor is made of.
    """

    drops: int
    leapfrogs: int
    shared: int
    inside: bool
    runs: int = 1


@dataclass(frozen=True, slots=True)
class CandidateFlips:
    """One candidate: pooled over all tasks, and each task with its McNemar p-value adjusted over the tasks.

    Attributes:
        checked: how many items' prompts and settings could be compared.
        noise: task, or "(pooled)" → `FloorFlips`; empty where no noise floor was given.
    """

    name: str
    pooled: OutcomeComparison
    tasks: Mapping[str, OutcomeComparison]
    holm_p: Mapping[str, float]
    checked: Mapping[str, int]
    noise: Mapping[str, FloorFlips] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        tasks = {
            task: found.to_dict()
            | {"holm_p": None if math.isnan(self.holm_p[task]) else self.holm_p[task]}
            | self._noise(task)
            for task, found in self.tasks.items()
        }
        return {
            "name": self.name,
            "pooled": self.pooled.to_dict() | self._noise(POOLED),
            "tasks": tasks,
            "checked": dict(self.checked),
        }


    def _noise(self, task: str) -> dict[str, Any]:
        return {"noise": asdict(self.noise[task])} if task in self.noise else {}


@dataclass(frozen=True, slots=True)
class FlipsResult:
    """Every candidate against one reference.

    Attributes:
        margin: of equivalence, in score. reference: its name.
        candidates: in the order given.
    """

    margin: float
    reference: str
    candidates: tuple[CandidateFlips, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of ``flips --json``."""
        return {
            "schema": 1,
            "margin": self.margin,
            "reference": self.reference,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def to_arrow(self) -> pyarrow.Table:
        """One row per candidate and task, then one pooled: columns of plain numbers, intervals as two columns."""
        import pyarrow

        return pyarrow.Table.from_pylist(
            [
                _row(candidate.name, task, found, candidate.holm_p.get(task))
                for candidate in self.candidates
                for task, found in [*candidate.tasks.items(), (POOLED, candidate.pooled)]
            ]
        )

    def to_pandas(self) -> pandas.DataFrame:
        """`to_arrow` as a data frame (needs pandas)."""
        return self.to_arrow().to_pandas()


def _row(name: str, task: str, found: OutcomeComparison, adjusted: float | None) -> dict[str, Any]:
    return {
        "candidate": name,
        "task": task,
        "n": found.n,
        "score_ref": found.score_ref,
        "score_cand": found.score_cand,
        "delta": found.delta.value,
        "delta_low": found.delta.low,
        "delta_high": found.delta.high,
        "drops": found.drops,
        "leapfrogs": found.leapfrogs,
        "sidesteps": found.sidesteps,
        "answer_churn": found.answer_churn,
        "volume": found.volume,
        "direction": found.direction.value,
        "direction_low": found.direction.low,
        "direction_high": found.direction.high,
        "mcnemar_p": found.mcnemar_p,
        "holm_p": adjusted,
        "equivalent_p": found.equivalent.p,
        "verdict": found.equivalent.verdict,
        "items_needed": found.items_needed,
        "e_value": found.eprocess.value,
        "decided_at": found.eprocess.decided_at,
    }


def flips(
    base: str | Path,
    candidates: Sequence[str | Path],
    *,
    margin: float = 0.02,
    tasks: Sequence[str] = (),
    names: Sequence[str] = (),
    options: ReadOptions | None = None,
    counts_as: Mapping[str, str] | None = None,
    alpha: float = 0.05,
    noise: str | Path | Sequence[str | Path] = (),
) -> FlipsResult:
    """Paired direction analysis of outcome files.

    Args:
        base, candidates: outcome files, or directories of them.
        margin: difference in score that would not matter, declared before the data are seen.
        tasks: only these; all by default.
        names: of the candidates, or of the reference and the candidates; by default the files' names.
        options: which filter, metric or column counts where a file holds several.
        counts_as: outcome state → "wrong", "correct", "scored" or "excluded".
        alpha: level of the tests; intervals cover 1 − alpha.
        noise: outcomes of the reference itself under another setting, run again, or with other sampling seeds, one
            file or several: the noise floor.

    Raises:
        DataError: unreadable files, items that do not match.
        ProtocolMismatchError: other prompts or generation settings.
        SpecError: no candidate, or names that do not fit.
    """
    if not candidates or len(names) not in (0, len(candidates), len(candidates) + 1):
        raise SpecError(
            "candidates and names do not fit" if candidates else "no candidate was named",
            expected="at least one candidate; no names, one for each candidate, or one for the reference as well",
            got=f"{len(candidates)} candidates, {len(names)} names",
            remedy="repeat --name once for each candidate",
        )
    given = list(names) if len(names) == len(candidates) + 1 else ["", *(names or [""] * len(candidates))]
    declared(counts_as)  # a wrong declaration fails before anything is read
    sets = [read_outcomes(path, name, options) for path, name in zip([base, *candidates], given, strict=True)]
    files = [noise] if isinstance(noise, str | Path) else noise
    floor = [read_outcomes(file, "", options) for file in files]
    return compare_sets(sets[0], sets[1:], margin=margin, tasks=tasks, counts_as=counts_as, alpha=alpha, noise=floor)


@dataclass(frozen=True, slots=True)
class _Setting:
    margin: float
    alpha: float
    counts_as: Mapping[str, str] | None = field(default=None)


def compare_sets(
    reference: OutcomeSet,
    candidates: Sequence[OutcomeSet],
    *,
    margin: float = 0.02,
    tasks: Sequence[str] = (),
    counts_as: Mapping[str, str] | None = None,
    alpha: float = 0.05,
    noise: Sequence[OutcomeSet] = (),
) -> FlipsResult:
    """`flips` for outcomes already read."""
    names = [candidate.name for candidate in candidates]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SpecError(
            f"several candidates are called {first_few(twice)}",
            expected="one name for each candidate",
            got=", ".join(names),
            remedy="name them: --name A --name B",
        )
    setting = _Setting(margin, alpha, counts_as)
    ref = reference.only(tasks)
    floor = [_flipped(align(ref, run.only(tasks)), setting) for run in noise]
    found = [_candidate(align(ref, c.only(tasks)), c.name, setting, floor) for c in candidates]
    return FlipsResult(margin, reference.name, tuple(found))


_Signs = dict[tuple[str, str], int]


def _flipped(pairs: Alignment, setting: _Setting) -> _Signs:
    """(task, item) → −1 for a drop, 1 for a leapfrog, for every item that flipped, states counted as declared."""
    found: _Signs = {}
    for task in pairs.tasks:
        sides = (task.reference, task.candidate)
        (ref, ref_in), (cand, cand_in) = (
            count_as([bool(o.correct) for o in side], [o.state for o in side], setting.counts_as) for side in sides
        )
        signs = (cand.astype(int) - ref.astype(int)) * (ref_in & cand_in)
        found |= {o.key: int(sign) for o, sign in zip(task.reference, signs, strict=True) if sign}
    return found


def _floors(tasks: Sequence[str], flipped: _Signs, floor: Sequence[_Signs]) -> dict[str, FloorFlips]:
    out = {}
    for task in [*tasks, POOLED]:
        own, *runs = ({k: v for k, v in signs.items() if task in (k[0], POOLED)} for signs in (flipped, *floor))
        most = max(runs, key=len)
        out[task] = FloorFlips(
            sum(v < 0 for v in most.values()),
            sum(v > 0 for v in most.values()),
            len(own.keys() & set().union(*runs)),
            len(own) <= len(most),
            len(runs),
        )
    return out


def _candidate(pairs: Alignment, name: str, setting: _Setting, floor: Sequence[_Signs]) -> CandidateFlips:
    found = {t.task: _compare(t.reference, t.candidate, setting) for t in pairs.tasks}
    everything = (
        [o for t in pairs.tasks for o in t.reference],
        [o for t in pairs.tasks for o in t.candidate],
    )
    adjusted = holm([c.mcnemar_p for c in found.values()])
    noise = _floors(list(found), _flipped(pairs, setting), floor) if floor else {}
    return CandidateFlips(
        name,
        _compare(*everything, setting),
        found,
        dict(zip(found, adjusted, strict=True)),
        {"items": pairs.items, "prompts": pairs.prompts, "settings": pairs.settings},
        noise,
    )


def _compare(ref: Sequence[Outcome], cand: Sequence[Outcome], setting: _Setting) -> OutcomeComparison:
    sides = (ref, cand)
    states = tuple([o.state for o in side] for side in sides)
    rules = declared(setting.counts_as)
    unscored = [
        o for side in sides for o in side if o.correct is None and rules.get(o.state or "") == "scored"
    ]
    if unscored:
        raise DataError(
            f"{len(unscored)} outcomes have no score, and '{unscored[0].state}' counts as scored",
            expected="a score, or a declaration of what the state counts as",
            got=first_few(o.where for o in unscored),
            remedy=f"--counts-as {unscored[0].state}=wrong",
        )
    labels = None
    if any(o.cluster is not None for side in sides for o in side):
        # an item without a label stands alone; labels are the task's own
        labels = [
            (r.task, "c", r.cluster or c.cluster) if r.cluster or c.cluster else (r.task, "i", r.item)
            for r, c in zip(ref, cand, strict=True)
        ]
    known = any(o.answer is not None for o in ref) and any(o.answer is not None for o in cand)
    return compare_outcomes(
        [bool(o.correct) for o in ref],
        [bool(o.correct) for o in cand],
        setting.margin,
        labels,
        answers=([o.answer for o in ref], [o.answer for o in cand]) if known else None,
        states=(states[0], states[1]) if any(any(s) for s in states) else None,
        counts_as=setting.counts_as,
        alpha=setting.alpha,
    )
