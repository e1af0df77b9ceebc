"""``quantvane quantize``: a cohort through llama.cpp's own quantizer."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from quantvane.cli.options import json_option, read_types
from quantvane.cli.output import print_json, progress

__all__ = ["command"]


@click.command("quantize")
@click.argument("reference", metavar="REF.gguf")
@click.option("--types", required=True, metavar="TYPES", help="For example Q8_0,Q6_K,Q4_K_M.")
@click.option("--imatrix", type=click.Path(), help="Importance matrix made by llama-imatrix.")
@click.option("--out", type=click.Path(), required=True, help="Directory for the files; made files are reused.")
@json_option
def command(reference: str, types: str, imatrix: str | None, out: str, as_json: bool) -> None:
    """Make quantized candidates of REF.gguf and show what their tensors really hold."""
    from quantvane.run.cohort import make_cohort  # here, so that --help loads no numerics

    with progress() as on_event:
        records = make_cohort(reference, read_types(types), Path(out), imatrix, on_event)
    if as_json:
        print_json({"schema": 1, "reference": reference, "imatrix": imatrix, "files": records})
        return
    table = Table(title=f"cohort of {Path(reference).name}")
    for heading in ("type", "bits/weight", "MB", "tensor types (share of parameters)", "file"):
        table.add_column(heading)
    for record in records:
        mix = ", ".join(f"{kind} {share:.1%}" for kind, share in record["tensor_types"].items())
        row = (record["type"], f"{record['bits_per_weight']:.2f}", f"{record['file_bytes'] / 1e6:.1f}", mix)
        table.add_row(*row, record["path"])
    Console().print(table)
