"""A sweep's settings in one table: what each reaches, as means over its seeds with 95 % t intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpeer.report.run import NAN
from dpeer.report.sweep import Setting, SweepCell, SweepData
from dpeer.report.sweep_numbers import Spread, over_seeds, worst
from dpeer.report.text import constraint_form


@dataclass(frozen=True)
class Column:
    """`name`: in the CSV; `share`: shown in percent; `digits`: significant ones; `sign`: -1 where less is better."""

    name: str
    heading: str
    group: str
    value: Callable[[SweepCell], float]
    share: bool = True
    digits: int = 3
    sign: int = 1


@dataclass(frozen=True)
class ArmTable:
    """`rows`: per setting its label, its number of seeds and a spread per column; `best`: per column the labels with
    the best mean; `levels`: whose tolerances the column of proven dimensions is about, empty where there is none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, int, tuple[Spread, ...]], ...]
    best: tuple[frozenset[str], ...]
    levels: str

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heading and width of each group of columns."""
        names = [c.group for c in self.columns]
        return [(group, names.count(group)) for group in dict.fromkeys(names)]


def arm_table(data: SweepData, reference: Setting) -> ArmTable:
    """`reference`: the setting at whose tolerances every cell is certified, whatever it was trained for."""
    columns = [*_oracle_columns(data), *_heldout_columns()]
    run = reference.cells[0].run
    levels = reference.label if constraint_form(run).bounds_loss and any(map(_constrained, reference.cells)) else ""
    if levels:
        columns.append(Column("proven", "dimensions proven", HELDOUT, lambda c: proven(c, reference), False, 2))
    rows = tuple(
        (s.label, len(s.cells), tuple(over_seeds(s.over(column.value)) for column in columns)) for s in data.settings
    )
    known = [i for i in range(len(columns)) if any(row[2][i].n for row in rows)]
    rows = tuple((label, n, tuple(spreads[i] for i in known)) for label, n, spreads in rows)
    columns = [columns[i] for i in known]
    best = tuple(_best(rows, i, column.sign) for i, column in enumerate(columns))
    return ArmTable(tuple(columns), rows, best, levels if any(c.name == "proven" for c in columns) else "")


ORACLE, HELDOUT = "Good replies to fresh prompts, by the oracle", "Held-out records"


def _oracle_columns(data: SweepData) -> list[Column]:
    dimensions = [name for name in dict.fromkeys(n for c in data.cells for n in c.shares) if name != "fluency"]

    def of(name: str) -> Callable[[SweepCell], float]:
        return lambda cell: cell.shares.get(name, NAN)

    def shares(cell: SweepCell) -> list[float]:
        return [cell.shares[d] for d in dimensions] if cell.shares else [NAN]

    if not dimensions:
        return []
    return [
        *(Column(d, d, ORACLE, of(d)) for d in dimensions),
        Column("worst", "worst", ORACLE, lambda cell: min(shares(cell))),
        Column("mean", "mean", ORACLE, lambda cell: sum(shares(cell)) / len(shares(cell))),
        Column("fluency", "fluent", ORACLE, of("fluency")),
    ]


def _heldout_columns() -> list[Column]:
    return [
        Column("worst_loss", "worst loss", HELDOUT, worst, share=False, sign=-1),
        Column("selection", "golden first", HELDOUT, _selection),
    ]


def _selection(cell: SweepCell) -> float:
    certificate = cell.run.certificate
    return certificate.selection.overall.rate if certificate and certificate.selection else NAN


def _constrained(cell: SweepCell) -> bool:
    return bool(cell.run.certificate and cell.run.certificate.constrained)


def proven(cell: SweepCell, reference: Setting) -> float:
    """How many dimensions the cell's held-out margins prove to be within the tolerances of the reference setting; nan
    where they are not on disk."""
    from dpeer.objective.certificate import certify
    from dpeer.objective.constraints import build_constraints

    if (heldout := cell.margins) is None:
        return NAN
    objective = reference.cells[0].objective
    constraints = build_constraints(objective.constraint, heldout.dimensions)
    return float(sum(v.verdict == "satisfied" for v in certify(heldout.edges, constraints, objective)))


def _best(rows: Sequence[tuple[str, int, tuple[Spread, ...]]], column: int, sign: int) -> frozenset[str]:
    means = {label: sign * spreads[column].mean for label, _, spreads in rows if math.isfinite(spreads[column].mean)}
    return frozenset(label for label, mean in means.items() if mean == max(means.values()))
