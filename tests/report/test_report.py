"""The report's files: nothing external, nothing unescaped, nothing left unsaid."""

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import sample

from quantvane.report import build_report


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def seven() -> dict[str, bytes]:
    return sample.report("seven")


@pytest.fixture(scope="module")
def odd() -> dict[str, bytes]:
    return sample.report("odd")


def test_the_files(seven: dict[str, bytes]) -> None:
    names = ["headline", "size", "tail", "confidence", "agreement", "tensors"]
    expected = {f"charts/{name}.{kind}" for name in names for kind in ("svg", "png", "vl.json")}
    assert set(seven) == expected | {"report.html", "report.md"}
    for path, content in seven.items():
        if path.endswith(".svg"):
            ET.fromstring(content)
        elif path.endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert len(content) > 5000
        elif path.endswith(".json"):
            json.loads(content)


def test_the_same_summary_gives_the_same_bytes() -> None:
    assert build_report(sample.one()) == sample.report("one")


@pytest.mark.parametrize("name", ["one", "many", "odd"])
def test_every_chart_of_every_sample_is_sound(name: str) -> None:
    for path, content in sample.report(name).items():
        if path.endswith(".svg"):
            root = ET.fromstring(content)
            assert root.tag.endswith("svg")
            assert "NaN" not in "".join(value for element in root.iter() for value in element.attrib.values())
            assert 500 < float(root.get("width", "0")) < 1500, path


@pytest.mark.parametrize("which", ["seven", "odd"])
def test_the_page_needs_nothing_but_itself(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)["report.html"].decode()
    found = Elements(page)
    loading = {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "base",
        "form",
        "audio",
        "video",
        "source",
        "image",
    }
    assert not loading & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), tag
    css = " ".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert "url(" not in css
    assert "@import" not in css
    if which == "seven":
        assert not re.search(r"https?:", page)


def test_ids_are_unique_and_links_lead_somewhere(odd: dict[str, bytes]) -> None:
    found = Elements(odd["report.html"].decode())
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        href = attributes.get("href") or "#"
        if href.startswith("#") and href != "#":
            assert href[1:] in ids
        for label in (attributes.get("aria-labelledby") or "").split():
            assert label in ids


def test_hostile_names_are_text(odd: dict[str, bytes]) -> None:
    page = odd["report.html"].decode()
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;" in page
    assert any("<script>alert('x')</script>" in text for text in Elements(page).words)
    card = odd["report.md"].decode()
    assert "<script" not in card
    assert not re.search(r"(?<!\\)\]\(http", card)
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    counts = {
        len(re.findall(r"(?<!\\)\|", row)) for row in rows[: rows.index(next(r for r in rows if "F16" in r))]
    }
    assert len(counts) == 1
    for path, content in odd.items():
        if path.endswith(".svg"):
            assert b"<script" not in content


def test_nulls_are_dashes_that_lead_to_their_reason(odd: dict[str, bytes]) -> None:
    page = odd["report.html"].decode()
    note = re.search(r'<li id="note-(\d+)">the engine gave NaN logits</li>', page)
    assert note
    assert re.search(rf'<td>—<sup><a href="#note-{note.group(1)}" title="the engine gave NaN logits"', page)
    outside = re.sub(r"<svg.*?</svg>", "", page, flags=re.S).replace("NaN logits", "")
    assert not re.search(r"\b(nan|None|null)\b", outside)
    card = odd["report.md"].decode()
    assert re.search(r"\| — \(\d\)", card)
    assert re.search(r"\(\d\) the engine gave NaN logits", card)


def test_values_intervals_ties_and_floor_are_on_page_and_card(seven: dict[str, bytes]) -> None:
    for path in ("report.html", "report.md"):
        text = seven[path].decode()
        for words in (
            "0.001653",
            "[0.001569, 0.001737]",
            "4, tied",
            "Q4_K_M and IQ4_NL are tied.",
            "0.000420",
            "9f2c4e1ab07d5533",
            "b4999",
            "Q5_K",
        ):
            assert words in text, (path, words)


def test_parts_glossary_and_settings_are_on_the_page(seven: dict[str, bytes]) -> None:
    text = " ".join(Elements(seven["report.html"].decode()).words)
    for words in (
        "Corpus: books",
        "Corpus: code",
        "Category: prose",
        "reference confidence",
        "position in the window",
        "n_gpu_layers 0",
        "Jensen–Shannon",
        "noise floor",
        "Glossary",
        "Q5_1 10%",
    ):
        assert words in text, words


def test_absent_parts_leave_no_empty_section() -> None:
    page = sample.report("one")["report.html"].decode()
    assert "Corpus:" not in page
    assert "None" not in page
    assert "How far one candidate moved from F16" in page


def test_charts_and_tables_are_accessible(seven: dict[str, bytes]) -> None:
    found = Elements(seven["report.html"].decode())
    pictures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(p["role"] == "img" and p["aria-labelledby"] for p in pictures)
    headings = [attributes for tag, attributes in found.tags if tag == "th"]
    assert all(attributes.get("scope") in ("row", "col") for attributes in headings)
    assert sum(tag == "caption" for tag, _ in found.tags) == sum(tag == "table" for tag, _ in found.tags)
    assert ("html", {"lang": "en"}) in found.tags


def test_the_card_links_only_to_files_of_the_report(seven: dict[str, bytes]) -> None:
    links = re.findall(r"\]\(([^)]*)\)", seven["report.md"].decode())
    assert len(links) == 6
    assert set(links) <= set(seven)


def test_importing_the_room_loads_no_drawing_library() -> None:
    heavy = ("altair", "vl_convert", "jinja2", "rich", "torch", "llama_cpp")
    code = f"import sys, quantvane.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_building_takes_less_than_six_seconds_of_processor_time() -> None:
    # Processor time of all threads, not the clock: other work on the machine must not decide this.
    start = time.process_time()
    build_report(sample.seven())
    assert time.process_time() - start < 6
