"""The best cell of a sweep, with verdicts that allow for its having been chosen by the records that certify it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dpeer.config import Objective
from dpeer.objective.rows import VerdictRow
from dpeer.report.run import Certified
from dpeer.report.sweep import SweepCell, SweepData
from dpeer.report.sweep_numbers import worst


@dataclass(frozen=True)
class Choice:
    """The cell whose worst dimension has the lowest held-out loss among `compared` cells; `constraints` are its
    verdicts, corrected for that number, None where its held-out margins are not on disk."""

    cell: SweepCell
    compared: int
    constraints: tuple[Certified, ...] | None


def choice(data: SweepData) -> Choice | None:
    """None where there is nothing to choose from: fewer than two cells with held-out losses."""
    cells = [c for c in data.cells if math.isfinite(worst(c))]
    if len(cells) < 2:
        return None
    best = min(cells, key=worst)
    rows = corrected(best.run.path, best.objective, len(cells))
    verdicts = None if rows is None else tuple(Certified.model_validate(row) for row in rows)
    return Choice(best, len(cells), verdicts and tuple(v for v in verdicts if v.constrained))


def corrected(run: Path, objective: Objective, choices: int) -> list[VerdictRow] | None:
    """The verdicts of a run that was chosen among so many; None without its held-out margins.

    DpeerError: the file of margins is damaged.
    """
    from dpeer.heldout_file import read_heldout
    from dpeer.objective.certificate import certify
    from dpeer.objective.constraints import build_constraints

    heldout = read_heldout(run / "heldout.safetensors")
    if heldout is None:
        return None
    constraints = build_constraints(objective.constraint, heldout.dimensions)
    verdicts = certify(heldout.edges, constraints, objective, state=heldout, choices=choices)
    return [v.to_dict() for v in verdicts]
