"""The report of a comparison, drawn by a child process of its own.

Drawing charts takes a JavaScript engine of 130 MB. In the command it would come on top of what the summary holds;
in a child it costs the same whatever the corpus, and a crash there loses no result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantvane.errors import EngineCrashError, RunError
from quantvane.run.local import Worker
from quantvane.store.atomic import read_json, write_files

__all__ = ["Drawer", "draw_report", "write_report"]


class Drawer:
    """A child that loads what drawing needs as soon as it is made, and draws one report when asked to."""

    def __init__(self) -> None:
        self._worker = Worker(ahead="report")

    def draw(self, out: Path) -> list[Path]:
        """Write the report of the run directory ``out`` from its ``summary.json``; the paths written.

        Raises:
            OutputError: a file cannot be written.
            RunError: a chart could not be rendered, or the child died of it. The results are stored already.
        """
        paths: list[Path] = []

        def note(event: dict[str, Any]) -> None:
            if event["event"] == "wrote":
                paths.append(Path(event["path"]))

        try:
            self._worker.perform({"task": "report", "out": str(out)}, note)
        except EngineCrashError as problem:
            raise RunError(
                "the process that draws the report died",
                expected=problem.expected,
                got=problem.got,
                remedy=f"the results are stored; to draw them again: quantvane report {out}",
            ) from None
        finally:
            self.close()
        return paths

    def close(self) -> None:
        """End the child."""
        self._worker.close()


def write_report(out: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the charts of a run directory; their paths. Errors: `Drawer.draw`."""
    return Drawer().draw(out)


def draw_report(out: Path, emit: Any) -> None:
    """What the child does: draw, write, and name each file in an event."""
    from quantvane.report import build_report

    for path in write_files(out, build_report(read_json(out / "summary.json"))):
        emit({"event": "wrote", "path": str(path)})
