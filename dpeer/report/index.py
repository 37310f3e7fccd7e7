"""An index of the pages below a folder: what each found, and the files that it stands on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

from dpeer.errors import ConfigError
from dpeer.files import write_text
from dpeer.integrity import Damaged, parse_state
from dpeer.report.page import templates

NAME = "index.html"
MOST_PAGES, DEEPEST = 2000, 6
HEAD_BYTES = 1 << 16
"""A page's title stands within these."""
CLOSED = {"checkpoints", "csv", "figures", "export", "locks", "logs", "tables", "tokens"}
"""Folders without pages, some of them large."""
KINDS = {
    "demo": "Comparisons",
    "compare": "Comparisons",
    "sweep": "Comparisons",
    "tolerance": "Plans and checks",
    "audit": "Plans and checks",
}
"""Group of a page by its name; pages of runs and fits are known by what lies beside them."""
RUNS, FITS, OTHERS = "Training runs", "Abilities", "Other pages"
ORDER = ("Comparisons", FITS, RUNS, "Plans and checks", OTHERS)
BESIDE = {"export": "model", "adapter": "adapter", "ledger.jsonl": "ledger", "certificate.json": "certificate"}


@dataclass(frozen=True, slots=True)
class Entry:
    """`page`: path below the folder, None for a run that has none yet; `name`: of its folder; `finding`: its title.

    verdict: of a run's certificate, "3 of 4" tolerances met, and `satisfied`, `undecided` or `violated`; empty without
    files: (label, path below the folder) of what lies beside the page
    """

    group: str
    name: str
    finding: str
    page: str | None
    verdict: tuple[str, str] = ("", "")
    files: tuple[tuple[str, str], ...] = ()


def write_index(folder: Path, output: Path | None = None) -> tuple[Path, list[Entry]]:
    """Write index.html into the folder, or `output`; returns its path and what it lists.

    Raises:
        ConfigError: no folder, no page of dpeer below it, or the index cannot be written.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is no folder. Give the folder of a run, of an evaluation, or one that holds some."
        )
    output = output or folder / NAME
    found = entries(folder)
    if not found:
        raise ConfigError(
            f"{folder}: there is no page and no run in it, {DEEPEST} folders deep. `dpeer report RUN`, `dpeer sweep "
            "report FOLDER` and `dpeer irt report FIT` write theirs again."
        )
    here = os.path.relpath(folder, output.parent)
    groups = {group: [entry for entry in found if entry.group == group] for group in ORDER}
    html = templates().get_template("index.html.j2").render(
        name=folder.resolve().name,
        groups={group: rows for group, rows in groups.items() if rows},
        place="" if here == "." else f"{here}/",
        cut=len(found) >= MOST_PAGES,
    )  # fmt: skip
    try:
        write_text(output, html)
    except OSError as error:
        raise ConfigError(
            f"{output}: cannot be written ({error.strerror}). --output FILE writes the index elsewhere."
        ) from None
    return output, found


def entries(folder: Path) -> list[Entry]:
    """Pages and runs below a folder, by name; at most `MOST_PAGES`. Links are not followed."""
    return list(islice(_entries(folder), MOST_PAGES))


def _entries(folder: Path) -> Iterator[Entry]:
    for place, folders, files in os.walk(folder):
        here = Path(place)
        deep = len(here.relative_to(folder).parts)
        folders[:] = [name for name in sorted(folders) if deep < DEEPEST and name not in CLOSED and name[0] != "."]
        pages = [name for name in sorted(files) if name.endswith(".html") and name != NAME]
        run = "ledger.jsonl" in files
        for name in pages:
            if title := _title(here / name):
                yield _entry(folder, here, name, title, run)
        if run and "report.html" not in pages:
            yield _entry(folder, here, None, "no page yet: dpeer watch shows it while it trains", run)


def _entry(folder: Path, here: Path, page: str | None, title: str, run: bool) -> Entry:
    below = here.relative_to(folder)
    own = page in (None, "report.html")
    if run and own:
        group = RUNS
    elif own and (here / "report.json").is_file():
        group = FITS
    else:
        group = KINDS.get(Path(page or "").stem, OTHERS)
    return Entry(
        group,
        (below.as_posix() if below.parts else folder.resolve().name) if own else (below / str(page)).as_posix(),
        title,
        (below / page).as_posix() if page else None,
        _verdict(here) if group == RUNS else ("", ""),
        tuple(_beside(here, below)) if group == RUNS else (),
    )


def _beside(here: Path, below: Path) -> Iterator[tuple[str, str]]:
    for name, label in BESIDE.items():
        if (here / name).exists():
            yield label, (below / name).as_posix()


def _verdict(run: Path) -> tuple[str, str]:
    from dpeer.report.run import Certificate

    try:
        certificate = Certificate.model_validate(parse_state((run / "certificate.json").read_bytes()), strict=False)
    except (OSError, Damaged, ValueError):
        return "", ""
    verdicts = [constraint.verdict for constraint in certificate.constrained]
    if not verdicts:
        return "", ""
    met = verdicts.count("satisfied")
    state = "satisfied" if met == len(verdicts) else "violated" if "violated" in verdicts else "undecided"
    return f"{met} of {len(verdicts)}", state


class _Title(HTMLParser):
    title = ""
    inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag == "title" and not self.title

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.title += data


def _title(page: Path) -> str:
    parser = _Title()
    try:
        with page.open("rb") as file:
            parser.feed(file.read(HEAD_BYTES).decode("utf-8", errors="replace"))
    except OSError:
        return ""
    return " ".join(parser.title.split())
