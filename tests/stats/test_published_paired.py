"""Paired statistics against a published paired tool, mlxtend, on random cases and on its own documented example."""

from __future__ import annotations

import numpy as np
import pytest

from quantvane.direction import compare_outcomes
from quantvane.stats.paired import mcnemar
from quantvane.stats.pairs import pair_counts

evaluate = pytest.importorskip("mlxtend.evaluate", reason="mlxtend is not installed (quantvane[dev])")


@pytest.mark.parametrize("seed", range(40))
def test_counts_and_p_values_of_random_cases(seed):
    rng = np.random.default_rng(seed)
    n, right = int(rng.integers(20, 400)), rng.uniform(0.2, 0.9)
    target = rng.integers(0, 4, n)
    answers = [np.where(rng.random(n) < right, target, rng.integers(0, 4, n)) for _ in range(2)]
    table = evaluate.mcnemar_table(y_target=target, y_model1=answers[0], y_model2=answers[1])
    ref, cand = (answer == target for answer in answers)
    pairs = pair_counts(ref, cand)
    # mlxtend: row is the first model right, wrong; column the second
    assert (pairs.drops, pairs.leapfrogs) == (table[0, 1], table[1, 0])
    expected = evaluate.mcnemar(table, exact=True)[1] if pairs.flips else 1.0
    assert mcnemar(pairs).p == pytest.approx(min(float(expected), 1.0), rel=1e-9)
    found = compare_outcomes(ref, cand)
    assert found.n == n
    assert found.score_cand - found.score_ref == pytest.approx(float(np.mean(cand) - np.mean(ref)))


def test_the_example_of_its_manual():
    """Section "Example 2": 25 and 15 discordant pairs."""
    table = np.array([[9945, 25], [15, 15]])
    ref = np.repeat([True, True, False, False], table.ravel())
    cand = np.repeat([True, False, True, False], table.ravel())
    assert mcnemar(pair_counts(ref, cand)).p == pytest.approx(float(evaluate.mcnemar(table, exact=True)[1]), rel=1e-9)
