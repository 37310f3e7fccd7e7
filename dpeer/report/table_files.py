"""Tables of estimates as files: CSV and JSON with every column, Markdown and LaTeX with "1.20 [0.95, 1.46]" in one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dpeer.escape import csv_cell, latex, markdown
from dpeer.files import write_text

FORMATS = ("csv", "json", "md", "tex")
PLACES = 2
GIVEN = ("tolerance",)
"""Columns of settings, which are not rounded."""
PROBABILITY = re.compile(r"(^|_)(p|probability)(_|$)")
"""Names of columns whose 0 and 1 are rounded, and no certainty."""
BOUNDS = (("_low", "_high"), ("_lower", "_upper"), (" low", " high"))


def write_frames(frames: Mapping[str, pd.DataFrame], folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Each frame as `folder`/NAME.FORMAT; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_text = {"csv": as_csv, "json": as_json, "md": as_markdown, "tex": as_latex}
    written = []
    for name, frame in frames.items():
        for kind in formats:
            written.append(folder / f"{name}.{kind}")
            write_text(written[-1], as_text[kind](frame))
    return written


def as_csv(frame: pd.DataFrame) -> str:
    return str(frame.map(csv_cell).to_csv(index=False))


def as_json(frame: pd.DataFrame) -> str:
    """Records; null where unknown."""
    return str(frame.to_json(orient="records", indent=1, double_precision=10))


def as_markdown(frame: pd.DataFrame) -> str:
    """A table in GitHub's dialect."""
    shown = _shown(frame)
    head = [markdown(_title(name)) for name in shown]
    rule = ["---:" if _numeric(frame[name]) else "---" for name in shown]
    columns = [cells if _numeric(frame[name]) else map(markdown, cells) for name, cells in shown.items()]
    rows = zip(*columns, strict=True)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def as_latex(frame: pd.DataFrame) -> str:
    """A tabular that needs the package booktabs."""
    shown = _shown(frame)
    columns = "".join("r" if _numeric(frame[name]) else "l" for name in shown)
    head = [latex(_title(name)) for name in shown]
    columns_of_cells = [
        [_MINUS.sub("$-$", latex(cell)) if _numeric(frame[name]) else latex(cell) for cell in cells]
        for name, cells in shown.items()
    ]
    rows = zip(*columns_of_cells, strict=True)
    lines = [" & ".join(cells) + r" \\" for cells in (head, *rows)]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}", ""])


_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def _shown(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Cells by column; bounds stand in the cell of their estimate."""
    bounds = {str(name): found for name in frame if (found := _bounds(frame, str(name)))}
    within = {column for pair in bounds.values() for column in pair}
    shown = {}
    for name in map(str, frame):
        if name in within:
            continue
        likely = _numeric(frame[name]) and PROBABILITY.search(name) is not None
        cells = [_likely(value) if likely else _cell(value, given=name in GIVEN) for value in frame[name]]
        if name in bounds:
            ends = zip(*(frame[column] for column in bounds[name]), strict=True)
            cells = [
                f"{cell} [{_cell(low)}, {_cell(high)}]" if cell and pd.notna(low) else cell
                for cell, (low, high) in zip(cells, ends, strict=True)
            ]
        shown[name] = cells
    return shown


def _bounds(frame: pd.DataFrame, name: str) -> tuple[str, str] | None:
    """The columns that hold the ends of a column's interval."""
    pairs = ((f"{name}{low}", f"{name}{high}") for low, high in BOUNDS)
    return next((pair for pair in pairs if pair[0] in frame and pair[1] in frame), None)


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _title(name: str) -> str:
    return name.replace("_", " ")


def _likely(value: float) -> str:
    """A probability. Of draws and simulations none is 0 or 1."""
    text = _cell(value)
    return {f"{0:.{PLACES}f}": "<0.01", f"{1:.{PLACES}f}": ">0.99"}.get(text, text)


def _cell(value: object, given: bool = False) -> str:
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        text = f"{value:g}" if given and round(float(value), PLACES) != float(value) else f"{value:.{PLACES}f}"
        return text.lstrip("-") if float(text) == 0 else text
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
