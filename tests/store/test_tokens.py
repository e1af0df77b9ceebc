"""The token table read back: columns, blocks of rows, some rows alone; memory of a summary."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from quantvane.displacement.aggregate import aggregate
from quantvane.errors import DataError
from quantvane.store.tokens import TokenColumns, token_batch, write_tokens
from quantvane.types import TOKEN_FIELDS, Window

PER_WINDOW = 1000


def write(path, windows, category=lambda window: ""):
    """A table of random rows; returns its kld column."""
    rng = np.random.default_rng(windows)
    klds = []

    def batches():
        for index in range(windows):
            tokens = rng.integers(0, 90, PER_WINDOW).astype(np.int32)
            window = Window(tokens, tokens, np.ones(PER_WINDOW, bool), index, 0, 0, category(index))
            metrics = {name: rng.random(PER_WINDOW) for name in TOKEN_FIELDS}
            metrics["same_top1"] = metrics["same_top1"] < 0.5
            for name in ("top1_ref", "top1_cand", "rank_in_cand"):
                metrics[name] = (metrics[name] * 90).astype(np.int32)
            klds.append(metrics["kld"])
            yield token_batch(window, metrics)

    write_tokens(path, batches())
    return np.concatenate(klds)


def test_blocks_are_the_columns_in_order(tmp_path):
    kld = write(tmp_path / "t.parquet", 40)
    columns = TokenColumns(tmp_path / "t.parquet")
    blocks = list(columns.blocks(("kld", "window")))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate([b["kld"] for b in blocks]), kld)
    np.testing.assert_array_equal(columns["kld"], kld)
    np.testing.assert_array_equal(np.concatenate([b["window"] for b in blocks]), np.repeat(np.arange(40), PER_WINDOW))
    some = columns["window"] == 21
    part = columns.only("window", 21)
    np.testing.assert_array_equal(np.concatenate([b["kld"] for b in part.blocks(("kld",))]), kld[some])
    np.testing.assert_array_equal(part["kld"], kld[some])


def test_rows_of_one_category(tmp_path):
    kld = write(tmp_path / "t.parquet", 40, lambda window: "ab"[window % 2])
    columns = TokenColumns(tmp_path / "t.parquet")
    assert columns.categories() == ("a", "b")
    odd = np.repeat(np.arange(40), PER_WINDOW) % 2 == 1
    np.testing.assert_array_equal(columns.only("category", "b")["kld"], kld[odd])
    assert not len(columns.only("category", "c")["kld"])


def test_a_summary_holds_no_column(tmp_path):
    """Ten times the tokens: what grows is what the clusters need, and what lies near the quantiles."""
    peaks = []
    held, pool = pa.default_memory_pool(), pa.system_memory_pool()  # this one counts
    pa.set_memory_pool(pool)
    try:
        for windows in (100, 1000):
            write(tmp_path / "t.parquet", windows)
            columns = TokenColumns(tmp_path / "t.parquet")
            aggregate(columns, ("window",), resamples=100)  # compiles
            before = pool.bytes_allocated()
            tracemalloc.start()
            aggregate(columns, ("window",), resamples=100)
            peaks.append(tracemalloc.get_traced_memory()[1] + pool.bytes_allocated() - before)
            tracemalloc.stop()
    finally:
        pa.set_memory_pool(held)
    # Sorting one column of floats takes 32 bytes a row, the table's own columns come to about 180.
    assert peaks[1] - peaks[0] < 12 * 900 * PER_WINDOW, peaks


def test_a_table_is_read_a_row_group_at_a_time(tmp_path):
    write(tmp_path / "t.parquet", 400)
    columns = TokenColumns(tmp_path / "t.parquet")
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in columns.blocks(tuple(columns)):
        most = max(most, pool.bytes_allocated() - before)
    assert 0 < most < 0.2 * (tmp_path / "t.parquet").stat().st_size


def test_an_empty_selection_is_refused_by_the_aggregate(tmp_path):
    write(tmp_path / "t.parquet", 2)
    none = TokenColumns(tmp_path / "t.parquet").only("window", 7)
    with pytest.raises(DataError, match="no tokens"):
        aggregate(none, ("window",))
