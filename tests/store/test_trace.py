"""Trace directories: tables round trip; what is missing, altered or unfinished does not open."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantvane.errors import TraceError
from quantvane.store.frames import FrameWriter, RowShape
from quantvane.store.trace import (
    Sample,
    Trace,
    pack_floats,
    row_type,
    unpack_floats,
    write_array,
    write_samples,
    write_vocabulary,
    write_windows,
)
from quantvane.store.trace_manifest import ROWS, is_trace
from quantvane.types import Window


def windows() -> list[Window]:
    rng = np.random.default_rng(1)
    out = []
    for index, n in enumerate((4, 6, 3)):
        tokens = rng.integers(0, 9, n).astype(np.int32)
        scored = np.arange(n) >= n // 2
        out.append(Window(tokens, np.roll(tokens, -1), scored, index, index // 2, index, "kind" if index else ""))
    return out


@pytest.fixture
def trace(tmp_path):
    made = windows()
    files = {
        "windows.parquet": write_windows(tmp_path, [made[:2], made[2:]]),
        "vocabulary.parquet": write_vocabulary(tmp_path, ["a", None, "ĠB\n", ""]),
        "samples.json": write_samples(tmp_path, [Sample("é\u2028x", np.array([3, 1], np.int32))]),
        "head.npy": write_array(tmp_path, "head.npy", np.eye(4, 2, dtype=np.float16)),
    }
    counts = [int(w.scored.sum()) for w in made]
    with FrameWriter(tmp_path / ROWS, RowShape((counts[0] + counts[1], counts[2]), 2, "<f2")) as writer:
        data = np.arange(2 * sum(counts)).reshape(-1, 2).astype("<f2")
        writer.append(iter([data[: counts[0] + counts[1]]]))
        writer.append(iter([data[counts[0] + counts[1] :]]))
    manifest = {"schema": 1, "command": "record", "state": "complete", "files": files, "width": 2, "stored": "f16"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_tables_round_trip(trace) -> None:
    opened = Trace.open(trace)
    for held, made in zip(opened.windows, windows(), strict=True):
        for field in ("tokens", "targets", "scored"):
            got, expected = getattr(held, field), getattr(made, field)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        for field in ("index", "corpus", "document", "category"):
            assert getattr(held, field) == getattr(made, field)
    assert opened.units == (2, 1)
    assert opened.pieces == ("a", None, "ĠB\n", "")
    assert opened.samples[0].text == "é\u2028x"
    assert opened.samples[0].tokens.tolist() == [3, 1]
    start, stop = opened.rows_of(opened.windows[1])
    assert np.concatenate(list(opened.rows(start, stop)))[:, 0].tolist() == [4, 6, 8]
    opened.close()


def test_a_window_of_another_text_is_refused(trace) -> None:
    opened = Trace.open(trace)
    foreign = windows()[0]
    foreign.tokens[0] += 1
    with pytest.raises(TraceError, match="window 0"):
        opened.rows_of(foreign)


@pytest.mark.parametrize("name", ["windows.parquet", "vocabulary.parquet", "samples.json", "head.npy"])
@pytest.mark.parametrize("harm", ["missing", "cut", "altered"])
def test_harm_to_any_file_is_noticed(trace, name: str, harm: str) -> None:
    path = trace / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if harm == "cut":
        path.write_bytes(data[:-1])
    elif harm == "altered":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(TraceError, match=name):
        Trace.open(trace)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"command": "record"}', '{"command": "record", "schema": 9, "state": "complete"}']
)
def test_a_manifest_that_cannot_be_right(trace, text: str) -> None:
    (trace / "manifest.json").write_text(text)
    with pytest.raises(TraceError):
        Trace.open(trace)


def test_an_unfinished_trace_does_not_open(trace) -> None:
    manifest = json.loads((trace / "manifest.json").read_text())
    (trace / "manifest.json").write_text(json.dumps({**manifest, "state": "recording"}))
    assert is_trace(trace)
    with pytest.raises(TraceError, match="not finished") as caught:
        Trace.open(trace)
    assert "continues" in caught.value.remedy


def test_missing_rows(trace) -> None:
    (trace / ROWS).unlink()
    with pytest.raises(TraceError, match=ROWS):
        Trace.open(trace)


def test_other_directories_are_no_traces(tmp_path) -> None:
    assert not is_trace(tmp_path)
    (tmp_path / "manifest.json").write_text('{"command": "compare"}')
    assert not is_trace(tmp_path)


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_floats_of_a_type_survive_it(stored: str) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 16, 4096, dtype=np.uint64)
    values = {
        "f32": (bits * 65537).astype(np.uint32).view(np.float32),
        "f16": bits.astype(np.uint16).view(np.float16).astype(np.float32),
        "bf16": (bits << 16).astype(np.uint32).view(np.float32),
    }[stored]
    values = values[~np.isnan(values)]
    packed = pack_floats(values, stored)
    assert packed.dtype == np.dtype(row_type(stored))
    np.testing.assert_array_equal(unpack_floats(packed, stored), values)
