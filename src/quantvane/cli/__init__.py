"""The command line: one file per command; it parses into a spec and prints, and computes nothing."""

from __future__ import annotations

from quantvane.cli.app import main

__all__ = ["main"]
