"""``quantvane noise``: the noise floor of a model."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from quantvane.cli.options import json_option, out_option, read_types, settings_of, settings_option
from quantvane.cli.output import print_json, progress
from quantvane.spec import PROTOCOLS

__all__ = ["command"]


@click.command("noise")
@click.argument("reference", metavar="REF")
@click.option("--text", "texts", multiple=True, required=True, type=click.Path(), help="A corpus; may be repeated.")
@click.option("--vary", metavar="WORDS", help="threads,batch,ubatch,flash_attn,cache_type_k,n_gpu_layers,key=value,…")
@click.option("--ctx", "context", default=512, show_default=True, help="Window length in tokens.")
@click.option("--chunks", default=16, show_default=True, help="Most windows from each corpus.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="llama-perplexity", show_default=True)
@settings_option
@out_option
@json_option
def command(
    reference: str,
    texts: tuple[str, ...],
    vary: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: object,
) -> None:
    """Measure REF against itself under changed settings and repeated runs: what difference means nothing.

    \b
    quantvane noise m-f16.gguf --text wiki.txt
    quantvane noise m-Q4_K_M.gguf --text wiki.txt --vary repeat,flash_attn,n_gpu_layers,n_ubatch=8
    """
    from quantvane.run.noise import noise  # here, so that --help loads no numerics

    with progress() as on_event:
        result = noise(
            reference,
            text=texts,
            vary=read_types(vary),
            settings=settings_of(settings),
            on_event=on_event,
            **options,  # type: ignore[arg-type]
        )
    if as_json:
        print_json(result.document)
        return
    table = Table(title=f"{result.document['reference']['name']} against itself")
    for heading in ("changed", "mean KLD", "99%", "max", "same top-1"):
        table.add_column(heading, justify="left" if heading == "changed" else "right")
    for row in result.document["variations"]:
        values = [row["kld"][key]["value"] for key in ("mean", "p99", "max")]
        table.add_row(row["changed"], *[f"{v:.3g}" for v in values], f"{row['top1_agreement']['value']:.2%}")
    console = Console()
    console.print(table)
    floor = result.document["floor"]
    console.print(f"noise floor: mean KLD {floor['kld_mean']:.3g} nats ({floor['how']})", highlight=False)
    click.echo(f"wrote {result.comparison.out / 'noise.json'}")
