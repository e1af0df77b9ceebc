"""Running the command as a user does, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def quantvane(*args: object, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantvane", *map(str, args)],
        capture_output=True, text=True, cwd=cwd, timeout=timeout, env={**os.environ, "COLUMNS": "200"}, check=False,
    )  # fmt: skip


def document(run: subprocess.CompletedProcess[str]) -> dict:
    """The one JSON document on stdout."""
    return json.loads(run.stdout)
