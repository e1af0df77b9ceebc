"""Who measured, and on what, for the manifest."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["package_versions", "processor"]

_NAMES = ("quantvane", "llama-cpp-python", "transformers", "torch", "numpy", "numba", "scipy", "pyarrow")


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that take part in a number; absent ones are left out."""
    found: dict[str, str] = {}
    for name in _NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's own name, or "unknown"."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
