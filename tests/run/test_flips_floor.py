"""A noise floor made of several runs of the reference."""

from __future__ import annotations

import json

from quantvane.run.flips import flips


def write(path, right):
    rows = [{"item": str(i), "task": "ab"[i % 2], "correct": bool(c)} for i, c in enumerate(right)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_several_runs_of_the_reference_are_one_floor(tmp_path):
    base = write(tmp_path / "base.jsonl", [1, 1, 1, 1, 0, 0, 0, 0])
    cand = write(tmp_path / "cand.jsonl", [0, 1, 1, 0, 1, 0, 0, 0])  # drops 0 and 3, leapfrog 4
    runs = [
        write(tmp_path / "r1.jsonl", [0, 1, 1, 1, 0, 0, 0, 0]),  # drop 0
        write(tmp_path / "r2.jsonl", [1, 1, 0, 1, 1, 0, 0, 0]),  # drop 2, leapfrog 4
    ]
    found = flips(base, [cand], noise=runs).to_dict()["candidates"][0]
    assert found["pooled"]["noise"] == {"drops": 1, "leapfrogs": 1, "shared": 2, "inside": False, "runs": 2}
    assert found["tasks"]["b"]["noise"] == {"drops": 0, "leapfrogs": 0, "shared": 0, "inside": False, "runs": 2}
    assert found["tasks"]["a"]["noise"] == {"drops": 1, "leapfrogs": 1, "shared": 2, "inside": True, "runs": 2}
    one = flips(base, [cand], noise=runs[0]).to_dict()["candidates"][0]["pooled"]["noise"]
    assert one == {"drops": 1, "leapfrogs": 0, "shared": 1, "inside": False, "runs": 1}
    assert "noise" not in flips(base, [cand]).to_dict()["candidates"][0]["pooled"]
