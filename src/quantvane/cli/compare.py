"""``quantvane compare``: the main job."""

from __future__ import annotations

import click

from quantvane.cli.options import json_option, out_option, read_types, settings_of, settings_option
from quantvane.cli.output import print_comparison, progress
from quantvane.spec import PROTOCOLS

__all__ = ["command"]


@click.command("compare")
@click.argument("reference", metavar="REF")
@click.argument("candidates", metavar="CAND…", nargs=-1)
@click.option("--text", "texts", multiple=True, type=click.Path(),
              help="A corpus; may be repeated. Not needed where REF is recorded.")  # fmt: skip
@click.option("--ctx", "context", type=int, default=None, help="Window length in tokens; 512, or as recorded.")
@click.option("--chunks", type=int, default=None, help="Most windows from each corpus; all by default.")
@click.option("--quantize", "types", metavar="TYPES", help="Make these of REF first, for example Q8_0,Q4_K_M.")
@click.option("--imatrix", type=click.Path(), help="Importance matrix for --quantize.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default=None,
              help="llama-perplexity, or as recorded.")  # fmt: skip
@click.option("--stride", type=int, default=None, help="Tokens between windows (sliding); half of --ctx by default.")
@click.option("--chat-template", "template", type=click.Path(), help="Jinja template in place of the model's own.")
@click.option("--backend", default="numba", show_default=True, help="Kernel: numpy, numba or triton.")
@click.option("--top-k", default=10, show_default=True, help="k of the top-k overlap.")
@click.option("--floor-windows", default=4, show_default=True, help="Windows spent on the noise floor; 0 for none.")
@click.option("--noise", type=click.Path(), help="Use the floor of this `quantvane noise` run instead.")
@click.option("--seed", default=0, show_default=True, help="Seed of the resampling.")
@click.option("--resamples", default=2000, show_default=True, help="Bootstrap resamples.")
@click.option("--peer-statistics", is_flag=True, help="With a .kld REF: also what llama.cpp's tool prints.")
@settings_option
@out_option
@json_option
def command(
    reference: str,
    candidates: tuple[str, ...],
    texts: tuple[str, ...],
    types: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: object,
) -> None:
    """Measure how far each CAND lies from REF, token by token.

    REF may also be a trace made by record, or llama.cpp's own base file (.kld): no model is run for it.

    Models are PATH_OR_URL[@ENGINE][?setting=value&…]: a GGUF file, or a Hugging Face directory (@hf). The same
    weights under other settings are another candidate.

    \b
    quantvane compare m-f16.gguf m-Q4_K_M.gguf --text wiki.txt
    quantvane compare m-f16.gguf --quantize Q8_0,Q4_K_M,Q2_K --text wiki.txt --chunks 80
    quantvane compare base.kld m-Q4_K_M.gguf --peer-statistics
    quantvane compare m-f16.gguf 'm-f16.gguf?cache_type_k=q8_0' --text wiki.txt
    """
    from quantvane.run.compare import compare  # here, so that --help loads no numerics

    with progress() as on_event:
        result = compare(
            reference,
            candidates,
            text=texts,
            quantize=read_types(types),
            settings=settings_of(settings),
            on_event=on_event,
            **options,  # type: ignore[arg-type]
        )
    print_comparison(result, as_json)
