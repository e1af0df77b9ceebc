"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models, texts and golden files; skips where it is absent.

    Set QUANTVANE_SHARED to its place; by default it lies beside the repository.
    """
    place = Path(os.environ.get("QUANTVANE_SHARED", ROOT.parent / "shared"))
    if not (place / "golden").is_dir():
        pytest.skip(f"shared test data not found at {place} (set QUANTVANE_SHARED)")
    return place
