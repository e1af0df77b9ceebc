"""``quantvane fisher``: λ_max of the Fisher information of candidates against their reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantvane.cli.options import json_option, out_option, read_types, settings_of, settings_option
from quantvane.cli.output import print_json, progress
from quantvane.spec import PROTOCOLS

if TYPE_CHECKING:
    from quantvane.run.fisher import FisherRun

__all__ = ["command", "print_fisher"]


@click.command("fisher")
@click.argument("reference", metavar="REF")
@click.argument("candidates", metavar="CAND…", nargs=-1)
@click.option("--text", "texts", multiple=True, type=click.Path(),
              help="A corpus; may be repeated. Not needed where REF is recorded.")  # fmt: skip
@click.option("--space", "spaces", default="logit", show_default=True, metavar="WORDS",
              help="One or more of logit,hidden,head,params.")  # fmt: skip
@click.option("--fisher", type=click.Choice(["empirical", "sampled", "true"]), default=None,
              help="Which labels, in head and params: observed (default), drawn, or expected.")  # fmt: skip
@click.option("--ctx", "context", type=int, default=None, help="Window length in tokens; 512, or as recorded.")
@click.option("--chunks", type=int, default=None, help="Most windows from each corpus; all by default.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default=None,
              help="llama-perplexity, or as recorded.")  # fmt: skip
@click.option("--steps", type=int, default=None, help="Lanczos steps at most; 12 by default.")
@click.option("--draws", type=int, default=None, help="Draws of labels with --fisher sampled; 4 by default.")
@click.option("--sketch", type=int, default=None, metavar="WIDTH",
              help="CountSketch of this width in place of exact inner products (params).")  # fmt: skip
@click.option("--curve", is_flag=True,
              help="λ_max(θ + tδ) for t from −1 to 1, its terms, Weyl's bound, verdicts (transformers).")  # fmt: skip
@click.option("--predict", is_flag=True,
              help="Predict σ from the rounding noise's size alone, beside the measured (transformers).")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of start vectors, draws and resampling.")
@click.option("--resamples", default=2000, show_default=True, help="Bootstrap resamples.")
@settings_option
@out_option
@json_option
def command(
    reference: str,
    candidates: tuple[str, ...],
    texts: tuple[str, ...],
    spaces: str,
    settings: tuple[str, ...],
    as_json: bool,
    curve: bool,
    predict: bool,
    **options: object,
) -> None:
    """Measure σ = λ_max(CAND)/λ_max(REF) of the Fisher information, window by window.

    Whether quantization raises λ_max is what is measured: σ below 1 is as possible as above. The params space needs
    gradients, so Hugging Face directories; a quant there is the directory with a GGUF file's weights.

    \b
    quantvane fisher m-f16.gguf m-Q4_K_M.gguf --text wiki.txt --space logit,hidden,head
    quantvane fisher ./m@hf './m@hf?weights=m-Q4_K_M.gguf' --text wiki.txt --space params --ctx 128 --chunks 20
    quantvane fisher ./m@hf './m@hf?weights=m-Q4_K_M.gguf' rtn:4 --text wiki.txt --space logit,hidden --curve --predict
    """
    if curve or predict:
        from quantvane.cli.fisher_curve import print_curve, run_curve

        asked = {**options, "curve": curve, "predict": predict}
        print_curve(run_curve(reference, candidates, texts, read_types(spaces), asked), as_json)
        return
    from quantvane.run.fisher import fisher  # here, so that --help loads no numerics

    with progress() as on_event:
        run = fisher(
            reference,
            candidates,
            text=texts,
            space=read_types(spaces),
            settings=settings_of(settings),
            on_event=on_event,
            **options,  # type: ignore[arg-type]
        )
    print_fisher(run, as_json)


def print_fisher(run: FisherRun, as_json: bool) -> None:
    """The table, and where everything was written."""
    if as_json:
        print_json(run.summary)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from quantvane.report.fisher import HEADINGS, fisher_rows

    summary = run.summary
    console = Console()
    # in a narrow terminal the ratio, its share below 1 and the verdict are what fits
    keep = range(len(HEADINGS)) if console.width >= 170 else (0, 1, 2, 5, 6)
    table = Table(title=f"λ_max against {escape(summary['reference']['name'])}, {summary['windows']} windows")
    for i in keep:
        left = HEADINGS[i] in ("candidate", "space", "λ_max")
        table.add_column(HEADINGS[i], justify="left" if left else "right", overflow="fold")
    for row in fisher_rows(summary):
        table.add_row(*[escape(row[i]) for i in keep])
    console.print(table)
    for name in ("report.html", "report.md", "summary.json", "windows", "charts"):
        click.echo(f"wrote {run.out / name}")
