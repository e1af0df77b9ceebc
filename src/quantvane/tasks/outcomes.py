"""One outcome per item and model, and the alignment of two models' outcomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantvane.errors import DataError, ProtocolMismatchError

__all__ = ["AlignedTask", "Alignment", "Outcome", "OutcomeSet", "align", "first_few"]

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one model did with one item.

    Attributes:
        task, item: name the item; an item id is unique within its task.
        correct: as the harness scored; None where it gave no score (then ``state`` says why).
        answer: the extracted answer, or None where it is not known.
        state: a word of `quantvane.direction.STATES`, or None for plainly right or wrong.
        cluster: items of one task with the same label share a source; None for an item that stands alone.
        prompt: hash of the prompt; settings: the generation settings as text; "" where the file has none.
        where: file and line, for messages.
    """

    task: str
    item: str
    correct: bool | None
    answer: str | None = None
    state: str | None = None
    cluster: str | None = None
    prompt: str = ""
    settings: str = ""
    where: str = ""

    @property
    def key(self) -> Key:
        return self.task, self.item


@dataclass(frozen=True, slots=True)
class OutcomeSet:
    """A model's outcomes, in the order of the files they came from."""

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(o.task for o in self.outcomes))

    def only(self, tasks: Sequence[str]) -> OutcomeSet:
        """The outcomes of these tasks; all of them for an empty list.

        Raises:
            DataError: a task that is not there.
        """
        missing = [task for task in tasks if task not in self.tasks]
        if missing:
            raise DataError(
                f"'{self.name}' has no outcomes of task {first_few(missing)}",
                expected=f"one of {first_few(self.tasks, 20)}",
                got=", ".join(missing),
                remedy="name a task that is there",
            )
        return OutcomeSet(self.name, tuple(o for o in self.outcomes if not tasks or o.task in tasks))


@dataclass(frozen=True, slots=True)
class AlignedTask:
    """Pairs of one task, in the reference's order."""

    task: str
    reference: tuple[Outcome, ...]
    candidate: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Two outcome sets, item by item.

    Attributes:
        tasks: one `AlignedTask` each, in the reference's order.
        items: pairs in all. prompts, settings: pairs whose prompt hashes, whose settings could be compared
            (both files have them) and were equal.
    """

    tasks: tuple[AlignedTask, ...]
    items: int
    prompts: int
    settings: int


def first_few(names: Iterable[str], most: int = 5) -> str:
    """``a, b, c and 9 more``."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def _label(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _by_key(outcomes: OutcomeSet) -> dict[Key, Outcome]:
    found: defaultdict[Key, list[Outcome]] = defaultdict(list)
    for outcome in outcomes.outcomes:
        found[outcome.key].append(outcome)
    twice = {key: rows for key, rows in found.items() if len(rows) > 1}
    if twice:
        raise DataError(
            f"'{outcomes.name}' has {len(twice)} items more than once",
            expected="one outcome for each task and item",
            got=first_few(
                f"{_label(k)} ({first_few((r.where for r in rows), 2)})" for k, rows in twice.items()
            ),
            remedy="name one run's files only, or one filter of them",
        )
    return {key: rows[0] for key, rows in found.items()}


def align(reference: OutcomeSet, candidate: OutcomeSet) -> Alignment:
    """Pair outcomes by (task, item); nothing is left out silently.

    Raises:
        DataError: items twice in one set, in only one of the sets, no items, or in different clusters.
        ProtocolMismatchError: other prompts, or other generation settings.
    """
    ref, cand = _by_key(reference), _by_key(candidate)
    names = f"'{reference.name}' and '{candidate.name}'"
    only_ref, only_cand = [k for k in ref if k not in cand], [k for k in cand if k not in ref]
    if only_ref or only_cand or not ref:
        sides = ((reference.name, only_ref), (candidate.name, only_cand))
        parts = [
            f"{len(keys)} only in '{name}': {first_few(map(_label, keys))}" for name, keys in sides if keys
        ]
        raise DataError(
            f"{names} do not hold the same items",
            expected="the same items of the same tasks on both sides",
            got="; ".join(parts) or "no items at all",
            remedy="evaluate both on the same items, or compare the tasks they share (--task)",
        )
    prompts = _compared("prompts", {k: (o.prompt, cand[k].prompt) for k, o in ref.items()}, names)
    settings = _compared(
        "generation settings", {k: (o.settings, cand[k].settings) for k, o in ref.items()}, names
    )
    clusters = [
        k for k in ref if None not in (ref[k].cluster, cand[k].cluster) and ref[k].cluster != cand[k].cluster
    ]
    if clusters:
        raise DataError(
            f"{names} put {len(clusters)} items into different clusters",
            expected="one cluster for each item",
            got=first_few(f"{_label(k)}: {ref[k].cluster}, {cand[k].cluster}" for k in clusters),
            remedy="label the items alike on both sides",
        )
    tasks = tuple(
        AlignedTask(
            task,
            tuple(o for o in reference.outcomes if o.task == task),
            tuple(cand[o.key] for o in reference.outcomes if o.task == task),
        )
        for task in reference.tasks
    )
    return Alignment(tasks, len(ref), prompts, settings)


def _compared(what: str, values: Mapping[Key, tuple[str, str]], names: str) -> int:
    """How many pairs have the same value, of those where both sides have one; any that differs is an error."""
    both = {key: pair for key, pair in values.items() if all(pair)}
    different = [key for key, (ref, cand) in both.items() if ref != cand]
    if different:
        ref, cand = both[different[0]]
        raise ProtocolMismatchError(
            f"{names} were given other {what} for {len(different)} items",
            expected=f"the same {what}; {_label(different[0])} has {ref[:300]}",
            got=f"{cand[:300]}; differing: {first_few(map(_label, different))}",
            remedy=f"evaluate both with the same {what}",
        )
    return len(both)
