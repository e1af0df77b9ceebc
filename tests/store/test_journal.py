"""A journal keeps whole frames whatever happens to its end."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantvane.errors import OutputError
from quantvane.store.journal import Journal, read_journal


def _batch(number: int):
    return pa.record_batch({"x": [number, number + 1], "s": ["a", "é"]})


def _write(path, frames: int) -> list[int]:
    sizes = []
    with Journal(path) as journal:
        for number in range(journal.frames, frames):
            journal.append([_batch(number), _batch(10 * number)])
            sizes.append(path.stat().st_size)
    return sizes


def test_frames_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "j"
    _write(path, 3)
    frames = list(read_journal(path))
    assert [[b["x"][0].as_py() for b in frame] for frame in frames] == [[0, 0], [1, 10], [2, 20]]
    assert list(read_journal(tmp_path / "absent")) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 3000), data=st.data())
def test_cut_anywhere_it_continues_to_the_same_bytes(tmp_path_factory, cut, data):
    path = tmp_path_factory.mktemp("j") / "j"
    sizes = _write(path, 4)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = sum(size <= cut for size in sizes)
    assert len(list(read_journal(path))) == kept
    with Journal(path) as journal:
        assert journal.frames == kept
    _write(path, 4)
    assert path.read_bytes() == whole


@given(at=st.integers(0, 2000), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_ends_the_journal_before_it(tmp_path_factory, at, flip):
    path = tmp_path_factory.mktemp("j") / "j"
    sizes = _write(path, 3)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] ^= flip
    path.write_bytes(bytes(data))
    assert len(list(read_journal(path))) <= sum(size <= at for size in sizes)


def test_two_writers_are_refused(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(OutputError, match="another process"):
        Journal(tmp_path / "j")
