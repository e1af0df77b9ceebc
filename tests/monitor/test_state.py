import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantvane.errors import DataError
from quantvane.monitor import state_table
from quantvane.monitor.state import LABELS, StateTable, fill
from support_monitor import calibration

CAL = calibration()
TABLE = state_table(CAL)
NUMBER = st.floats(-30, 30)


def test_cells_are_half_open():
    table = fill((0.0,), (), (), lambda s, k, h: "WATCH" if s >= 0.0 else "NOMINAL")
    assert table.label(0.0, 1.0, 1.0) == "WATCH"
    assert table.label(math.nextafter(0.0, -1.0), 1.0, 1.0) == "NOMINAL"
    assert table.label(-math.inf, -math.inf, math.inf) == "NOMINAL"


def test_nan_is_invalid_before_anything_else():
    for state in product((math.nan, 100.0), repeat=3):
        wanted = "ALARM" if state == (100.0,) * 3 else "INVALID"
        assert TABLE.label(*state) == wanted


@pytest.mark.parametrize("cuts", [(1.0, 1.0), (2.0, 1.0), (math.nan,), (math.inf,)])
def test_cuts_that_do_not_partition_are_refused(cuts):
    labels = dict.fromkeys(product(range(len(cuts) + 1), (0,), (0,)), "NOMINAL")
    with pytest.raises(DataError, match="partition"):
        StateTable(cuts, (), (), labels)


def test_a_table_must_be_total_and_know_its_words():
    good = {(0, 0, 0): "NOMINAL", (1, 0, 0): "ALARM"}
    StateTable((0.0,), (), (), good)
    for bad in ({(0, 0, 0): "NOMINAL"}, good | {(2, 0, 0): "ALARM"}, good | {(1, 0, 0): "FINE"},
                good | {(1, 0, 0): "INVALID"}):  # fmt: skip
        with pytest.raises(DataError, match="total"):
            StateTable((0.0,), (), (), bad)


@given(NUMBER, NUMBER, NUMBER)
def test_every_state_has_the_label_that_the_rules_in_words_give(sigma, kl, entropy):
    base, high, low = CAL.base, CAL.thresholds, CAL.lower

    def beyond(limit):
        flat = sigma < -limit["flat"] * base.sigma_spread
        flat = flat and entropy > base.entropy + limit["flat"] * base.entropy_spread
        return (
            sigma > limit["sigma_high"] or -sigma > limit["sigma_low"] or kl > limit["kl_high"]
            or entropy > limit["entropy_high"] or flat
        )  # fmt: skip

    if beyond(high):
        wanted = "ALARM"
    elif entropy < base.entropy_still and kl < base.kl_still:
        wanted = "DEGENERATE"
    elif beyond(low):
        wanted = "WATCH"
    elif sigma < base.sigma_calm and entropy < base.entropy_calm:
        wanted = "CONFIDENT"
    else:
        wanted = "NOMINAL"
    assert TABLE.label(sigma, kl, entropy) == wanted


def test_low_sigma_with_high_entropy_alarms_where_neither_does_alone():
    sigma, entropy = -0.6, 2.15
    without = replace(
        CAL,
        statistics=CAL.statistics[:-1],
        thresholds={k: v for k, v in CAL.thresholds.items() if k != "flat"},
        lower={k: v for k, v in CAL.lower.items() if k != "flat"},
    )
    assert TABLE.label(sigma, 2.0, entropy) == "ALARM"
    assert state_table(without).label(sigma, 2.0, entropy) != "ALARM"


def test_all_words_are_used():
    assert {*TABLE.labels.values(), "INVALID"} == set(LABELS)
