"""Hooks of the site: README, CONTRIBUTING and CHANGELOG become pages of it, links find their way, formulas are set."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.formulas import drawn  # noqa: E402

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NAMES = re.compile(r"(?<=<code>)[^<]*::[^<]*(?=</code>)")
PARTS = re.compile(r"::|[/_]")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def moved(markdown: str, source: str, target: str) -> str:
    """The text of `source`, a path in the repository, with relative links as they are from the page `target`.

    A link to a file that is no page of the site becomes plain text.
    """

    def link(match: re.Match[str]) -> str:
        picture, text, path, anchor = match.groups(default="")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if page is None:
            return text
        return f"{picture}[{text}]({posixpath.relpath(page, posixpath.dirname(target) or '.')}{anchor})"

    return LINK.sub(link, markdown)


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        text = moved((ROOT / name).read_text(encoding="utf-8"), name, page)
        files.append(File.generated(config, page, content=text.replace('"docs/img/', '"img/')))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    return drawn(markdown if uri in PAGES.values() else moved(markdown, f"docs/{uri}", uri))


def on_page_content(html: str, **_: Any) -> str:
    """Long names such as file.py::function may break behind their parts."""
    return NAMES.sub(lambda match: PARTS.sub(r"\g<0><wbr>", match[0]), html)


class FieldLists(griffe.Extension):
    """Lines `name: meaning` of a docstring become a list; Markdown would run them together."""

    FIELD = re.compile(r"^(`?[A-Za-z_][\w, `]*`?): (?=\S)", re.M)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            first, gap, rest = obj.docstring.value.partition("\n\n")
            blocks = [self._listed(block) for block in rest.split("\n\n")]
            obj.docstring.value = first + gap + "\n\n".join(blocks)

    def _listed(self, block: str) -> str:
        lines = block.splitlines()
        if len(lines) < 2 or not all(self.FIELD.match(line) for line in lines[:2]):
            return block
        return "\n".join(
            self.FIELD.sub(r"- **\1**: ", line) if self.FIELD.match(line) else f"    {line}" for line in lines
        )
