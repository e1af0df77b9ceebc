"""``quantvane study``: what displacement predicts in a cohort, and where it falls silent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from quantvane.cli.options import json_option, out_option
from quantvane.cli.output import print_json

if TYPE_CHECKING:
    from quantvane.run.study import StudyResult

__all__ = ["command"]


@click.command("study")
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path())
@click.option("--zone", default=None, metavar="RULE",
              help="score:LOSS (default score:0.02), kld:NATS, nearest:COUNT or same:ALPHA.")
@click.option("--composite", default=None, metavar="SCORE",
              help="groups (default: mean of the bench runs), tasks, items, or NAME=WEIGHT,… of groups or tasks.")
@click.option("--metric", default=None, metavar="VARIANT", help="What stands for displacement; kld_mean by default.")
@click.option("--method", default=None, type=click.Choice(["spearman", "kendall", "pearson"]),
              help="Correlation; spearman by default.")
@click.option("--seed", default=0, show_default=True, help="Seed of every resample, permutation and split.")
@click.option("--splits", default=None, type=click.IntRange(2), help="Halves of the items; 50 by default.")
@click.option("--resamples", default=None, type=click.IntRange(100), help="Resamples of items and candidates; 1000.")
@click.option("--export", "export", type=click.Path(), default=None,
              help="Only write what a study needs of the RUNs into this directory.")
@out_option
@json_option
def command(runs: tuple[str, ...], export: str | None, as_json: bool, **options: Any) -> None:
    """Study a cohort from stored runs alone: finished compare and bench runs of the same candidates.

    RUN… are run directories (one compare a corpus and context, one or more benches), or one directory that
    --export wrote. No model is loaded.

    \b
    quantvane study compare-128 compare-512 bench-items bench-pairs --out study
    quantvane study compare-512 bench --zone nearest:12 --composite gsm8k=1,mmlu=2
    quantvane study compare-512 bench --export cohort/ && quantvane study cohort/
    """
    from quantvane.run.study import export_study, study  # here, so that --help loads no numerics

    if export is not None:
        path = export_study(runs, export)
        if as_json:
            print_json({"schema": 1, "export": str(path)})
        else:
            click.echo(f"wrote {path}")
        return
    result = study(runs, **options)
    if as_json:
        print_json(result.summary)
    else:
        _print(result)


def _print(result: StudyResult) -> None:
    from quantvane.report.study_words import findings

    console = Console()
    table = Table(title="correlation with the score: whole cohort, and zone")
    for heading in ("metric", "corpus", "context", "full", "95%", "zone", "95%", "p (Holm), zone"):
        table.add_column(heading, justify="left" if heading in ("metric", "corpus") else "right")
    for row in result.summary["variants"]:
        cells = [row["words"], row["corpus"], str(row["context"])]
        for region in ("full", "zone"):
            found = row[region]
            cells.append("—" if found["value"] is None else f"{found['value']:+.2f}")
            cells.append("" if found["ci"] is None else f"[{found['ci'][0]:+.2f}, {found['ci'][1]:+.2f}]")
        holm = row["zone"]["p_holm"]
        table.add_row(*cells, "—" if holm is None else f"{holm:.2g}")
    console.print(table)
    for sentence in findings(result.summary):
        click.echo(sentence)
    for name in ("report.html", "report.md", "summary.json", "tables", "charts"):
        click.echo(f"wrote {result.out / name}")
