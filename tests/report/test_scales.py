"""Axes and label places."""

import math

import pytest

from quantvane.report.scales import choose_axis, place_labels


def test_logarithmic_where_values_span_decades() -> None:
    axis = choose_axis([0.001, 0.7])
    assert axis.kind == "log"
    assert axis.low < 0.001
    assert axis.high > 0.7
    assert {0.001, 0.01, 0.1} <= set(axis.ticks)


@pytest.mark.parametrize(
    "values", [[0.3, 0.9], [0.0, 0.5, None], [-0.1, 5.0, 500.0], [], [None], [0.0], [math.inf]]
)
def test_linear_otherwise_and_never_empty(values: list[float | None]) -> None:
    axis = choose_axis(values)
    assert axis.kind == "linear"
    assert axis.low < axis.high
    assert axis.low <= 0


def test_the_noise_floor_is_brought_in_unless_far_below() -> None:
    assert choose_axis([0.01, 1.0], floor=1e-4).low < 1e-4
    assert choose_axis([0.01, 1.0], floor=1e-9).low > 1e-3


def test_room_for_text_is_kept() -> None:
    for values in ([0.001, 1.0], [0.5, 1.0]):
        axis = choose_axis(values, room=0.25)
        assert axis.at(1.0) < 0.78


def test_zero_has_no_place_on_a_logarithmic_axis() -> None:
    axis = choose_axis([0.0, 0.001, 1.0])
    assert axis.kind == "log"
    assert not axis.draws(0.0)
    assert axis.clip(-1.0) == axis.low


def test_share_ticks_stay_within_a_hundred_percent() -> None:
    ticks = choose_axis([0.5, 0.98], from_zero=False, room=0.3, form="~%").ticks
    assert 3 <= len(ticks) <= 9
    assert max(ticks) <= 1


def test_labels_of_a_crowd_do_not_cover_each_other() -> None:
    points = [(300 + 12 * i, 200 + 10 * (i % 3)) for i in range(6)]
    placed = place_labels(points, ["12"] * 6, 620, 400)
    assert len(placed) == 6
    boxes = [(x - 13, y - 7) for x, y, _ in placed]
    assert len(set(boxes)) == 6


def test_labels_stay_inside_the_plot() -> None:
    ((x, _, align),) = place_labels([(615.0, 200.0)], ["a long label here"], 620, 400)
    assert align == "right"
    assert x < 615
