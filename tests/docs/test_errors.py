"""Every error that the code can raise has a section on the page of errors, and the command line names it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from dpeer.launcher import faq
from dpeer.launcher.cli import app
from dpeer.launcher.faq import CLASSES, PARTS, UNEXPECTED, section_of
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ANCHORS = re.findall(r'<a id="([^"]+)"></a>', PAGE)
FOLDERS = {"dpeer": "dpeer", "eval": "dpeer.eval", "launcher": "dpeer.launcher"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder != "dpeer" or inner[0] not in ("eval", "launcher"):
                yield ".".join((package, *(part for part in inner if part != "__init__"))), ast.parse(path.read_text())


def made() -> list[tuple[str, list[str]]]:
    """(module, classes from the raised one upwards) of each error of dpeer's own that is made."""
    trees = list(modules())
    bases = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for _, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def line(name: str) -> list[str]:
        return [name, *(above for base in bases.get(name, []) for above in line(base))]

    found = []
    for module, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                classes = line(node.func.id)
                if "DpeerError" in classes:
                    found.append((module, classes))
    return found


def test_every_error_has_a_section_and_every_section_is_reached() -> None:
    sites = made()
    reached = {section_of(classes, module) for module, classes in sites}
    assert len(sites) > 500 and reached <= set(ANCHORS)
    assert set(ANCHORS) - reached == {UNEXPECTED, "missing-part"} and len(ANCHORS) == len(set(ANCHORS))


def test_the_tables_name_what_exists() -> None:
    trees = dict(modules())
    packages = {module.rpartition(".")[0] for module in trees} | set(trees)
    classes = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert set(PARTS) <= packages and set(CLASSES) - classes == {"ModuleNotFoundError"}
    assert {*CLASSES.values(), *PARTS.values()} <= set(ANCHORS)


def test_every_section_says_what_to_do() -> None:
    for anchor in ANCHORS:
        text = PAGE.partition(f'<a id="{anchor}"></a>')[2].partition("<a id=")[0]
        assert re.search(r"^##", text, re.M) and len(text.split()) > 15 and ("`" in text or "](" in text), anchor


def test_the_command_line_prints_the_section(tmp_path: Path) -> None:
    for arguments, anchor in (
        (["train", "demo", "--set", "training.stepps=3"], "recipe"),
        (["data", "show", str(tmp_path / "none.jsonl")], "data"),
        (["report", str(tmp_path)], "run-folder"),
        (["irt", "fit", str(tmp_path / "none.parquet")], "ratings"),
        (["bench", "no-such"], "bench"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1 and f"see: dpeer help {anchor}\n" in result.output, result.output


def test_help_shows_the_section_that_the_line_names() -> None:
    listed = CliRunner().invoke(app, ["help"]).output.splitlines()
    assert [line.split()[0] for line in listed] == ANCHORS and faq.PAGE.read_text(encoding="utf-8") == PAGE
    for anchor in ANCHORS:
        shown = CliRunner().invoke(app, ["help", anchor], env={"COLUMNS": "120"})
        heading, *text = shown.output.split("\n")
        title = re.search(rf'id="{anchor}"></a>\n+#+ (.*)', PAGE)
        assert title and title[1].replace("`", "") in heading and len(" ".join(text).split()) > 10, shown.output
        assert "##" not in shown.output and "<a id" not in shown.output
    assert "(docs/planning.md)" in CliRunner().invoke(app, ["help", "training"]).output


def test_help_names_what_is_near_and_what_is_a_command() -> None:
    for word, said in (("bugdet", "did you mean budget?"), ("train", "train is a command: dpeer train --help")):
        result = CliRunner().invoke(app, ["help", word])
        assert result.exit_code == 1 and said in result.output, result.output
