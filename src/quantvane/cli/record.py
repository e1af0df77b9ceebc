"""``quantvane record``: the reference's pass alone."""

from __future__ import annotations

from typing import Any

import click

from quantvane.cli.options import json_option, settings_of, settings_option
from quantvane.cli.output import print_json, progress
from quantvane.spec import PROTOCOLS

__all__ = ["command"]


@click.command("record")
@click.argument("reference", metavar="REF")
@click.option("--text", "texts", multiple=True, required=True, type=click.Path(), help="A corpus; may be repeated.")
@click.option("--out", required=True, type=click.Path(), help="Directory of the trace; with --store kld, the file.")
@click.option("--store", type=click.Choice(("hidden", "logits", "kld")), default="hidden", show_default=True,
              help="What to keep: hidden states and the head, logits, or llama.cpp's base file.")  # fmt: skip
@click.option("--dtype", type=click.Choice(("f32", "f16")), default="f32", show_default=True,
              help="Type of stored logits; f16 halves them and rounds them.")  # fmt: skip
@click.option("--ctx", "context", default=512, show_default=True, help="Window length in tokens.")
@click.option("--chunks", type=int, default=None, help="Most windows from each corpus; all by default.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="llama-perplexity", show_default=True)
@click.option("--stride", type=int, default=None, help="Tokens between windows (sliding); half of --ctx by default.")
@click.option("--chat-template", "template", type=click.Path(), help="Jinja template in place of the model's own.")
@click.option("--floor-windows", default=4, show_default=True, help="Windows spent on the noise floor; 0 for none.")
@settings_option
@json_option
def command(
    reference: str, texts: tuple[str, ...], out: str, settings: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Record what REF says, so that candidates can be measured where REF cannot run.

    Hidden states and the output head give the same logits back in a fraction of the space. A recording is checked
    against the model's own logits; where hidden states cannot reproduce them, logits are kept and it is said.

    \b
    quantvane record m-f16.gguf --text wiki.txt --out m.trace
    quantvane compare m.trace m-Q4_K_M.gguf m-Q3_K_M.gguf
    quantvane record m-f16.gguf --text wiki.txt --store kld --out base.kld
    """
    from quantvane.run.record import record  # here, so that --help loads no numerics

    with progress() as shown:

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "notice":
                click.echo(event["text"], err=True)
            shown(event)

        made = record(
            reference, text=texts, out=out, settings=settings_of(settings), on_event=on_event,
            **{key: value for key, value in options.items() if value is not None},
        )  # fmt: skip
    if as_json:
        print_json(made.summary)
        return
    summary = made.summary
    click.echo(f"recorded {summary['tokens']} tokens of {summary['reference']['name']} as {summary['kind']}")
    for what, size in summary["bytes"].items():
        click.echo(f"  {what}: {size / 1e6:.2f} MB")
    if summary["verification"]:
        click.echo(f"checked: {summary['verification']['how']}")
    floor = summary["noise_floor"]
    if floor and floor.get("kld_mean") is not None:
        click.echo(f"noise floor: mean KLD {floor['kld_mean']:.2g} ({floor['how']})")
    click.echo(f"wrote {made.path}")
