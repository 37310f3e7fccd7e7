"""Figures and screenshots of the pages: made by the script, all used, small, and with words for who cannot see them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from docs.figures import PAINTERS, departure, figures, paint_order
from docs.screenshots import SHOTS, Shot, cut, taken
from dpeer.launcher.pdf import PdfError, browser
from dpeer.report.plot import render
from tests.docs.pages import ROOT, pages

PICTURES = ROOT / "docs" / "img"
SHOWN = re.compile(r'<div class="picture[^"]*"><img src="([^"]+)" alt="([^"]+)"></div>')


def test_every_picture_is_made_by_the_script_and_shown_with_words() -> None:
    made = {f"img/concepts/{name}.svg" for name in PAINTERS} | {f"img/reports/{name}.png" for name in SHOTS}
    there = [p for folder in ("concepts", "reports") for p in (PICTURES / folder).iterdir()]
    shown = {src: alt for page in pages() for src, alt in SHOWN.findall(page.read_text("utf-8"))}
    assert made == {str(p.relative_to(ROOT / "docs")) for p in there} == set(shown)
    assert min(len(alt) for alt in shown.values()) > 60
    assert sum(p.stat().st_size for p in there) < 1_000_000


def test_the_page_says_what_its_figures_say() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    titles = {name: (PICTURES / "concepts" / f"{name}.svg").read_text("utf-8") for name in ("margins", "tree")}
    shares = re.search(r"Pairs of T ranked right: (\d+ %), then (\d+ %)", titles["margins"])
    tokens = re.search(r"One record: (\d+) tokens instead of (\d+)", titles["tree"])
    assert shares and f"{shares[1]} of its pairs have a positive margin" in page
    assert f"With constraints it is {shares[2]}" in " ".join(page.split())
    assert tokens and f"As four pairs it has {tokens[2]} tokens" in page and f"as a tree it has {tokens[1]}" in page


def test_the_figure_of_the_order_is_that_of_the_sample() -> None:
    first, second = (render(paint_order, PAINTERS["order"][0], "svg")[0].decode() for _ in range(2))
    assert first == second and first.count("edge of ") == 3 and first.count(">no<") == 2
    assert departure("One. Two! Four.", "One. Two? Three.") == "… Two! Four." and departure("A.", "B.") == "A."


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make demo"):
        figures(tmp_path)
    with pytest.raises(SystemExit, match="make demo"):
        taken("chromium", tmp_path, SHOTS["train_loss"])


def test_paper_around_a_picture_is_cut_and_an_empty_one_refused() -> None:
    paper = Image.new("RGB", (400, 300), "white")
    with pytest.raises(SystemExit, match="no such part"):
        cut(paper)
    paper.paste((0, 0, 0), (100, 50, 120, 60))
    assert cut(paper).size == (20 + 64, 10 + 64)


PAGE = """<html><body style="margin:0"><header><h1>Title</h1></header><main><h2>One</h2><p>first</p>
<h2>Two</h2><p>text</p><table style="height:90px;background:#00f"><tr><td>cell</td></tr></table></main></body></html>"""


@pytest.mark.slow
def test_the_part_of_a_page_is_taken_alike_each_time(tmp_path: Path) -> None:
    try:
        program = browser()
    except PdfError:
        pytest.skip("no browser here takes screenshots")
    (tmp_path / "page.html").write_text(PAGE)
    whole, table = (taken(program, tmp_path, Shot("page.html", "Two", keep)) for keep in ((), ("table",)))
    assert 2 * 90 < table.height < whole.height and (0, 0, 255) in colours(table)
    assert taken(program, tmp_path, Shot("page.html", "Two", ("table",))).tobytes() == table.tobytes()
    for gone in (Shot("page.html", "Three"), Shot("page.html", "Two", (".gone",))):
        with pytest.raises(SystemExit, match="no such part"):
            taken(program, tmp_path, gone)


def colours(picture: Image.Image) -> list[tuple[int, int, int]]:
    rgb = picture.convert("RGB")
    return [colour for _, colour in rgb.getcolors(1_000_000)]
