"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from quantvane.errors import SpecError

__all__ = ["json_option", "out_option", "read_types", "settings_of", "settings_option"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
out_option: Decorator = click.option(
    "--out", type=click.Path(), default=None, help="Run directory; an interrupted run continues there."
)
settings_option: Decorator = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Engine setting for every model that does not set it itself; may be repeated.",
)  # fmt: skip


def settings_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("a=1", "b=2")`` → ``{"a": "1", "b": "2"}``."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SpecError(
                f"--set '{pair}' has no value", expected="KEY=VALUE", got=pair, remedy="for example --set n_threads=2"
            )
        found[key] = value
    return found


def read_types(text: str | None) -> list[str]:
    """``"Q8_0,Q4_K_M"`` → ``["Q8_0", "Q4_K_M"]``."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else []
