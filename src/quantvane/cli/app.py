"""The command group, and the one place where errors become output and exit statuses."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from quantvane.cli.output import print_error
from quantvane.errors import QuantvaneError, SpecError

__all__ = ["COMMANDS", "cli", "main"]

# name → module under quantvane.cli; loaded when asked for, so that --help stays light.
COMMANDS = {
    "bench": "bench",
    "calibrate": "calibrate",
    "choose": "choose",
    "compare": "compare",
    "demo": "demo",
    "fisher": "fisher",
    "flips": "flips",
    "noise": "noise",
    "quantize": "quantize",
    "record": "record",
    "report": "report",
    "study": "study",
    "watch": "watch",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"quantvane.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="quantvane")
def cli() -> None:
    """Measure what quantization does to a language model: how far it moves, and which way."""


def main(argv: list[str] | None = None) -> None:
    """Entry point: runs a command and exits with 0, 1 (choose), 2 (bad input) or 3 (failed run)."""
    args = sys.argv[1:] if argv is None else argv
    as_json = "--json" in args
    try:
        result: Any = cli.main(args=args, prog_name="quantvane", standalone_mode=False)
    except QuantvaneError as problem:
        print_error(problem, as_json)
        sys.exit(problem.exit_status)
    except click.UsageError as problem:
        usage = problem.ctx.get_usage() if problem.ctx else ""
        print_error(
            SpecError(
                problem.format_message(), expected=usage, got=" ".join(args), remedy="see quantvane COMMAND --help"
            ),
            as_json,
        )
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command continues where this one stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: nothing left to say
        sys.stderr.close()
        sys.exit(0)
    sys.exit(result if isinstance(result, int) else 0)
