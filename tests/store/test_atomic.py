"""Files appear whole or not at all; JSON never holds NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from quantvane.errors import OutputError
from quantvane.store.atomic import atomic_path, make_directory, read_json, to_json, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [np.float64("inf"), np.int32(3)], "z": (1.5,)})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [None, 3], "z": [1.5]}
    assert json.loads(to_json(np.array([1.0, np.nan]))) == [1.0, None]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as caught:
        make_directory(tmp_path / "file" / "below")
    assert caught.value.exit_status == 2
    with pytest.raises(OutputError):
        write_bytes(tmp_path / "file" / "below", b"x")


def test_damaged_json_is_one_clear_error(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(OutputError):
        read_json(tmp_path / "a.json")
    with pytest.raises(OutputError):
        read_json(tmp_path / "absent.json")
