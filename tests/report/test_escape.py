"""Hostile names in every medium: each has a judge of its own that knows nothing of how dpeer escapes."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table

from dpeer import escape
from dpeer.config_io import load_config
from dpeer.errors import ConfigError
from dpeer.launcher import progress
from dpeer.launcher.slurm import Request, job_script
from dpeer.report.card import model_card
from dpeer.report.page import templates, write_report
from dpeer.report.sweep_page import _csv
from tests.browser import active_parts
from tests.eval.made_results import make_result

DEMO = load_config(Path(__file__).parents[2] / "launcher" / "recipes" / "demo.yaml")
HOSTILE = [
    "tone [/formal]", "[bold red]", "a\\", "[link=http://x]y[/link]", "\x1b[31mred\x1b]0;title\x07", "\x9b2J", "a\rb",
    "\u202egnp.exe", "<script>document.title='owned'</script>", '"><img src=x onerror=alert(1)>', "</title></td>&amp;",
    "[x](javascript:alert(1))", "![x](http://x)", "a|b", "`code`", "*em* _em_ ~~s~~", "# head", "- item", "1. item",
    "$x^2$", "\\input{/etc/passwd}", "100% & #1_{a}~^", "=HYPERLINK(\"http://x\")", "+1", "-1+1", "@SUM(A1)", "\t=1",
    " =1", "a,b;\"c\"", "x\n#SBATCH --account=other", "$(id)", "`id`", "\u2028line", "\ud800", "é" * 300,
]  # fmt: skip
SYNTAX = st.text(
    st.sampled_from("ab1 []()<>&*_`|~$#\\/{}=+-@'\"!:;,\t\n\r\x1b\x07\x9b\u202e\u2066\u2028é"), max_size=40
)
SOME = settings(max_examples=60, deadline=None)
names = st.one_of(st.sampled_from(HOSTILE), SYNTAX, st.text(max_size=40))


def acts(text: str) -> list[str]:
    """Characters that a terminal or a reader's eye obeys instead of showing."""
    bidi = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return [c for c in text if (unicodedata.category(c) in ("Cc", "Zl", "Zp") and c not in "\n\t") or
            unicodedata.bidirectional(c) in bidi]  # fmt: skip


def printed(*things: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=400, force_terminal=True, color_system=None, emoji=False, highlight=False)
    for thing in things:
        console.print(thing, soft_wrap=True)
    return stream.getvalue()


@SOME
@given(names)
def test_terminal(name: str) -> None:
    table = Table("name", box=None, pad_edge=False)
    table.add_row(escape.markup(name))
    shown = printed(f"[bold]{escape.markup(name)}[/] end")
    assert acts(shown) == [] and acts(printed(table)) == []
    assert shown == f"{escape.visible(name).expandtabs(8)} end\n" or "\t" in name or "\n" in name


@SOME
@given(names)
def test_html(name: str) -> None:
    found: list[Any] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            found.append((tag, [a for a, _ in attributes]))

    page = templates().from_string('<p title="{{ x }}">{{ x }}</p>').render(x=name)
    Reader().feed(page)
    assert found == [("p", ["title"])] and acts(page) == []


@SOME
@given(names)
def test_markdown(name: str) -> None:
    safe = escape.markdown(name)
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    line, cell = reader.parse(f"{safe}\n"), reader.parse(f"| a | b |\n|---|---|\n| {safe} | 7 |\n")
    texts = [part for token in (*line, *cell) for part in token.children or ()]
    assert {part.type for part in texts} <= {"text", "text_special"}
    assert {token.type for token in line} <= {"paragraph_open", "inline", "paragraph_close"}
    assert [token.content for token in cell if token.type == "inline"][-1] == "7"
    assert sum(token.type == "td_open" for token in cell) == 2 and acts(safe) == [] and "\n" not in safe


@SOME
@given(st.lists(names, min_size=1, max_size=3))
def test_csv(row: list[str]) -> None:
    text = _csv([dict.fromkeys(row, name) | {"number": -1.5} for name in row])
    table = list(csv.reader(io.StringIO(text)))
    assert not [cell for line in table for cell in line if re.match(r"\s*[=+@-]", cell) and cell != "-1.5"]
    assert len({len(line) for line in table}) == 1 and len(table) == len(row) + 1
    assert all(acts(cell) == [] for line in table for cell in line)


@SOME
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.text(min_size=1, max_size=4))
def test_file_names(name: str, more: str) -> None:
    name, other = name.encode(errors="ignore").decode(), (name + more).encode(errors="ignore").decode()
    found = {escape.file_name(name), escape.file_name(other)}
    assert all(len(f.encode()) <= 255 for f in found) and len(found) == len({name, other})


@SOME
@given(names)
@example("a b'c\"d\\e#f")
def test_sbatch(name: str) -> None:
    options = (f"--comment={name}",)
    try:
        script = job_script(DEMO, Path("/c.yaml"), Request(1, 0, options=options))
    except ConfigError as error:
        unprinted = [c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp")]
        assert "control character" in str(error) and unprinted
        return
    (line,) = [line for line in script.split("\n") if "comment" in line]
    assert line.startswith("#SBATCH --comment=")
    assert shlex.split(line.removeprefix("#SBATCH ")) == [options[0]]


def test_dimension_names_end_neither_progress_nor_the_tables_of_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    from dpeer.eval.irt.terminal import terminal

    stream = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=stream, force_terminal=True, width=300))
    rows = {name: {"loss": 0.5} for name in HOSTILE}
    entry = {"step": 1, "dimensions": rows, "constraints": {name: {"multiplier": 1.0} for name in HOSTILE}}
    with progress.Progress("run", 2, 0) as bar:
        bar.update(entry, {"tokens_per_second": 1.0})
        bar.warn("about tone [/formal]")
    assert "tone [/formal]" in stream.getvalue()
    assert acts(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", stream.getvalue())) == []
    shown = printed(*terminal(make_result(dimensions=HOSTILE[:4], models=HOSTILE[:3], judges=HOSTILE[4:6])))
    assert "tone [/formal]" in shown and "[bold red]" in shown and acts(shown) == []


def renamed(tree: Any, new: dict[str, str]) -> Any:
    """A JSON tree with other dimension names, also in the names that are made of them."""
    if isinstance(tree, dict):
        return {renamed(k, new): renamed(v, new) for k, v in tree.items()}
    if isinstance(tree, list):
        return [renamed(v, new) for v in tree]
    parts = re.split(r"(\+| over )", tree) if isinstance(tree, str) else []
    return "".join(new.get(p, p) for p in parts) if parts and set(parts[::2]) <= set(new) else tree


def test_page_and_card_of_a_run_with_hostile_names(make_run: Callable[..., Path], amend: Any) -> None:
    folder = make_run(steps=3)
    attacks = (HOSTILE[8], HOSTILE[9], "[x](javascript:alert(1))", "a|b [/formal]")
    new = dict(zip("EATC", attacks, strict=True))
    for name in ("manifest.json", "ledger.jsonl", "certificate.json"):
        amend(folder / name, lambda content: renamed(content, new))
    amend(folder / "manifest.json", lambda m: m | {"config": m["config"] | {"name": HOSTILE[8]}})
    card = model_card(folder).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(card)
    parts = {part.type for token in tokens for part in token.children or ()}
    assert not parts & {"html_inline", "link_open", "image"} and "html_block" not in {t.type for t in tokens}
    assert json.dumps("javascript")[1:-1] in card
    assert active_parts(write_report(folder)) == []


def test_line_ends_of_windows_are_line_ends() -> None:
    assert escape.visible("a\r\nb") == "a\nb" and escape.visible("a\rb") == "a\ufffdb"
