"""Text that users and models gave, for each medium that shows it: it stays text there, and no markup or command.

HTML is escaped by the templates (`report.page.templates`), which pass all values through `visible`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from typing import Any

from dpeer.errors import ConfigError

HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories that are never shown: controls (terminal commands begin with one), half characters, line ends."""
TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Bidirectional controls: they reorder what stands beside them."""
NAME_BYTES = 255
"""Longest name that file systems take."""


def visible(text: str) -> str:
    """The text with a replacement character for each that is not seen but acts; line ends and tabs stay."""
    return "".join(
        c if c in "\n\t" or not (c in TURNS or unicodedata.category(c) in HIDDEN) else "\ufffd"
        for c in text.replace("\r\n", "\n")
    )


def markup(text: object) -> str:
    """For rich, which reads `[/]` as an end and `[red]` as a colour."""
    from rich.markup import escape

    return escape(visible(str(text)))


def _one_line(text: object) -> str:
    return re.sub(r"[ \t\n]+", " ", visible(str(text))).strip(" ")


def markdown(text: object) -> str:
    """For a line or a table's cell in GitHub's dialect."""
    line = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+#=.)])", r"\1\\\2", line)


_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the beginning of a row it would be an option of the line end before it
    "]": "{]}",
}


def latex(text: object) -> str:
    """For a cell of a LaTeX table."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def csv_cell(value: Any) -> Any:
    """For a CSV file that a spreadsheet may open: what it would run as a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    value = visible(value)
    return f"'{value}" if value.lstrip()[:1] in tuple("=+-@") or value[:1] == "\t" else value


def file_name(text: str, most: int = NAME_BYTES) -> str:
    """A name of at most `most` bytes; of a longer one the beginning and a hash of the whole."""
    if len(text.encode()) <= most:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text.encode()[: most - 13].decode(errors='ignore')}-{digest}"


def sbatch(option: str) -> str:
    """`--name=value` as a `#SBATCH` line of a job script takes it. ConfigError: it is no single line."""
    if visible(option) != option or "\n" in option:
        raise ConfigError(f"{option!r} cannot be an option of sbatch: it holds a line end or another control character")
    name, equals, value = option.partition("=")
    plain = re.fullmatch(r"[\w@%+=:,./\[\]*-]*", value, re.ASCII)
    return f"{name}{equals}{value if plain else shlex.quote(value)}"
