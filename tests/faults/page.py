"""docs/faults.md: the catalogue with what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.catalogue import CATALOGUE, MEANS, Fault

PATH = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = "| fault | what is done | promised | seen | with |\n|---|---|---|---|---|\n"
BEFORE = """# Faults that were tried

Each row was done to a toy run or evaluation, on purpose and at an exact place. Afterwards the same command was
started again, once the way back that a message named was taken. What was seen counts only when

- ledger, certificate, held-out margins and exported weights are those of an undisturbed run, byte by byte (of an
  evaluation: answers, the table of ratings, draws),
- the messages named file and remedy, and none was a traceback,
- no process, lock, temporary file or temporary folder is left.

Runs are of one process on the CPU, without Ray:

<!-- not run: minutes; tests/faults runs a part -->

    python tests/launcher/chaos.py --catalogue                    # all, and this page; some minutes
    python tests/launcher/chaos.py --catalogue --only "byte: "    # rows whose names begin so

What befalls worker groups, nodes and networks is tried in random order by `python tests/launcher/chaos.py --faults 20`:
kills of driver, workers, raylet and head, stopped ranks, partitions, full disks.

`with` is the version of dpeer with which a row was last tried for this page; one of an earlier version has not been
tried again here since. The quick ones, about a fifth, are tried by the tests at every change.

What the words of the table mean:
"""


def promise(fault: Fault) -> list[str]:
    """The first cells of a fault's row."""
    return [fault.name, fault.done.replace("|", "\\|"), str(fault.promised)]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def write(seen: Mapping[str, str], version: str) -> None:
    """`seen` by name of fault; what is not in it stays as the page has it."""
    before = {cells[0]: cells[3:] for cells in read()} if PATH.exists() else {}
    rows = [
        [*promise(f), *([_cell(seen[f.name]), version] if f.name in seen else before.get(f.name, ["not tried", "-"]))]
        for f in CATALOGUE
    ]
    means = "".join(f"- **{outcome}**: {words}\n" for outcome, words in MEANS.items())
    PATH.write_text(f"{BEFORE}\n{means}\n{HEAD}{''.join(map(row, rows))}")


def _cell(seen: str) -> str:
    return seen[:200].replace("|", "\\|").replace("\n", " ")


def read() -> list[list[str]]:
    """Cells of the page's rows."""
    table = PATH.read_text().partition(HEAD)[2]
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in table.splitlines()]
