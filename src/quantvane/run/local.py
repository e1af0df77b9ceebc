"""The local executor: one child process for one request, watched until it is done or dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from quantvane.errors import EngineCrashError, from_dict

__all__ = ["OnEvent", "Worker", "run_worker"]

OnEvent = Callable[[dict[str, Any]], None]


def run_worker(request: dict[str, Any], on_event: OnEvent) -> None:
    """Perform a request in a child process.

    Raises:
        QuantvaneError: what the child reported.
        EngineCrashError: the child died without a word; names the model it was busy with.
    """
    with Worker() as worker:
        worker.perform(request, on_event)


class Worker:
    """A child process that waits for one request; it ends with the ``with`` block, whatever happens in it.

    Args:
        ahead: task whose libraries it loads before the request comes (`quantvane.run.worker`), if any.
    """

    def __init__(self, ahead: str | None = None) -> None:
        self._busy = "a model"
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        read, write = os.pipe()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "quantvane.run.worker", str(write), *([ahead] if ahead else [])],
            stdin=subprocess.PIPE,
            stdout=self._noise,
            stderr=self._noise,
            pass_fds=(write,),
            env=None if ahead else _environment(),
            # An interrupt is for the command, which then ends the child; the journals are whole at any moment.
            start_new_session=True,
        )
        os.close(write)
        self._events = os.fdopen(read, encoding="utf-8")

    def perform(self, request: dict[str, Any], on_event: OnEvent) -> None:
        """Send the request and pass on the events until the child is done; raises as `run_worker`."""
        finished = False
        with suppress(BrokenPipeError):
            if self._child.stdin is not None:
                with self._child.stdin as stdin:
                    stdin.write(json.dumps(request).encode())
            for line in self._events:
                event = json.loads(line)
                if event["event"] == "loading":
                    self._busy = f"'{event['model']}'"
                elif event["event"] == "error":
                    raise from_dict(event["error"])
                finished = finished or event["event"] == "done"
                on_event(event)
        status = self._child.wait()
        if not finished:
            self._noise.seek(0)
            tail = self._noise.read()[-2000:].decode(errors="replace").strip()
            raise EngineCrashError(
                f"the engine's process died while it worked on {self._busy}",
                expected="exit status 0",
                got=f"{_how(status)}; its last words: {tail or 'none'}",
                remedy="the model file may be damaged, or memory ran out; the same command continues at the "
                "first unfinished window",
            )

    def close(self) -> None:
        """End the child if it still runs."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        with suppress(BrokenPipeError):  # a request it never read
            if self._child.stdin is not None:
                self._child.stdin.close()
        self._events.close()
        self._noise.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """How long the engine's threads spin while they wait for each other; the user's own settings win.

    On a machine busy with other work spinning makes decoding several times slower, so there it is turned off.
    On an idle one it saves a fifth of decoding, but must end soon after: the same processors compute the
    statistics next. Measured with libgomp, whose default spins for milliseconds.
    """
    if _others_busy() > 0.4:
        return {"OMP_WAIT_POLICY": "passive", **os.environ}
    return {"GOMP_SPINCOUNT": "20000", **os.environ}


def _spent() -> tuple[float, float, float]:
    """Now, seconds all processors were busy, seconds this process used."""
    now = psutil.cpu_times()
    busy = sum(now) - now.idle - getattr(now, "iowait", 0.0)
    return time.monotonic(), busy, time.process_time()


_AT_START = _spent()


def _others_busy(interval: float = 0.1) -> float:
    """Share of this machine's processors that other processes keep busy, since this module was loaded.

    Looks at the last ``interval`` seconds instead where that was long ago.
    """
    before = _AT_START
    if not interval <= time.monotonic() - before[0] <= 10 * interval:
        before = _spent()
        time.sleep(interval)
    after = _spent()
    others = (after[1] - before[1]) - (after[2] - before[2])
    return others / ((after[0] - before[0]) * (psutil.cpu_count() or 1))


def _how(status: int) -> str:
    if status < 0:
        try:
            return f"signal {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"
