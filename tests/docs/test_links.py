"""Every relative link and anchor of README, CONTRIBUTING and docs leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, anchors, dead_links, links, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert dead_links(page) == []


def test_dead_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b`: c!\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#a-b-c) [c](other.md#twice-1) [d](#here) [e](https://example.org/x)\n\n## Here\n"
    page.write_text(good + "`[code](gone.md)`\n```text\n[code](gone.md)\n```\n")
    assert dead_links(page) == [] and len(links(page.read_text())) == 5
    page.write_text(good + "[x](gone.md) ![y](gone.svg) [z](other.md#gone)\n")
    assert dead_links(page) == ["gone.md", "gone.svg", "other.md#gone"]


def test_anchors_are_those_of_the_headings() -> None:
    assert anchors("# After: may it be believed?\n```text\n# not one\n```\n") == {"after-may-it-be-believed"}
