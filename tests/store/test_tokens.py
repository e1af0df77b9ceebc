"""The token table read back: columns, blocks of rows, some rows alone; memory of a summary."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from quantvane.displacement.aggregate import aggregate
from quantvane.errors import DataError
from quantvane.store.tokens import TokenColumns, token_batch, write_tokens
from quantvane.types import TOKEN_FIELDS, Window

PER_WINDOW = 1000


def write(path, windows):
    """A table of random rows; returns its kld column."""
    rng = np.random.default_rng(windows)
    klds = []

    def batches():
        for index in range(windows):
            tokens = rng.integers(0, 90, PER_WINDOW).astype(np.int32)
            window = Window(tokens, tokens, np.ones(PER_WINDOW, bool), index, 0, 0)
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
    some = columns["window"] % 3 == 1
    part = columns.only(some)
    np.testing.assert_array_equal(np.concatenate([b["kld"] for b in part.blocks(("kld",))]), kld[some])
    inner = part.only(part["window"] > 20)
    np.testing.assert_array_equal(inner["kld"], kld[some & (columns["window"] > 20)])


def test_a_summary_holds_one_column_not_the_table(tmp_path):
    windows = 300
    write(tmp_path / "t.parquet", windows)
    clusters = np.repeat(np.arange(windows, dtype=np.int32), PER_WINDOW)
    columns = TokenColumns(tmp_path / "t.parquet")
    aggregate(columns, clusters, resamples=100)  # compiles
    tracemalloc.start()
    aggregate(columns, clusters, resamples=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the table's own columns come to about 180 bytes a row
    assert peak < 50 * windows * PER_WINDOW + 24 * 2**20


def test_an_empty_selection_is_refused_by_the_aggregate(tmp_path):
    write(tmp_path / "t.parquet", 2)
    none = TokenColumns(tmp_path / "t.parquet").only(np.zeros(2 * PER_WINDOW, bool))
    with pytest.raises(DataError, match="no tokens"):
        aggregate(none, np.empty(0, np.int32))
