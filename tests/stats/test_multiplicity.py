from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from quantvane.stats.multiplicity import holm


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p):
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]), abs=1e-12)


def test_an_unknown_p_counts_as_a_comparison_and_stays_unknown():
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == pytest.approx(0.03)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.08)
    assert holm([]) == []
