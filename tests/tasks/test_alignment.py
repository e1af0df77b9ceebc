from __future__ import annotations

from dataclasses import replace

import pytest

from quantvane.errors import DataError, ProtocolMismatchError
from quantvane.tasks import Outcome, OutcomeSet, align

ITEMS = [Outcome("t", str(i), True, prompt=f"p{i}", settings="{}", where=f"line {i}") for i in range(8)]
BASE = OutcomeSet("base", tuple(ITEMS))


def test_pairs_follow_the_reference_whatever_the_candidates_order():
    found = align(BASE, OutcomeSet("cand", tuple(reversed(ITEMS))))
    [task] = found.tasks
    assert [o.item for o in task.candidate] == [o.item for o in task.reference] == [str(i) for i in range(8)]
    assert (found.items, found.prompts, found.settings) == (8, 8, 8)


def test_missing_items_are_listed_not_dropped():
    other = OutcomeSet("cand", (*ITEMS[:1], Outcome("u", "9", True)))
    with pytest.raises(DataError) as problem:
        align(BASE, other)
    assert "7 only in 'base': t/1, t/2, t/3, t/4, t/5 and 2 more" in problem.value.got
    assert "1 only in 'cand': u/9" in problem.value.got
    with pytest.raises(DataError, match="same items"):
        align(OutcomeSet("a", ()), OutcomeSet("b", ()))


def test_items_given_twice_are_listed():
    with pytest.raises(DataError, match="1 items more than once") as problem:
        align(BASE, OutcomeSet("cand", (*ITEMS, ITEMS[3])))
    assert "t/3 (line 3, line 3)" in problem.value.got


@pytest.mark.parametrize(("field", "said"), [("prompt", "prompts"), ("settings", "generation settings")])
def test_other_prompts_and_settings_are_another_protocol(field, said):
    changed = tuple(replace(o, **{field: "else"}) if o.item in "25" else o for o in ITEMS)
    with pytest.raises(ProtocolMismatchError, match=f"other {said} for 2 items") as problem:
        align(BASE, OutcomeSet("cand", changed))
    assert "t/2, t/5" in problem.value.got
    assert "else" in problem.value.got


def test_what_only_one_side_knows_is_counted_as_unchecked():
    found = align(BASE, OutcomeSet("cand", tuple(replace(o, prompt="") for o in ITEMS)))
    assert (found.items, found.prompts, found.settings) == (8, 0, 8)


def test_clusters_have_to_agree():
    ref = OutcomeSet("base", tuple(replace(o, cluster="a") for o in ITEMS))
    with pytest.raises(DataError, match="different clusters"):
        align(ref, OutcomeSet("cand", tuple(replace(o, cluster="b") for o in ITEMS)))
    align(ref, BASE)


def test_only_some_tasks():
    both = OutcomeSet("base", (*ITEMS, Outcome("u", "1", False)))
    assert both.only(["u"]).tasks == ["u"]
    assert both.only([]).tasks == ["t", "u"]
    with pytest.raises(DataError, match="no outcomes of task v"):
        both.only(["u", "v"])
