"""Chart specifications carry the tables' numbers and say what they show."""

import json
import xml.etree.ElementTree as ET

import pytest
import sample

from quantvane.report.readings import read_summary
from quantvane.report.render import png, spec_text, svg, themed
from quantvane.report.specs import charts

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _specs(summary: dict[str, object]) -> dict[str, str]:
    return {name: spec_text(chart) for name, chart in charts(read_summary(summary)).items()}


def _rows(part: object) -> list[dict[str, object]]:
    """Every row of inline data anywhere in a spec."""
    if isinstance(part, list):
        return [row for item in part for row in _rows(item)]
    if not isinstance(part, dict):
        return []
    own = part["data"].get("values", []) if isinstance(part.get("data"), dict) else []
    return [*own, *(row for key, item in part.items() if key != "data" for row in _rows(item))]


def _values(spec: str, field: str) -> list[object]:
    return [row[field] for row in _rows(json.loads(spec)) if row.get(field) is not None]


@pytest.fixture(scope="module")
def seven() -> dict[str, str]:
    return _specs(sample.seven())


def test_all_six_charts_are_drawn(seven: dict[str, str]) -> None:
    assert list(seven) == ["headline", "size", "tail", "confidence", "agreement", "tensors"]


def test_headline_holds_three_measures_and_the_floor(seven: dict[str, str]) -> None:
    values = set(_values(seven["headline"], "value"))
    for item in sample.seven()["candidates"]:
        for name in ("mean", "top5_mean", "max"):
            assert item["kld"][name]["value"] in values
    assert _values(seven["headline"], "floor") == [0.00042]
    assert "4.89 bpw" in seven["headline"]
    assert "sample extreme" in seven["headline"]


def test_each_headline_panel_has_its_own_axis(seven: dict[str, str]) -> None:
    panels = json.loads(seven["headline"])["hconcat"]
    domains = [tuple(panel["layer"][0]["encoding"]["x"]["scale"]["domain"]) for panel in panels]
    assert len(set(domains)) == 3


def test_headline_lines_stand_in_order_of_bits(seven: dict[str, str]) -> None:
    panel = json.loads(seven["headline"])["hconcat"][0]
    domain = panel["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert [line.split("·")[0].strip() for line in domain] == list(sample.QUANTS)


def test_no_whiskers_on_the_maximum(seven: dict[str, str]) -> None:
    document = json.loads(seven["headline"])
    for panel, expected in zip(document["hconcat"], (7, 7, 0), strict=True):
        layers = [layer for layer in panel["layer"] if layer["mark"]["type"] == "rule"]
        (whiskers,) = [layer for layer in layers if "x2" in layer["encoding"]]
        assert len(whiskers["data"]["values"]) == expected


def test_size_chart_is_logarithmic_with_a_band(seven: dict[str, str]) -> None:
    document = json.loads(seven["size"])
    assert document["layer"][0]["mark"]["type"] == "rect"
    assert document["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"
    assert set(_values(seven["size"], "top")) == {0.00042}


def test_unknown_floor_is_said_not_drawn() -> None:
    specs = _specs(sample.one())
    assert "Noise floor unknown: skipped with --no-noise" in specs["headline"]
    assert _values(specs["headline"], "floor") == []
    assert set(specs) == {"headline", "size", "tail", "agreement"}


def test_a_spec_never_loads_anything(seven: dict[str, str]) -> None:
    for spec in seven.values():
        assert '"url"' not in spec
        assert '"href"' not in spec


def test_the_spec_is_the_same_every_time(seven: dict[str, str]) -> None:
    assert _specs(sample.seven()) == seven


def test_png_is_drawn_at_twice_the_size(seven: dict[str, str]) -> None:
    document = svg(seven["size"])
    picture = png(document)
    assert picture.startswith(SIGNATURE)
    width = int.from_bytes(picture[16:20], "big")
    assert width == pytest.approx(2 * float(ET.fromstring(document).get("width", "0")), abs=2)


def test_a_themed_chart_has_words_and_follows_the_page(seven: dict[str, str]) -> None:
    inline = themed(svg(seven["headline"]), "n", 'a "title" <b>', "words")
    root = ET.fromstring(inline)
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert root[0].text == 'a "title" <b>'
    assert root.get("aria-labelledby") == "n-title n-desc"
    assert "var(--ink)" in inline
    assert "#1b1f24" not in inline
    assert "http" not in inline
