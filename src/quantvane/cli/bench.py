"""``quantvane bench``: outcomes per item, by running the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantvane.cli.flips import pairs_of, print_flips
from quantvane.cli.options import json_option, out_option, settings_of, settings_option
from quantvane.cli.output import print_json, progress

if TYPE_CHECKING:
    from quantvane.run.bench import Bench

__all__ = ["command"]


@click.command("bench")
@click.argument("reference", metavar="REF")
@click.argument("candidates", metavar="CAND…", nargs=-1, required=True)
@click.option("--tasks", "tasks", multiple=True, required=True, metavar="TASK",
              help="lm-eval task name, task file (.yaml, .json), .jsonl file, or directory; may be repeated.")
@click.option("--limit", type=int, default=None, help="Only the first so many items of each task.")
@click.option("--fewshot", type=int, default=None, help="Examples in the prompt, where the task leaves it open.")
@click.option("--metric", "metrics", multiple=True, metavar="[TASK=]NAME",
              help="Metric that decides right or wrong; the task's first by default.")
@click.option("--filter", "filters", multiple=True, metavar="[TASK=]NAME",
              help="lm-eval filter that counts; the task's first by default.")
@click.option("--chat-template", is_flag=True, help="Prompts through REF's own chat template.")
@click.option("--replay", is_flag=True, help="Verify the reference's stored answers instead of generating anew.")
@click.option("--one-at-a-time", is_flag=True, help="Answers grow one sequence at a time.")
@click.option("--slots", default=32, show_default=True, help="Sequences at once.")
@click.option("--ctx", "context", default=0, help="Longest request with its answer, in tokens; as needed by default.")
@click.option("--timeout", "seconds", default=0.0, help="Seconds allowed for one answer; no limit by default.")
@click.option("--measure/--no-measure", "measured", default=True, show_default=True,
              help="Per item KLD against REF and log-probability of the right answer: one more prefill.")
@click.option("--floor/--no-floor", default=True, show_default=True, help="REF against itself as the noise floor.")
@click.option("--margin", default=0.02, show_default=True, help="Difference in score that would not matter.")
@click.option("--alpha", default=0.05, show_default=True, help="Level of the tests.")
@click.option("--until-decided", is_flag=True,
              help="Items in random order; a candidate stops when its confidence sequence decides.")
@click.option("--seed", default=0, show_default=True, help="Seed of that order.")
@settings_option
@out_option
@json_option
def command(
    reference: str,
    candidates: tuple[str, ...],
    metrics: tuple[str, ...],
    filters: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Run tasks on REF and every CAND, item by item, and compare the outcomes.

    Tasks are those of lm-evaluation-harness (pip install "quantvane[tasks]"), or local .jsonl files of
    {"prompt", "answer", "task"?}, {"prompt", "choices", "answer"} or {"sentence_good", "sentence_bad"}.

    \b
    quantvane bench m-f16.gguf m-Q4_K_M.gguf --tasks items.jsonl --replay --out run
    quantvane bench m-f16.gguf m-Q8_0.gguf m-Q4_K_M.gguf --tasks arc_easy --tasks gsm8k --limit 500
    quantvane bench m-f16.gguf m-Q4_K_M.gguf --tasks mmlu --until-decided --margin 0.01
    """
    from quantvane.run.bench import bench  # here, so that --help loads no numerics

    with progress() as on_event:
        result = bench(
            reference,
            candidates,
            settings=settings_of(settings),
            metrics=tuple(pairs_of(metrics, "--metric", bare=True).items()),
            filters=tuple(pairs_of(filters, "--filter", bare=True).items()),
            on_event=on_event,
            **options,
        )
    if as_json:
        print_json(result.summary)
    else:
        _print(result)


def _print(result: Bench) -> None:
    for flips, entry in zip(result.flips, result.summary["candidates"], strict=True):
        print_flips(flips)
        if entry["kld_mean"] is not None:
            click.echo(f"mean KLD over the items' positions: {entry['kld_mean']:.3g} nats")
        if "replay" in entry:
            found = entry["replay"]
            click.echo(
                f"replay: {found['same_answer']} of {found['answers']} answers as the reference's, "
                f"{found['tokens_from_draft']} of {found['tokens']} tokens verified "
                f"({entry['cost']['ahead']} fed ahead, {entry['cost']['vain']} of them in vain); "
                f"{found['unsure_positions']} positions within the batch-shape noise"
            )
        if "decision" in entry:
            decided = entry["decision"]
            click.echo(f"sequential: {decided['decision']} after {decided['decided_at'] or decided['items']} items")
        click.echo("")
    click.echo(f"wrote {result.out / 'outcomes'}\nwrote {result.out / 'summary.json'}")
