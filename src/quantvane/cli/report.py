"""``quantvane report``: the report again, from stored tables."""

from __future__ import annotations

from pathlib import Path

import click

from quantvane.cli.options import json_option
from quantvane.cli.output import print_comparison

__all__ = ["command"]


@click.command("report")
@click.argument("run", metavar="RUN", type=click.Path())
@json_option
def command(run: str, as_json: bool) -> None:
    """Rebuild summary, charts and report of a finished RUN directory; no model is loaded."""
    from quantvane.run.compare import open_run  # here, so that --help loads no numerics
    from quantvane.run.drawing import write_report
    from quantvane.store.atomic import read_json

    if read_json(Path(run) / "manifest.json").get("command") == "fisher":
        from quantvane.cli.fisher import print_fisher
        from quantvane.run.fisher import load_fisher, write_fisher_report

        found = load_fisher(Path(run))
        write_fisher_report(found)
        print_fisher(found, as_json)
        return
    result = open_run(Path(run))
    write_report(result.out)
    print_comparison(result, as_json)
