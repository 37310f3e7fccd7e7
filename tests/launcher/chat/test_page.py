"""The page in a real browser: typed into, voted in by keys and by hand, reloaded, on a desk and on a phone."""

from __future__ import annotations

import csv
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from dpeer.eval.config import Generation
from dpeer.launcher.chat.app import Room, application
from dpeer.launcher.chat.votes import Votes
from dpeer.launcher.cli import app
from tests.launcher.chat.cdp import Browser, browser
from tests.launcher.chat.streaming import KEY, Endpoint, endpoint
from tests.launcher.chat.test_serve import NAMES, served

VOTING = "!document.querySelector('#votes').classList.contains('gone')"
LABELS = """[...document.querySelectorAll('button, select, textarea, input')].filter(e => e.offsetParent)
  .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)"""
CONTRAST = """(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (parts(c).length === 3 || parts(c)[3] > 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = parts(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  return [...document.querySelectorAll("h1, h2, p, label, button, th, td, kbd, span")]
    .filter(e => e.offsetParent && e.innerText && !e.disabled)
    .map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.innerText];
    })
    .filter(([ratio]) => ratio < 4.5);
})()"""
"""Texts with less contrast than WCAG 2 asks of level AA."""


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("CHAT_KEY", KEY)
    with endpoint() as at:
        yield at


@pytest.fixture
def room(there: Endpoint, tmp_path: Path) -> Iterator[tuple[Room, str]]:
    found = Room(
        [served(n, there) for n in NAMES], Generation(), Votes(tmp_path / "votes.csv"), "ann", None, ("A", "T")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(found), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield found, found.address(listener)
        server.should_exit = True
        thread.join(30)


def ask(tab: Browser, text: str) -> None:
    tab.wait("document.activeElement.id === 'text'")
    tab.type(text)
    tab.press("Enter")
    tab.wait(VOTING)


def replies(tab: Browser) -> list[str]:
    found: list[str] = tab.js("[...document.querySelectorAll('.model')].map(e => e.textContent)")
    return found


FOCUS = "document.activeElement.id || document.activeElement.textContent"
WEIGHT = """(() => {
  const [page, ...rest] = ["navigation", "resource"].flatMap(kind => performance.getEntriesByType(kind));
  return [rest.map(r => r.name.split("/").at(-1)), [page, ...rest].reduce((sum, r) => sum + r.transferSize, 0)];
})()"""
"""What the page asked for beside itself, and the bytes of all of it with headers."""


@pytest.mark.timeout(300)
def test_a_person_votes_twenty_times_and_reloads(room: tuple[Room, str], there: Endpoint, tmp_path: Path) -> None:
    found, address = room
    with browser(tmp_path) as tab:
        tab.shape(1100, 800)
        tab.open(address)
        tab.wait("document.querySelectorAll('#left option').length === 2")
        asked, weight = tab.wait(WEIGHT)
        assert asked == ["state"] and weight < 25_000
        tab.wait("performance.getEntriesByName('first-contentful-paint').length === 1")
        ask(tab, "Is 2 + 2 = 5?")
        assert all("answers turn 1: <b>not bold</b>" in text for text in replies(tab))
        assert tab.js("document.querySelectorAll('main b').length") == 0
        assert tab.js("[...document.querySelectorAll('h2')].map(e => e.textContent)") == ["Left", "Right"]
        assert tab.js(LABELS) == [] and tab.js(CONTRAST) == []
        labels = "[...document.querySelectorAll('{}')].map(e => e.getAttribute('aria-label'))"
        assert tab.js(labels.format(".said > [role=article]")) == ["You", "Reply"] * 2
        assert tab.js(labels.format("section button")) == ["Scores: Left", "Scores: Right"]
        tab.picture(tmp_path / "desk.png")
        tab.press("Escape")
        tab.press("2")  # by key: A, the right one
        tab.wait("document.querySelectorAll('#votes .row').length === 1")
        assert tab.js(FOCUS) == "votes"
        tab.press("Enter")  # of somebody who confirms: no vote
        tab.click("#votes button[aria-label='T: a tie']")  # by hand
        names = tab.wait("(t => t[0] !== 'Left' && t)([...document.querySelectorAll('h2')].map(e => e.textContent))")
        assert sorted(names) == sorted(NAMES)
        assert all(text.startswith(name) for text, name in zip(replies(tab), names, strict=True))
        for k in range(9):
            assert tab.js(FOCUS) == "new"
            tab.press("n" if k % 2 else "Enter")
            ask(tab, f"Question {k % 5}?")
            tab.press("Escape")
            tab.press("1")
            tab.wait("document.querySelectorAll('#votes .row').length === 1")
            tab.press("3" if k % 3 else "2")
            tab.wait(f"!({VOTING})")
        tab.open(address)
        assert tab.wait("state && state.votes") == {"A": 10, "T": 10}
        rows = list(csv.DictReader(found.votes.path.open(encoding="utf-8")))
        assert rows[0]["winner"] == names[1] and rows[1]["winner"] == "tie"
        command = ["irt", "fit", str(found.votes.path), "--human", "ann", "-o", str(tmp_path / "fit"), "--approx"]
        fitted = CliRunner().invoke(app, command)
        assert fitted.exit_code == 0, fitted.output
        assert "20 comparisons: 2 models, 6 items, 1 judges, 2 dimensions" in fitted.output
        told = (tmp_path / "fit" / "report.html").read_text(encoding="utf-8")
        assert all(name in told for name in (*NAMES, "ann"))
        tab.shape(390, 800, dark=True)
        ask(tab, "On a phone?")
        assert tab.js("document.documentElement.scrollWidth") <= 390
        assert tab.js(LABELS) == [] and tab.js(CONTRAST) == []
        tab.picture(tmp_path / "phone.png")
        assert tab.errors == []


@pytest.mark.timeout(300)
def test_a_reply_can_be_stopped_and_a_fault_is_told(room: tuple[Room, str], there: Endpoint, tmp_path: Path) -> None:
    _, address = room
    with browser(tmp_path) as tab:
        tab.open(address)
        tab.wait("document.querySelectorAll('#left option').length === 2")
        there.slow.add("peer-model")
        tab.wait("document.activeElement.id === 'text'")
        tab.type("Wait")
        tab.press("Enter")
        tab.wait("document.querySelector('#send').textContent === 'Stop'")
        tab.wait("[...document.querySelectorAll('.model')].some(e => e.textContent.startsWith('peer'))")
        tab.click("#send")
        tab.wait("document.querySelector('#send').textContent === 'Retry'")
        assert "stopped" in tab.js("document.querySelector('main').innerText")
        assert tab.js("document.querySelector('#status').className") == "failed"
        there.go.set()
        there.slow.clear()
        tab.click("#send")  # only the reply that is missing is asked for anew
        tab.wait(VOTING)
        assert all("answers turn 1: <b>not bold</b>" in text for text in replies(tab)) and len(replies(tab)) == 2
        assert len(there.asked) in (2, 3)  # what the model had written meanwhile is kept
        there.broken.add("base-model")
        tab.click("#new")
        tab.wait("document.activeElement.id === 'text'")
        tab.type("Break")
        tab.press("Enter")
        tab.wait("document.querySelector('main').innerText.includes('broke off')")
        assert tab.errors == []
