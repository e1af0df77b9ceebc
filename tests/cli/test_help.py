"""docs/help.md is what the commands print."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_help_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_help", ROOT / "scripts" / "make_help.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held = (ROOT / "docs" / "help.md").read_text(encoding="utf-8")
    assert module.text() == held, "run: python scripts/make_help.py"
