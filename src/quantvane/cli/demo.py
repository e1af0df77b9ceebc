"""``quantvane demo``: the whole main job on the bundled model."""

from __future__ import annotations

from importlib.resources import as_file, files

import click

from quantvane.cli.options import json_option
from quantvane.cli.output import print_comparison, progress

__all__ = ["command"]

_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@click.command("demo")
@click.option("--out", type=click.Path(), default="quantvane-demo", show_default=True, help="Run directory.")
@json_option
def command(out: str, as_json: bool) -> None:
    """Quantize the bundled 10 M model six ways, compare them, and draw the report (about a minute)."""
    from quantvane.run.compare import compare  # here, so that --help loads no numerics

    assets = files("quantvane") / "assets"
    with as_file(assets / "lm10m-f16.gguf") as model, as_file(assets / "demo.txt") as text, progress() as on_event:
        result = compare(str(model), text=str(text), out=out, quantize=_TYPES, on_event=on_event)
    print_comparison(result, as_json)
