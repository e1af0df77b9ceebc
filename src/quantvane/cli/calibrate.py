"""``quantvane calibrate``: thresholds with a promised false-alarm rate, for one deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantvane.cli.options import json_option, settings_of, settings_option
from quantvane.cli.output import print_json, progress

if TYPE_CHECKING:
    from quantvane.run.calibrate import CalibrateResult

__all__ = ["command"]


@click.command("calibrate")
@click.argument("model", metavar="MODEL")
@click.option("--prompts", default="", type=click.Path(), help='Prompts, one a line, or JSON lines with a "prompt".')
@click.option("--text", "texts", multiple=True, type=click.Path(), help="A text to cut prompts from; may be repeated.")
@click.option("--alarm-rate", type=float, required=True, metavar="A",
              help="Share of healthy streams that may alarm, all statistics together.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(), help="The calibration's file; an interrupted run continues.")
@click.option("--delta", type=float, default=None, help="Promise for this calibration, but for this probability.")
@click.option("--trajectories", default=1000, show_default=True, help="Streams to record.")
@click.option("--horizon", default=64, show_default=True, help="Tokens of a stream that the promise covers.")
@click.option("--temperature", default=1.0, show_default=True, help="Tokens are drawn at this temperature.")
@click.option("--top-k", default=20, show_default=True, help="Entries seen of each distribution; 0 for all.")
@click.option("--stage", type=click.Choice(["raw", "sampled"]), default="raw", show_default=True,
              help="Log-probabilities before or after the temperature.")  # fmt: skip
@click.option("--prompt-tokens", default=24, show_default=True, help="Length of prompts cut from --text.")
@click.option("--also", multiple=True, metavar="MODEL2", help="Report what the thresholds do on this one.")
@click.option("--combine", "method", type=click.Choice(["joint", "bonferroni"]), default="joint", show_default=True,
              help="How the statistics share the rate.")  # fmt: skip
@click.option("--slots", default=16, show_default=True, help="Streams generated at once.")
@click.option("--seed", default=0, show_default=True, help="Seed of prompts, sampling and division.")
@settings_option
@json_option
def command(
    model: str, texts: tuple[str, ...], settings: tuple[str, ...], as_json: bool, horizon: int, temperature: float,
    top_k: int, stage: str, seed: int, **options: Any,
) -> None:  # fmt: skip
    """Calibrate the monitor for MODEL: what is normal, and where the alarms lie.

    MODEL is a model spec, the URL of an OpenAI-compatible server, or trajectories recorded before (.parquet, .jsonl).
    Streams are generated from the prompts and recorded beside the file; on the part of them that is held out the
    false-alarm rate is measured.

    \b
    quantvane calibrate m-Q8_0.gguf --text books.txt --alarm-rate 0.05 --out cal.json
    quantvane calibrate m-Q8_0.gguf --prompts p.txt --alarm-rate 0.01 --delta 0.1 --trajectories 2000 --out cal.json
    quantvane calibrate cal-trajectories/m-Q8_0.parquet --alarm-rate 0.1 --out loose.json
    """
    from quantvane.run.calibrate import calibrate  # here, so that --help loads no numerics
    from quantvane.run.trajectories import Sampling

    with progress() as on_event:
        result = calibrate(
            model,
            text=texts,
            sampling=Sampling(temperature, top_k, horizon, stage, seed),
            settings=settings_of(settings),
            on_event=on_event,
            **options,
        )
    if as_json:
        print_json(result.document)
    else:
        _print(result)


def _print(result: CalibrateResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    cal = result.calibration
    promise = f"alarm rate {cal.alpha:g} over {cal.horizon} tokens"
    if cal.delta is not None:
        promise += f", with probability {1 - cal.delta:g} over calibrations"
    table = Table(title=escape(f"{promise}; {cal.n} trajectories behind the thresholds ({cal.method})"))
    for name in ("statistic", "alarm above", "ends at"):
        table.add_column(name, justify="left" if name == "statistic" else "right")
    for name in cal.statistics:
        table.add_row(name, f"{cal.thresholds[name]:.4f}", f"{cal.lower[name]:.4f}")
    console = Console()
    console.print(table)
    console.print(f"λ_base {cal.base.lambda_max:.4f}, entropy {cal.base.entropy:.3f}, consecutive KL {cal.base.kl:.3f}")
    console.print(escape(f"held-out alarm rate {_rate(cal.report['held_out'])}"))
    for other in cal.report.get("also", ()):
        console.print(escape(f"the same thresholds on {other['model']}: {_rate(other['alarm_rate'])}"))
    click.echo(f"wrote {result.path}")


def _rate(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return str(rate["reason"])
    return f"{rate['value']:.4f} [{rate['ci'][0]:.4f}, {rate['ci'][1]:.4f}] ({rate['alarms']} of {rate['n']})"
