"""``quantvane watch`` as a process: starts light, says where it is, refuses what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "monitor"))
from proxy_support import PRINT, ask, calibration, get
from scripted_upstream import Upstream

HEAVY = ("torch", "llama_cpp", "numba", "transformers", "ray", "scipy", "pyarrow", "pandas")
LIGHT = f"""
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("heavy: " + name)
sys.meta_path.insert(0, Wall())
from quantvane.cli.app import main
main(sys.argv[1:])
"""


@pytest.fixture
def upstream():
    one = Upstream()
    yield one
    one.stop()


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LIGHT, "watch", *args], capture_output=True, text=True, timeout=120)


def _save(path: Path, **changes: Any) -> str:
    calibration(fingerprint=replace(PRINT, **changes)).save(path)
    return str(path)


def test_watches_without_any_heavy_library(upstream, tmp_path):
    token = tmp_path / "token"
    token.write_text("very-secret\n")
    command = [
        sys.executable, "-c", LIGHT, "watch", "--upstream", upstream.url, "--calibration", _save(tmp_path / "c.json"),
        "--port", "0", "--action", "annotate", "--token-file", str(token), "--jsonl", str(tmp_path / "log.jsonl"),
        "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.rstrip().endswith("\n}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            text += line
        said = json.loads(text)
        url = said["listening"]
        assert url.startswith("http://127.0.0.1:")
        assert (said["action"], said["reason"]) == ("annotate", "")
        body = {"model": "scripted", "messages": [], "temperature": 0}
        status, headers, _ = ask(url, body, {"Authorization": "Bearer sk-client"})
        assert (status, headers["x-quantvane-label"]) == (200, "NOMINAL")
        assert get(url, "/metrics")[0] == 401
        assert get(url, "/metrics", {"Authorization": "Bearer very-secret"})[0] == 200
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert out == ""
    assert "secret" not in err + (tmp_path / "log.jsonl").read_text()
    told = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["event"], e.get("label")) for e in told] == [("stream", "NOMINAL"), ("fault", None)]


def test_a_calibration_of_another_deployment_is_refused(upstream, tmp_path):
    run = _run(
        "--upstream", upstream.url, "--calibration", _save(tmp_path / "c.json", model="x", engine="llamacpp"), "--json"
    )
    assert run.returncode == 2
    error = json.loads(run.stdout)["error"]
    assert error["kind"] == "ProtocolMismatchError"
    assert "model, engine differ" in error["message"]
    assert "scripted" in error["got"]


def test_a_calibration_of_the_whole_vocabulary_is_refused(upstream, tmp_path):
    run = _run("--upstream", upstream.url, "--calibration", _save(tmp_path / "c.json", top_k=0))
    assert run.returncode == 2
    assert "top_k differs" in run.stderr


@pytest.mark.parametrize(
    "args", [("--upstream", "nowhere"), ("--upstream", "http://x", "--action", "shout"),
             ("--upstream", "http://127.0.0.1:9", "--token-file", "/nowhere"),
             ("--upstream", "http://127.0.0.1:9", "--host", "203.0.113.7")]
)  # fmt: skip
def test_what_cannot_be(args, tmp_path):
    run = _run(*args, "--calibration", _save(tmp_path / "c.json"))
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert os.sep + "site-packages" not in run.stderr
