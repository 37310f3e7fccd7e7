"""Formulas can be set; each numbered equation names its code and its tests, and each test that a page names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from docs.formulas import FORMULA, TAG, drawn, svg
from tests.docs.pages import ROOT, pages

EQUATIONS = [ROOT / "docs" / name for name in ("method.md", "rating_model.md")]
ROW = re.compile(r"^\| \[(\w+)\]\(#(\w+)\) \| (.+?) \| (.+?) \| (.+?) \|$", re.M)
TEST = re.compile(r"\[`([\w/.]+\.py)::(\w+)`\]\(([\w/.-]+)\)")
PLACE = re.compile(r"`([\w/]+\.(?:py|stan|hpp))(?:::(\w+))?`")


@cache
def defined(file: Path) -> frozenset[str]:
    """Names of functions, methods and classes of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, kinds))


def absent(page: Path) -> list[str]:
    """Tests that a page names, as file::function, without there being one, or with a link to another file."""
    faults = []
    for path, name, link in TEST.findall(page.read_text(encoding="utf-8")):
        file = ROOT / "tests" / path
        if not file.is_file() or name not in defined(file) or (page.parent / link).resolve() != file:
            faults.append(f"{path}::{name}")
    return faults


@pytest.mark.parametrize("page", EQUATIONS, ids=lambda page: page.stem)
def test_every_equation_has_its_code_and_its_tests(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    numbers = [TAG.search(m["block"]) for m in FORMULA.finditer(text) if m["block"]]
    rows = ROW.findall(text)
    assert [n[1] for n in numbers if n] == [row[0] for row in rows] and all(numbers) and len(rows) > 20
    assert all(name == anchor for name, anchor, *_ in rows)
    for number, _, _, code, tests in rows:
        assert TEST.search(tests), f"{number} has no test"
        places = PLACE.findall(code)
        assert places, f"{number} has no place in the code"
        for path, name in places:
            assert (ROOT / path).is_file() and (not name or name in defined(ROOT / path)), f"{number}: {path}::{name}"


def test_every_test_that_a_page_names_exists() -> None:
    assert sum(len(TEST.findall(page.read_text("utf-8"))) for page in pages()) > 80
    assert {page.name: found for page in pages() if (found := absent(page))} == {}


def test_a_test_that_is_gone_is_seen(tmp_path: Path) -> None:
    page = ROOT / "docs" / "method.md"
    path, name, link = TEST.findall(page.read_text("utf-8"))[0]
    for file, test in ((path, "test_gone"), ("objective/test_gone.py", name)):
        (tmp_path / "page.md").write_text(f"[`{file}::{test}`]({link})\n")
        assert absent(tmp_path / "page.md") == [f"{file}::{test}"]


def test_formulas_of_all_pages_can_be_set() -> None:
    formulas = [m for page in pages() for m in FORMULA.finditer(page.read_text("utf-8"))]
    assert len(formulas) > 60
    for page in pages():
        assert "```math" not in drawn(page.read_text("utf-8")), page.name


def test_a_formula_is_a_picture_with_its_source_as_words() -> None:
    shown = drawn("Text\n\n```math\na < b \\tag{Q1}\n```\n\nand $`x_d`$.\n")
    assert 'aria-label="a &lt; b"' in shown and '<span id="Q1">(Q1)</span>' in shown and 'aria-label="x_d"' in shown
    assert shown.count("<svg") == 2 and "math" not in shown
    with pytest.raises(ValueError, match="Unknown symbol"):
        svg(r"\nosuchcommand")
