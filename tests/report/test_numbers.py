"""Numbers as people read them."""

import math

import pytest

from quantvane.report.numbers import compact, file_size, interval, number, percent
from quantvane.report.readings import Reading


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0016531, "0.00165"), (47.190429, "47.2"), (0.0, "0"), (3.2e-7, "3.20e-7"), (1234567.0, "1.23e6"),
        (999.96, "1000"), (0.0099996, "0.0100"), (-0.05, "-0.0500"), (math.nan, "—"), (math.inf, "∞"),
        (-math.inf, "-∞"), (9.9999e-5, "0.000100"),
    ],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("value", [1e-99, 9.99e-5, 0.00123, 0.5, 99999.0, 123456.0, 1e12, math.inf, math.nan])
def test_compact_fits_seven_columns(value: float) -> None:
    assert len(compact(value)) <= (8 if value < 1e-9 else 7)


def test_interval_shares_decimals_and_shows_its_width() -> None:
    assert interval(Reading(0.0016531, 0.0015688, 0.0017373)) == ("0.001653", "[0.001569, 0.001737]")
    assert interval(Reading(47.1904, 47.1881, 47.1927)) == ("47.1904", "[47.1881, 47.1927]")
    assert interval(Reading(9.92e-5, 8.89e-5, 1.095e-4)) == ("9.92e-5", "[8.89e-5, 0.000110]")
    assert interval(Reading(0.5, reason="no interval")) == ("0.500", "")
    assert interval(Reading(math.inf, 1.0, math.inf)) == ("∞", "[1.00, ∞]")


def test_interval_of_a_point_is_no_error() -> None:
    assert interval(Reading(0.0, 0.0, 0.0)) == ("0", "[0, 0]")
    assert interval(Reading(1.0, 1.0, 1.0)) == ("1.00", "[1.00, 1.00]")


def test_a_share_below_one_never_prints_as_hundred_percent() -> None:
    assert percent(1.0) == "100%"
    assert percent(0.9998, 2) == "99.98%"
    assert percent(0.9999999) == ">99.99%"
    assert percent(0.0) == "0%"
    assert percent(math.nan) == "—"


def test_file_size() -> None:
    assert [file_size(n) for n in (12, 4_360_000, 20_700_000_000)] == ["12 B", "4.36 MB", "20.7 GB"]
    assert file_size(999_700) == "1.00 MB"
    assert file_size(None) == "—"
