"""The report of one fit: a page without any outside reference, and every picture and table of it as files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpeer.eval.irt.result import Result
from dpeer.eval.irt.tables import write_tables
from dpeer.eval.irt.types import GRADED
from dpeer.eval.report import words
from dpeer.eval.report.frames import frames, plain
from dpeer.eval.report.picture import Picture
from dpeer.eval.report.sections import one, sections
from dpeer.eval.report.table import Table
from dpeer.files import write_bytes, write_json, write_text
from dpeer.report.page import templates
from dpeer.report.plot import Plot, render, svg_uri
from dpeer.report.text import flatten

FORMATS = ("svg", "png")
GATE = {
    "rhat_max": "Largest R-hat (below 1.01)",
    "ess_bulk_min": "Smallest bulk ESS (above 400)",
    "ess_tail_min": "Smallest tail ESS (above 400)",
    "divergences": "Divergent transitions (none)",
    "ebfmi_min": "Smallest E-BFMI (above 0.3)",
    "misfit": "Share of judge x model cells that misfit (at most 0.25)",
    "misfit_pairs": "Share of compared pairs that misfit (at most 0.25)",
    "treedepth_hits": "Trajectories at the depth limit",
    "chains": "Chains",
    "draws": "Draws per chain",
    "parameters": "Parameters checked",
}


@dataclass(frozen=True, slots=True)
class Chapter:
    """A section with its pictures drawn."""

    heading: str
    text: str
    hints: list[str]
    """Notes that several of its pictures share."""
    plots: list[Plot]
    tables: list[Table]
    estimates: bool

    @property
    def anchor(self) -> str:
        return words.slug(self.heading).lower()


def write_report(result: Result, folder: Path, title: str, notes: Sequence[str] = ()) -> Path:
    """Write report.html, figures/*.svg and *.png, tables/*.csv and *.json, and report.json, which describes figures.

    Equal results give equal bytes. Pictures and tables of an earlier report that this one does not write are removed.

    Returns:
        The path of the page.
    """
    known = frames(result.tables)
    claim = bool(result.gate.get("green"))
    finding = words.finding(known) if claim else words.no_claim(result.gate)
    stale = _listed(folder)
    write_tables(result, folder / "tables")  # before the pictures, which take long and may fail
    index: list[dict[str, str]] = []
    chapters = []
    for section in sections(known, claim):
        drawn = [_save(picture, claim, folder / "figures", index) for picture in section.pictures]
        hints, plots = _hoisted(drawn)
        chapters.append(Chapter(section.heading, section.text, hints, plots, section.tables, section.estimates))
    written = [f"figures/{figure['name']}.{kind}" for figure in index for kind in FORMATS]
    written += [f"tables/{name}.{kind}" for name in result.tables for kind in ("csv", "json")]
    page = templates("dpeer.eval.report").get_template("evaluation.html.j2").render(
        title=title,
        finding=finding,
        setting=words.setting(known, result.facts),
        claim=claim,
        reasons=list(result.gate.get("reasons", ())),
        advice=list(result.gate.get("advice", ())),
        notes=[*notes, *result.notes],
        chapters=chapters,
        gate=list(_gate(result.gate)),
        diagnostics=[*one(known, "diagnostics"), *one(known, "scales")],
        limits=list(_limits(result.facts)),
        metadata=list(_facts(result.facts, nested=False)),
        options=list(_facts(result.facts, nested=True)),
        files=written,
    )  # fmt: skip
    write_text(folder / "report.html", page)
    write_json(
        folder / "report.json", {"title": title, "finding": finding, "claim": claim, "figures": index, "files": written}
    )
    for name in stale - set(written):
        (folder / name).unlink(missing_ok=True)
    return folder / "report.html"


def _save(picture: Picture, claim: bool, folder: Path, index: list[dict[str, str]]) -> Plot:
    """Draw one picture, save it in every format and enter it in the index, under a name of its own."""
    taken = {figure["name"].lower() for figure in index}
    names = (picture.name, *(f"{picture.name}_{k}" for k in range(2, len(taken) + 3)))
    name = next(name for name in names if name.lower() not in taken)
    files = render(picture.paint, picture.height_in, *FORMATS)
    for kind, file in zip(FORMATS, files, strict=True):
        write_bytes(folder / f"{name}.{kind}", file)
    plot = Plot(picture.title(claim), picture.alt, svg_uri(files[0]), picture.note)
    index.append({"name": name, "title": plot.title, "alt": plot.alt, "note": plot.note})
    return plot


def _hoisted(plots: list[Plot]) -> tuple[list[str], list[Plot]]:
    """Notes that more than one plot has, once; and the plots without them."""
    seen = Counter(plot.note for plot in plots if plot.note)
    shared = [note for note, times in seen.items() if times > 1]
    return shared, [replace(plot, note="") if plot.note in shared else plot for plot in plots]


def _listed(folder: Path) -> set[str]:
    """Pictures and tables that an earlier report lists; only plain files of the two folders that a report owns."""
    try:
        listed = [str(name) for name in json.loads((folder / "report.json").read_bytes())["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in listed if re.fullmatch(r"(figures|tables)/[\w-]+\.(svg|png|csv|json)", name)}


def _gate(gate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, label in GATE.items():
        value = gate.get(key)
        if words.known(value):
            whole = float(value) == int(value) or key.startswith("ess")
            yield label, words.count(value) if whole else words.fixed(value, 3 if "rhat" in key else 2)


def _facts(facts: Mapping[str, Any], nested: bool) -> Iterator[tuple[str, str]]:
    """The plain facts, or those in groups such as the options of the fit; notes stand at the top of the page."""
    for key, value in plain(facts).items():
        given = key not in ("notes", "design_warnings") and value not in (None, [], {})
        if given and isinstance(value, Mapping) is nested:
            yield from flatten({key: value})


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    options = facts.get("options")
    graded = isinstance(options, Mapping) and options.get("model") == GRADED
    return words.limits(facts.get("earlier_origin", ()), facts.get("people_scale", ()), graded)
