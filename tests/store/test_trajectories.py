import numpy as np
import pytest

from quantvane.errors import DataError
from quantvane.store.journal import Journal
from quantvane.store.trajectories import (
    journal_trajectories,
    read_trajectories,
    trajectory_batch,
    write_trajectories,
)


def some(rng, lengths):
    out = [rng.random((n, 5)) for n in lengths]
    for rows in out:
        rows[0, 3] = np.nan
    out[1][1] = np.nan
    return out


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_gives_back_what_was_written(tmp_path, suffix):
    rows = some(np.random.default_rng(0), (3, 7, 1))
    path = tmp_path / f"t{suffix}"
    write_trajectories(path, rows, {"fingerprint": {"model": "m"}})
    found, about = read_trajectories(path)
    assert about["fingerprint"] == {"model": "m"}
    assert [np.array_equal(a, b, equal_nan=True) for a, b in zip(rows, found, strict=True)] == [True] * 3
    if suffix == ".jsonl":
        assert "NaN" not in path.read_text()


def test_a_journal_gives_its_whole_units(tmp_path):
    rng = np.random.default_rng(1)
    first, second = some(rng, (2, 4)), some(rng, (5, 3, 2))
    path = tmp_path / "t.journal"
    with Journal(path) as journal:
        journal.append([trajectory_batch(first, 0)])
        journal.append([trajectory_batch(second, 2)])
    path.write_bytes(path.read_bytes()[:-1])
    found, units = journal_trajectories(path)
    assert units == 1
    assert [len(rows) for rows in found] == [2, 4]
    assert np.array_equal(found[1], first[1], equal_nan=True)


def test_other_files_are_refused(tmp_path):
    for name, content in (("a.parquet", b"PAR1"), ("b.jsonl", b"{}\n"), ("c.jsonl", b""), ("d.jsonl", b"[1]\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="no recorded trajectories"):
            read_trajectories(tmp_path / name)
    with pytest.raises(DataError):
        read_trajectories(tmp_path / "missing.parquet")
