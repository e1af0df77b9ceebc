"""Row files: what is read is what was written, whatever killed the writer, and nothing damaged is read."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from quantvane.errors import OutputError, TraceError
from quantvane.store import frames
from quantvane.store.frames import FrameReader, FrameWriter, RowShape

SHAPE = RowShape((5, 1, 7), 6, "<f4")


def rows() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(13, 6)).astype("<f4")
    values[0, 0], values[1, 1] = -np.inf, 0.0
    return values


def write(path, count: int = 3, start: int = 0) -> None:
    data, at = rows(), np.cumsum([0, *SHAPE.units])
    with FrameWriter(path, SHAPE) as writer:
        assert writer.units_done == start
        for unit in range(start, count):
            part = data[at[unit] : at[unit + 1]]
            writer.append(iter([part[:2], part[2:]]))


def read(path, start: int = 0, stop: int = 13) -> np.ndarray:
    reader = FrameReader(path, SHAPE)
    try:
        return np.concatenate(list(reader.rows(start, stop)))
    finally:
        reader.close()


@pytest.fixture(params=[frames._BLOCK_BYTES, 30])
def block(request, monkeypatch):
    """Blocks larger than a unit, and of one row."""
    monkeypatch.setattr(frames, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block")
def test_every_range_reads_back(tmp_path) -> None:
    write(tmp_path / "r")
    for start in range(13):
        for stop in range(start + 1, 14):
            np.testing.assert_array_equal(read(tmp_path / "r", start, stop), rows()[start:stop])


@pytest.mark.parametrize("dtype", ["<f2", "<u2", "<f4"])
def test_types(tmp_path, dtype: str) -> None:
    data = np.arange(12).astype(dtype).reshape(4, 3)
    shape = RowShape((4,), 3, dtype)
    with FrameWriter(tmp_path / "r", shape) as writer:
        writer.append(iter([data]))
    back = next(FrameReader(tmp_path / "r", shape).rows(0, 4))
    assert back.dtype == data.dtype
    np.testing.assert_array_equal(back, data)


@pytest.mark.usefixtures("block")
def test_cut_at_any_byte_it_continues_to_the_same_bytes(tmp_path) -> None:
    write(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:size])
        if size < len(whole):
            with pytest.raises(TraceError):
                FrameReader(path, SHAPE)
        with FrameWriter(path, SHAPE) as writer:
            done = writer.units_done
        write(path, start=done)
        assert path.read_bytes() == whole


@pytest.mark.usefixtures("block")
def test_any_flipped_byte_is_noticed(tmp_path) -> None:
    write(tmp_path / "r")
    whole = (tmp_path / "r").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "r").write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(TraceError):
            read(tmp_path / "r")


def test_bytes_after_the_end_are_noticed(tmp_path) -> None:
    write(tmp_path / "r")
    with (tmp_path / "r").open("ab") as file:
        file.write(b"more")
    with pytest.raises(TraceError, match="damaged"):
        read(tmp_path / "r")


def test_another_number_of_rows_is_refused(tmp_path) -> None:
    with FrameWriter(tmp_path / "r", SHAPE) as writer, pytest.raises(TraceError) as caught:
        writer.append(iter([rows()[:4]]))
    assert (caught.value.expected, caught.value.got) == ("5", "4")
    write(tmp_path / "r")  # what was written of that unit does not count
    np.testing.assert_array_equal(read(tmp_path / "r"), rows())


def test_one_writer_at_a_time(tmp_path) -> None:
    with FrameWriter(tmp_path / "r", SHAPE), pytest.raises(OutputError, match="another process"):
        FrameWriter(tmp_path / "r", SHAPE)


def test_a_full_disk(tmp_path) -> None:
    """A write that stops half way is an error with a remedy, and its unit does not count."""
    writer = FrameWriter(tmp_path / "r", SHAPE)
    writer.append(iter([rows()[:5]]))

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, data: bytes) -> None:
            self.file.write(data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

    file = writer._file
    writer._file = Full(file)
    with pytest.raises(OutputError, match="cannot write") as caught:
        writer.append(iter([rows()[5:6]]))
    assert "No space" in caught.value.got
    file.close()
    write(tmp_path / "r", start=1)
    np.testing.assert_array_equal(read(tmp_path / "r"), rows())
