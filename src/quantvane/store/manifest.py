"""Who measured: package versions for the manifest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["package_versions"]

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
