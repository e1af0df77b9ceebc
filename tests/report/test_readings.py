"""Reading a stored summary: what is absent stays absent and says why."""

import math

import pytest
import sample

from quantvane.errors import DataError
from quantvane.report.readings import clean, read, read_summary


def test_a_null_has_its_reason_and_no_value() -> None:
    reading = read({"value": None, "ci": None, "reason": "only one window"})
    assert math.isnan(reading.value)
    assert reading.reason == "only one window"
    assert not reading.has_interval


@pytest.mark.parametrize("item", [None, {}, {"value": True}, {"value": "0.3"}, "text", [1, 2]])
def test_what_is_no_number_is_unknown_with_a_reason(item: object) -> None:
    reading = read(item)
    assert not reading.known
    assert reading.reason


def test_a_value_without_interval_is_kept() -> None:
    assert read({"value": 0.25}).value == 0.25
    assert read({"value": 0.25, "ci": [0.1]}).has_interval is False


def test_names_lose_control_characters_and_surrogates() -> None:
    assert clean("a\x1b[31m\nb\u202ec\ud800") == "a [31m b c?"


def test_order_is_by_bits_and_unknown_sizes_come_last() -> None:
    summary = sample.seven()
    summary["candidates"][0]["bits_per_weight"] = None
    summary["candidates"].reverse()
    read_ = read_summary(summary)
    assert [c.key for c in read_.candidates] == [
        "Q6_K",
        "Q5_K_M",
        "Q4_K_M",
        "IQ4_NL",
        "Q3_K_M",
        "Q2_K",
        "Q8_0",
    ]
    assert [c.key for c in read_.ranked][:2] == ["Q8_0", "Q6_K"]


def test_equal_labels_fall_back_to_names_then_to_numbers() -> None:
    summary = sample.seven()
    for item in summary["candidates"]:
        item["label"] = "same"
    assert read_summary(summary).candidates[0].key == "lm10m-Q8_0.gguf"
    for item in summary["candidates"]:
        item["name"] = "same"
    assert [c.key for c in read_summary(summary).candidates][:2] == ["same #1", "same #2"]


def test_ties_are_given_by_label() -> None:
    tied = {c.key: c.tied_with for c in read_summary(sample.seven()).candidates}
    assert tied["Q4_K_M"] == ("IQ4_NL",)
    assert tied["Q8_0"] == ()


def test_an_unmeasured_noise_floor_is_unknown_not_zero() -> None:
    summary = sample.seven()
    del summary["noise_floor"]
    floor = read_summary(summary).floor
    assert not floor.known
    assert "not measured" in floor.reason
    assert read_summary(sample.one()).floor.reason == "skipped with --no-noise"


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"schema": None}, {"reference": None}, {"candidates": []}, {"candidates": "abc"}],
)
def test_what_is_no_summary_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        read_summary({**sample.seven(), **change})


def test_a_list_is_refused() -> None:
    with pytest.raises(DataError):
        read_summary([])  # type: ignore[arg-type]
