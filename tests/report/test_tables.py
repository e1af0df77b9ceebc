"""Chart tables: the stored numbers, unchanged, and notes where there is nothing to draw."""

import itertools
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import sample

from quantvane.report.readings import read_summary
from quantvane.report.tables import chart_tables, nominal_bits, shorten, tensor_rows


@pytest.mark.parametrize("make", [sample.one, sample.seven, sample.many, sample.odd])
def test_every_table_is_valid_json_and_arrow(make) -> None:  # type: ignore[no-untyped-def]
    for name, rows in chart_tables(read_summary(make())).items():
        json.dumps(rows, allow_nan=False)
        assert pa.Table.from_pylist(rows).num_rows == len(rows), name


def test_headline_rows_hold_the_stored_values() -> None:
    summary = sample.seven()
    rows = chart_tables(read_summary(summary))["headline"]
    assert len(rows) == 21
    for row in rows:
        item = next(c for c in summary["candidates"] if c["label"] == row["name"])
        stored = item["kld"][row["field"].removeprefix("kld.")]
        assert row["value"] == stored["value"]
        assert [row["low"], row["high"]] == list(stored.get("ci") or [None, None])
    assert all(row["low"] is None for row in rows if row["field"] == "kld.max")


def test_missing_and_infinite_values_become_notes() -> None:
    rows = {row["name"]: row for row in chart_tables(read_summary(sample.odd()))["size"]}
    assert rows["Q5_K_M"]["value"] is None
    assert rows["Q5_K_M"]["note"] == "no value: the engine gave NaN logits"
    assert rows["Q6_K"]["note"].startswith("∞")
    assert rows["Q2_K"]["note"] == ""


def test_tensor_shares_stack_from_the_reference_down() -> None:
    rows = tensor_rows(read_summary(sample.seven()))
    assert rows[0]["name"] == "reference: F16"
    for name in {row["name"] for row in rows}:
        mine = [row for row in rows if row["name"] == name]
        assert mine[0]["start"] == 0
        assert all(a["end"] == b["start"] for a, b in itertools.pairwise(mine))
        assert mine[-1]["end"] == pytest.approx(1.0)
        bits = [nominal_bits(row["type"]) for row in mine]
        assert bits == sorted(bits, reverse=True)


def test_rare_tensor_types_are_added_up() -> None:
    summary = sample.one()
    summary["candidates"][0]["tensor_types"] = {f"Q{i}_X": i / 210 for i in range(1, 21)}
    rows = [row for row in tensor_rows(read_summary(summary)) if row["type"] is not None]
    assert len({row["type"] for row in rows}) == 15
    assert rows[-1]["type"] == "other"
    assert rows[-1]["share"] == pytest.approx(sum(range(1, 7)) / 210)


def test_shorten_keeps_both_ends() -> None:
    short = shorten("a" * 50 + "b" * 50, 21)
    assert (len(short), short[0], short[-1]) == (21, "a", "b")
    assert shorten("short") == "short"


def test_the_sample_is_the_recorded_run(shared: Path) -> None:
    for name, row in sample.QUANTS.items():
        text = (shared / "golden/lm10m-books-a-ctx512" / f"{name}.txt").read_text()
        for words, value in (("Mean    KLD", row[2]), ("Median  KLD", row[4]), ("Maximum KLD", row[9])):
            found = re.search(rf"{words}: +([0-9.]+)", text)
            assert found
            assert float(found.group(1)) == pytest.approx(value, abs=1e-6)
