"""Write docs/help.md: every command's help page, as the command prints it."""

from __future__ import annotations

from pathlib import Path

import click

from quantvane.cli.app import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent


def text() -> str:
    """The page."""
    parent = click.Context(cli, info_name="quantvane", terminal_width=100, max_content_width=100)
    parts = ["# Commands", "", "```", cli.get_help(parent), "```", ""]
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
        parts += [f"## {name}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "help.md").write_text(text(), encoding="utf-8")
