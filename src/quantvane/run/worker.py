"""The child process that holds the models, or draws: ``python -m quantvane.run.worker``.

A damaged or hostile model file can abort the C++ library that reads it. It then takes this process with it
and not the command. The request comes as JSON on standard input; events go out as JSON lines on the
descriptor named first on the command line, so that nothing a library prints can mix with them. A task named second
has its libraries loaded while the request is still waited for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantvane.errors import EngineError, QuantvaneError

__all__ = ["main", "perform"]


def perform(request: dict[str, Any], emit: Any) -> None:
    """Do what a request asks for: ``measure``, ``record``, ``bench``, ``fisher``, ``trajectories``, ``report`` …"""
    if request["task"] == "quantize":
        from quantvane.engines.quantize import quantize_file

        quantize_file(request["source"], Path(request["target"]), request["type"], request.get("imatrix"))
        return
    if request["task"] == "imatrix":
        from quantvane.engines.imatrix import collect_imatrix, write_imatrix

        text = Path(request["text"])
        context, chunks = request["context"], request["chunks"]
        found = collect_imatrix(request["source"], text.read_text("utf-8"), context=context, chunks=chunks)
        write_imatrix(Path(request["target"]), found, text.name, context)
        return
    if request["task"] == "record":
        from quantvane.run.record import RecordSpec
        from quantvane.run.recording import record_reference

        record_reference(RecordSpec.from_dict(request["spec"]), Path(request["out"]), emit)
        return
    if request["task"] == "trajectories":
        from quantvane.run.calibrate_work import RecordTrajectories, record_trajectories

        record_trajectories(RecordTrajectories.from_dict(request["spec"]), Path(request["out"]), emit)
        return
    if request["task"] == "bench":
        from quantvane.run.bench_plan import BenchSpec
        from quantvane.run.bench_work import bench_models

        bench_models(BenchSpec.from_dict(request["spec"]), Path(request["out"]), emit)
        return
    if request["task"] == "fisher":
        from quantvane.run.fisher_plan import FisherSpec
        from quantvane.run.fisher_work import measure_fisher

        measure_fisher(FisherSpec.from_dict(request["spec"]), Path(request["out"]), emit)
        return
    if request["task"] == "report":
        from quantvane.run.drawing import draw_report

        draw_report(Path(request["out"]), emit)
        return
    from quantvane.run.measure import measure
    from quantvane.run.plan import CompareSpec, Job

    jobs = [Job.from_dict(job) for job in request["jobs"]]
    measure(CompareSpec.from_dict(request["spec"]), jobs, Path(request["out"]), emit)


def _load_ahead(task: str) -> None:
    """Load what a task needs before it is asked for."""
    if task == "report":
        from quantvane.report import warm_up

        with suppress(Exception):  # what is wrong here will be said where it is needed
            warm_up()


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, ``kill -9`` included (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(descriptor: int, ahead: str | None = None) -> int:
    """Read the request, do it, report; 0 when done, 1 after an error event."""
    _die_with_parent()
    if ahead is not None:
        _load_ahead(ahead)
    with os.fdopen(descriptor, "w", encoding="utf-8") as events:

        def emit(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        try:
            perform(json.load(sys.stdin), emit)
        except QuantvaneError as problem:
            emit({"event": "error", "error": problem.to_dict()})
            return 1
        except MemoryError:
            error = EngineError(
                "out of memory",
                expected="enough memory for the models and their buffers",
                got="an allocation failed",
                remedy="a smaller --ctx, fewer candidates, or ?n_batch=…",
            )
            emit({"event": "error", "error": error.to_dict()})
            return 1
        emit({"event": "done"})
    return 0


if __name__ == "__main__":
    # Nothing is left to tidy up: the kernel frees gigabytes faster than destructors do.
    os._exit(main(int(sys.argv[1]), *sys.argv[2:3]))
