"""The index of a folder lists each page with its finding, leads to it, and stays plain text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from dpeer.errors import ConfigError
from dpeer.report.index import entries, write_index
from dpeer.report.page import write_report


class Links(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(unquote(dict(attrs)["href"] or ""))


def page(path: Path, title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<!DOCTYPE html><html><head><title>{title}</title></head></html>")


def test_pages_are_grouped_with_findings_verdicts_and_files(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_report(make_run("trained"))
    make_run("still training", certificate=False)
    page(tmp_path / "demo.html", "Lagrangian is &lt;best&gt; &amp; more")
    page(tmp_path / "evaluation" / "irt" / "report.html", "peer is better")
    (tmp_path / "evaluation" / "irt" / "report.json").write_text("{}")
    for closed in ("trained/checkpoints/step-1", "trained/export", ".git", "evaluation/irt/figures"):
        page(tmp_path / closed / "report.html", "not a result")
    page(tmp_path / "notes.html", "")
    path, found = write_index(tmp_path)
    assert [(e.group, e.name, e.page) for e in found] == [
        ("Comparisons", "demo.html", "demo.html"),
        ("Abilities", "evaluation/irt", "evaluation/irt/report.html"),
        ("Training runs", "still training", None),
        ("Training runs", "trained", "trained/report.html"),
    ]
    assert found[0].finding == "Lagrangian is <best> & more" and found[-1].verdict[0].endswith("of 4")
    assert ("certificate", "trained/certificate.json") in found[-1].files
    links = Links(path).found
    assert {"demo.html", "trained/report.html", "trained/ledger.jsonl"} < set(links)
    assert all((tmp_path / link).exists() for link in links)
    before = path.read_bytes()
    assert write_index(tmp_path)[0].read_bytes() == before  # it does not list itself
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    other, _ = write_index(tmp_path, elsewhere / "all.html")
    assert all((elsewhere / link).exists() for link in Links(other).found) and Links(other).found


def test_hostile_names_and_titles_stay_text(tmp_path: Path) -> None:
    name = "a\"><script>alert(1)<b>' #?%20\x1b[31m"
    page(tmp_path / name / "sweep.html", "</title><script>x</script>")
    page(tmp_path / "b" / "sweep.html", "&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;")
    path, found = write_index(tmp_path)
    text = path.read_text()
    assert "<script" not in text and "\x1b" not in text
    assert [entry.name for entry in found] == ["b/sweep.html"]  # a page without a title is none of ours
    page(tmp_path / name / "sweep.html", "found")
    path, found = write_index(tmp_path)
    text = path.read_text()
    assert "<script" not in text and "\x1b" not in text and len(found) == 2
    assert all((tmp_path / link).is_file() for link in Links(path).found)


def test_links_are_not_followed_and_nothing_is_said_plainly(tmp_path: Path) -> None:
    page(tmp_path / "real" / "sweep.html", "found")
    (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(entries(tmp_path)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no page and no run"):
        write_index(tmp_path / "empty")
    with pytest.raises(ConfigError, match="is no folder"):
        write_index(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"cannot be written .*--output"):
        write_index(tmp_path / "real", tmp_path / "real" / "sweep.html" / "x.html")
