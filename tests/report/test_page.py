"""The page in a real browser: loads from disk without errors or requests, and fits a phone."""

from collections.abc import Iterator
from pathlib import Path

import devtools
import pytest
import sample

BINARY = devtools.find()
pytestmark = pytest.mark.skipif(
    BINARY is None, reason=f"no browser found (looked for {', '.join(devtools.NAMES)})"
)
WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .chart")
    && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[devtools.Browser]:
    with devtools.Browser(str(BINARY)) as opened:
        yield opened


@pytest.fixture(scope="module", params=["seven", "one", "many", "odd"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp(request.param) / "report.html"
    target.write_bytes(sample.report(request.param)["report.html"])
    return target


def _methods(browser: devtools.Browser, *names: str) -> list[object]:
    return [event["params"] for event in browser.events if event.get("method") in names]


def test_no_errors_and_no_requests(browser: devtools.Browser, page: Path) -> None:
    browser.open(page, 1280)
    assert len(_methods(browser, "Network.requestWillBeSent")) == 1  # the page itself
    assert not _methods(
        browser,
        "Network.loadingFailed",
        "Log.entryAdded",
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
    )
    assert browser.ask("document.querySelectorAll('svg').length") >= 4
    assert browser.ask("document.querySelectorAll('script').length") == 0


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_overflows(browser: devtools.Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.ask("window.innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(WIDE) == []


def test_dark_mode_reaches_the_charts(browser: devtools.Browser, page: Path) -> None:
    first = "[...document.querySelectorAll('svg text')].find(e => e.style.fill.includes('--ink'))"
    ink = f"getComputedStyle({first}).fill"
    browser.open(page, 1280)
    light = browser.ask(ink)
    browser.open(page, 1280, dark=True)
    assert browser.ask(ink) != light
