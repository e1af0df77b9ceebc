"""The live page in a real browser: live data, no errors, no other place asked, fits a phone, light and dark."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from proxy_support import Served, ask
from scripted_upstream import Upstream

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import devtools

BINARY = devtools.find()
pytestmark = pytest.mark.skipif(BINARY is None, reason="no browser found")
WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll")
    && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName)"""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    upstream = Upstream()
    one = Served(upstream.url)
    body = {"messages": [{"role": "user", "content": "hidden words"}], "temperature": 0, "stream": True}
    for i in range(14):
        how = "flat" if i in (6, 11) else "nologprobs" if i == 9 else "scripted"
        ask(one.url, {**body, "model": how, "max_tokens": 20 + 17 * i})
    yield one
    one.stop()
    upstream.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[devtools.Browser]:
    with devtools.Browser(str(BINARY)) as opened:
        yield opened


class _Url:
    """What `Browser.open` wants of a path."""

    def __init__(self, url: str) -> None:
        self._url = url

    def resolve(self) -> _Url:
        return self

    def as_uri(self) -> str:
        return self._url


def _open(browser: devtools.Browser, served: Served, width: int, *, dark: bool = False) -> None:
    browser.open(_Url(f"{served.url}/quantvane/"), width, dark=dark)  # type: ignore[arg-type]
    end = time.monotonic() + 20
    while browser.ask("document.querySelectorAll('article').length") != 14 and time.monotonic() < end:
        time.sleep(0.05)
    if shots := os.environ.get("QUANTVANE_SHOTS"):
        browser.shot(Path(shots) / f"watch-{width}-{'dark' if dark else 'light'}.png")


def test_live_without_errors_or_other_places(browser, served):
    _open(browser, served, 1280)
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    own = {f"{served.url}/quantvane/", f"{served.url}/quantvane/state"}
    assert {url for url in asked if not url.startswith("data:")} <= own
    bad = ("Network.loadingFailed", "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [e for e in browser.events if e.get("method") in bad] == []
    assert browser.ask("document.body.dataset.state") == "live"
    assert browser.ask("document.querySelectorAll('article svg').length") == 28
    assert browser.ask("document.querySelectorAll('article .first').length") == 4  # two alarms, two charts each
    assert "hidden words" not in browser.ask("document.body.textContent")
    shown = browser.ask("[...document.querySelectorAll('article .label')].map(e => e.textContent)")
    assert sorted(shown) == ["ALARM"] * 2 + ["INVALID"] + ["NOMINAL"] * 11


def test_new_streams_appear_by_themselves(browser, served):
    _open(browser, served, 1280)
    before = browser.ask("document.querySelector('article .name').textContent")
    body = {"model": "scripted", "messages": [], "temperature": 0, "stream": True}
    ask(served.url, body)
    end = time.monotonic() + 20
    while browser.ask("document.querySelector('article .name').textContent") == before and time.monotonic() < end:
        time.sleep(0.05)
    assert browser.ask("document.querySelectorAll('article').length") == 15
    served.desk.recent.popleft()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows(browser, served, width, dark):
    _open(browser, served, width, dark=dark)
    assert browser.ask("window.innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(WIDE) == []


def test_dark_is_dark(browser, served):
    colour = "getComputedStyle(document.querySelector('.trace')).stroke"
    _open(browser, served, 1280)
    light = browser.ask(colour)
    _open(browser, served, 1280, dark=True)
    assert browser.ask(colour) != light
