"""``quantvane flips``: which way, from outcomes per item."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from quantvane.cli.options import json_option
from quantvane.cli.output import print_json
from quantvane.errors import SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from quantvane.direction.compare import OutcomeComparison
    from quantvane.run.flips import CandidateFlips, FlipsResult
    from quantvane.types import Interval

__all__ = ["command", "pairs_of", "print_flips"]


def pairs_of(values: tuple[str, ...], option: str, *, bare: bool = False) -> dict[str, str]:
    """``("a=x", "y")`` → ``{"a": "x", "": "y"}``; the bare form only where it is allowed.

    Raises:
        SpecError: a form that is not allowed, or a key given twice.
    """
    found: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals and bare:
            key, rest = "", value
        if not rest or (equals and not key) or (not equals and not bare) or key in found:
            raise SpecError(
                f"{option} '{value}' cannot be read"
                if key not in found
                else f"{option} names '{key or value}' twice",
                expected="NAME or TASK=NAME" if bare else "KEY=VALUE",
                got=value,
                remedy=f"see quantvane flips --help for {option}",
            )
        found[key] = rest
    return found


@click.command("flips")
@click.argument("base", metavar="BASE", type=click.Path())
@click.argument("candidates", metavar="CAND…", nargs=-1, required=True, type=click.Path())
@click.option("--margin", default=0.02, show_default=True, help="Difference in score that would not matter.")
@click.option("--task", "tasks", multiple=True, help="Only this task; may be repeated.")
@click.option("--filter", "filters", multiple=True, metavar="[TASK=]NAME", help="lm-eval filter that counts.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[TASK=]NAME",
    help="lm-eval metric or inspect scorer that counts.",
)
@click.option(
    "--field", "fields", multiple=True, metavar="FIELD=COLUMN",
    help="Column of a generic JSONL file, for example cluster=metadata.subject.",
)  # fmt: skip
@click.option(
    "--name", "names", multiple=True, help="Name of a candidate, in order; one more names BASE first."
)
@click.option(
    "--alpha", default=0.05, show_default=True, help="Level of the tests; intervals cover 1 − alpha."
)
@click.option(
    "--counts-as", multiple=True, metavar="STATE=WHAT",
    help="What truncated, unparsed, timeout or error counts as: wrong, correct, scored or excluded. "
    "By default truncated is scored, the others are wrong.",
)  # fmt: skip
@click.option(
    "--noise", type=click.Path(), multiple=True,
    help="Outcomes of BASE itself under another setting, run again, or with another sampling seed: the noise floor; "
    "may be repeated.",
)  # fmt: skip
@json_option
def command(
    base: str,
    candidates: tuple[str, ...],
    margin: float,
    tasks: tuple[str, ...],
    filters: tuple[str, ...],
    metrics: tuple[str, ...],
    fields: tuple[str, ...],
    names: tuple[str, ...],
    alpha: float,
    counts_as: tuple[str, ...],
    noise: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare outcomes per item: what CAND lost, won and changed against BASE, and what that proves.

    BASE and CAND are files or directories: lm-eval samples_*.jsonl, inspect logs (.eval, .json), or JSONL with
    {"item", "task", "correct", "answer"?, "cluster"?, "state"?}. The margin is to be chosen before looking.

    \b
    quantvane flips fp16.jsonl awq.jsonl
    quantvane flips runs/fp16 runs/q4 --filter gsm8k=strict-match --metric exact_match
    quantvane flips fp16.eval q4.eval --margin 0.01 --counts-as truncated=wrong
    """
    from quantvane.run.flips import flips  # here, so that --help loads no numerics
    from quantvane.tasks.reading import ReadOptions

    options = ReadOptions(
        pairs_of(filters, "--filter", bare=True),
        pairs_of(metrics, "--metric", bare=True),
        pairs_of(fields, "--field"),
    )
    result = flips(
        base, candidates, margin=margin, tasks=tasks, names=names, options=options,
        counts_as=pairs_of(counts_as, "--counts-as"), alpha=alpha, noise=noise,
    )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
    else:
        print_flips(result)


def print_flips(result: FlipsResult) -> None:
    """A table and notes for every candidate."""
    from rich.console import Console

    console = Console()
    for candidate in result.candidates:
        console.print(_table(result, candidate))
        console.print(_footer(candidate), highlight=False, markup=False)


def _table(result: FlipsResult, candidate: CandidateFlips) -> Table:
    from rich.markup import escape
    from rich.table import Table

    level = round(100 * candidate.pooled.delta.level)
    table = Table(title=escape(f"{candidate.name} against {result.reference}, margin {result.margin:g}"))
    table.add_column("task", no_wrap=True)
    columns = (
        "n", "reference", "candidate", f"Δ [{level}%]", "drops", "leapfrogs", "sidesteps", "D", "p", "p (Holm)",
        "p (equivalent)", "verdict", "items needed", "e",
    )  # fmt: skip
    for name in (*columns, *(["floor"] if candidate.noise else [])):
        table.add_column(escape(name), justify="left" if name == "verdict" else "right")
    rows = list(candidate.tasks.items())
    for task, found in rows:
        cells = _cells(found, candidate.holm_p[task]) + _floor(candidate, task)
        table.add_row(escape(task), *map(escape, cells))
    if len(rows) > 1:
        table.add_section()
        table.add_row("pooled", *map(escape, _cells(candidate.pooled, None) + _floor(candidate, "(pooled)")))
    return table


def _floor(candidate: CandidateFlips, task: str) -> list[str]:
    """Flips of the reference against itself; ≤ where the candidate has no more than that."""
    if not candidate.noise:
        return []
    found = candidate.noise[task]
    return [f"{'≤ ' if found.inside else ''}{found.drops + found.leapfrogs}"]


def _cells(found: OutcomeComparison, adjusted: float | None) -> list[str]:
    return [
        str(found.n),
        _number(found.score_ref, ".4f"),
        _number(found.score_cand, ".4f"),
        _interval(found.delta),
        str(found.drops),
        str(found.leapfrogs),
        "–" if found.sidesteps is None else str(found.sidesteps),
        _number(found.direction.value, "+.2f"),
        _number(found.mcnemar_p, ".4g"),
        "" if adjusted is None else _number(adjusted, ".4g"),
        _number(found.equivalent.p, ".4g"),
        found.equivalent.verdict,
        "–" if found.items_needed is None else str(found.items_needed),
        _number(found.eprocess.value, ".3g"),
    ]


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _interval(x: Interval) -> str:
    if math.isnan(x.low):
        return _number(x.value, "+.4f")
    return f"{x.value:+.4f} [{x.low:+.4f}, {x.high:+.4f}]"


def _footer(candidate: CandidateFlips) -> str:
    pooled, checked = candidate.pooled, candidate.checked
    lines = []
    if not math.isnan(pooled.answer_churn):
        lines.append(f"answers that changed: {100 * pooled.answer_churn:.1f}%")
    apart = [
        f"{state} {100 * pooled.states.reference.get(state, 0):.1f}% → {100 * rate:.1f}% (counts as {how})"
        for state, how in pooled.states.counts_as.items()
        for rate in [pooled.states.candidate.get(state, 0.0)]
        if rate or pooled.states.reference.get(state)
    ]
    if apart:
        lines.append("; ".join(apart))
    if pooled.states.excluded:
        lines.append(f"{pooled.states.excluded} items excluded")
    if "(pooled)" in candidate.noise:
        floor = candidate.noise["(pooled)"]
        lines.append(
            f"noise floor: the reference against itself has {floor.drops} drops and {floor.leapfrogs} leapfrogs"
            + (f" at most in {floor.runs} runs" if floor.runs > 1 else "")
            + f"; {floor.shared} of the items that flip here flip there"
            + ("; no more flips than the floor: no evidence of a difference" if floor.inside else "")
        )
    notes = {found.delta.reason: task for task, found in candidate.tasks.items() if found.delta.reason}
    lines += [f"interval of {task}: {note}" for note, task in notes.items()]
    decided = pooled.eprocess.decided_at
    if decided is not None:
        lines.append(f"watched item by item: {pooled.eprocess.decision} after {decided} of {pooled.n} items")
    if checked["prompts"] < checked["items"]:
        lines.append(f"prompts could be compared for {checked['prompts']} of {checked['items']} items")
    return "\n".join(lines)
