"""The local executor: one child process for a list of jobs, watched until it is done or dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from quantvane.errors import EngineCrashError, from_dict

__all__ = ["run_worker"]


def run_worker(request: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> None:
    """Perform a request in a child process.

    Raises:
        QuantvaneError: what the child reported.
        EngineCrashError: the child died without a word; names the model it was busy with.
    """
    read, write = os.pipe()
    busy = "a model"
    finished = False
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "quantvane.run.worker", str(write)],
            stdin=subprocess.PIPE,
            stdout=noise,
            stderr=noise,
            pass_fds=(write,),
            env=_environment(),
            # An interrupt is for the command, which then ends the child; the journals are whole at any moment.
            start_new_session=True,
        )
        os.close(write)
        try:
            if child.stdin is not None:
                with child.stdin as stdin:
                    stdin.write(json.dumps(request).encode())
            with os.fdopen(read, encoding="utf-8") as events:
                for line in events:
                    event = json.loads(line)
                    if event["event"] == "loading":
                        busy = f"'{event['model']}'"
                    elif event["event"] == "error":
                        raise from_dict(event["error"])
                    finished = finished or event["event"] == "done"
                    on_event(event)
            status = child.wait()
        except BrokenPipeError:
            status = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if not finished:
            noise.seek(0)
            tail = noise.read()[-2000:].decode(errors="replace").strip()
            raise EngineCrashError(
                f"the engine's process died while it worked on {busy}",
                expected="exit status 0",
                got=f"{_how(status)}; its last words: {tail or 'none'}",
                remedy="the model file may be damaged, or memory ran out; the same command continues at the "
                "first unfinished window",
            )


def _environment() -> dict[str, str]:
    """On a machine that is already busy, threads must not spin while they wait for each other.

    Spinning threads made two-thread decoding several times slower beside other work; on an idle machine they
    are a little faster. The user's own OMP_WAIT_POLICY wins.
    """
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1)
    return {"OMP_WAIT_POLICY": "passive", **os.environ} if busy else dict(os.environ)


def _how(status: int) -> str:
    if status < 0:
        try:
            return f"signal {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"
