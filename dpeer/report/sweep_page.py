"""A sweep's page and the tables beside it: each table as CSV and JSON, the page as one self-contained HTML file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.escape import csv_cell
from dpeer.files import write_json, write_text
from dpeer.report import sweep_figures as figures
from dpeer.report.page import MARKS, Part, templates
from dpeer.report.plot import Plot
from dpeer.report.run import Certified
from dpeer.report.sweep import Setting, SweepCell, SweepData, read_sweep
from dpeer.report.sweep_arms import ArmTable, arm_table
from dpeer.report.sweep_choice import Choice, choice
from dpeer.report.sweep_numbers import (
    Price,
    Spread,
    mean_and_worst,
    paired,
    pareto_front,
    prices,
    reference_setting,
)
from dpeer.report.text import listing, number

Rows = list[dict[str, Any]]
Abilities = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class SweepResult:
    data: SweepData
    reference: Setting
    differences: list[tuple[Setting, Spread]]
    prices: list[Price]
    abilities: dict[str, dict[str, float]]
    choice: Choice | None
    arms: ArmTable


def write_sweep_report(folder: Path, abilities: Abilities | None = None) -> Path:
    """Write sweep.html and tables/*.csv, *.json into a sweep's folder; returns the page.

    `abilities`: cell name -> dimension -> ability (logits). DpeerError: no sweep there, or no finished cell.
    """
    data = read_sweep(folder)
    reference = reference_setting(data.settings)
    result = SweepResult(
        data,
        reference,
        [(s, paired(s, reference)) for s in data.settings],
        prices(data.lines) if data.axis.tolerance else [],
        {cell: dict(row) for cell, row in (abilities or {}).items()},
        choice(data),
        arm_table(data, reference),
    )
    tables = dict(_tables(result))
    for name, rows in tables.items():
        write_text(folder / "tables" / f"{name}.csv", _csv(rows))
        write_json(folder / "tables" / f"{name}.json", rows)
    page = templates().get_template("sweep.html.j2").render(
        name=data.name,
        axis=data.axis.label,
        finding=finding(result),
        notes=list(_notes(result)),
        cells=len(data.cells),
        settings=len(data.settings),
        seeds=sorted({s for setting in data.settings for s in setting.seeds}),
        dimensions=data.dimensions,
        arms=result.arms,
        sections=list(_sections(result, tables)),
        matrix=_matrix(data),
        choice=result.choice,
        marks=MARKS,
        prices=result.prices,
        cost=tables["cost"],
        tables=list(tables),
        links={c.name: f"{c.name}/report.html" for c in data.cells if (folder / c.name / "report.html").is_file()},
    )  # fmt: skip
    write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def finding(result: SweepResult) -> str:
    """The sentence that heads the page: which setting serves the worst dimension best."""
    rows = [(s, d) for s, d in result.differences if s is not result.reference and math.isfinite(d.mean)]
    if not rows:
        if len(result.data.settings) > 1:
            return "Settings cannot be compared: held-out losses or common seeds are missing"
        return f"{len(result.data.cells)} cells of one setting"
    best, gain = min(rows, key=lambda row: row[1].mean)
    if gain.mean >= 0:
        return f"No setting serves the worst dimension better than {result.reference.label}"
    doubt = " (one seed)" if gain.n == 1 else "" if gain.upper < 0 else " (within the spread of the seeds)"
    return (
        f"{best.label} serves the worst dimension best: loss {number(-gain.mean)} below {result.reference.label}{doubt}"
    )


def _notes(result: SweepResult) -> Iterator[str]:
    data = result.data
    if data.unfinished:
        yield (
            f"{len(data.unfinished)} of {data.planned} cells are not finished and not shown: "
            f"{', '.join(data.unfinished[:6])}{', ...' if len(data.unfinished) > 6 else ''}."
        )
    if max(len(s.cells) for s in data.settings) < 2:
        yield "One seed per setting: no spread, so no difference here can be told from luck."
    chained = {c.name: c.label for c in data.cells if c.reference and c.margins}
    if labels := list(dict.fromkeys(chained.values())):
        yield (
            f"Trained from another cell's export: {listing(labels)}. Held-out losses and accuracies here are measured "
            "from the same reference as the others'; certificates and the runs' own pages speak of what was gained "
            "over that export."
        )
    for what in ("data", "versions", "git", "reference"):
        cells = [c for c in data.cells if what != "reference" or c.name not in chained]
        if len({str(c.run.get(what)) for c in cells}) > 1:
            yield f"The cells do not all have the same {what}; `dpeer diff RUN RUN` shows where two of them differ."


def _sections(result: SweepResult, tables: Mapping[str, Rows]) -> Iterator[Part]:
    data = result.data

    def there(*plots: Plot | None) -> list[Plot]:
        return [plot for plot in plots if plot]

    yield Part(
        "The worst dimension",
        "Cells of equal seed saw the same batches, so differences are taken in pairs. "
        f"Reference: {result.reference.label}.",
        there(figures.paired_worst(data, result.reference, result.differences), figures.worst_curve(data)),
    )
    yield Part("Held-out loss per dimension", figures.bands(data), figures.loss_panels(data))
    yield Part(
        "Accuracy and behaviour",
        "Accuracy is the share of held-out edges whose better response gains more than the worse one."
        + (
            " The oracle reads replies to fresh prompts; fluency is the share of well-formed ones."
            if _oracle(data)
            else ""
        ),
        there(figures.accuracy(data), figures.oracle(data), figures.abilities(data, result.abilities)),
    )
    yield Part(
        "What is traded", "Held-out losses, means over the seeds that all settings have.", there(figures.pareto(data))
    )
    yield Part("The price of tolerance", PRICE_TEXT, there(figures.shadow_prices(data, result.prices)))
    yield Part(
        "Cost", "Time in training steps, start-up and evaluation left out.", [figures.cost(data, tables["cost"])]
    )


PRICE_TEXT = (
    "At an optimum a multiplier is the shadow price of its tolerance: how much the primary objective would fall per "
    "unit of tolerance given away. Both are measured here over the last quarter of training: the multipliers at the "
    "tolerances, and the fall of the objective from one tolerance to the next. They can agree only where runs settled."
)


def _oracle(data: SweepData) -> bool:
    return any(c.shares for c in data.cells)


def _tables(result: SweepResult) -> Iterator[tuple[str, Rows]]:
    data = result.data
    yield (
        "heldout",
        [
            {**_key(c), "dimension": d, "loss": c.heldout("loss")[d], "accuracy": c.heldout("accuracy")[d]}
            for c in data.cells
            for d in c.heldout("loss")
        ],
    )
    yield "settings", _setting_rows(result)
    yield "arms", _arm_rows(result.arms)
    yield "prices", [_price_row(price) for price in result.prices]
    yield (
        "certificates",
        [_claim_row(c, v) for c in data.cells for v in (c.run.certificate.constrained if c.run.certificate else ())],
    )
    if result.choice and result.choice.constraints is not None:
        yield "chosen", [_claim_row(result.choice.cell, v) for v in result.choice.constraints]
    if _oracle(data):
        yield "oracle", [{**_key(c), **c.shares} for c in data.cells]
    if result.abilities:
        yield "abilities", [{**_key(c), **result.abilities.get(c.name, {})} for c in data.cells]
    yield "cost", [{**_key(c), **_cost(c)} for c in data.cells]


def _setting_rows(result: SweepResult) -> Rows:
    data = result.data
    points = mean_and_worst(data.settings)
    front = pareto_front(points)
    return [
        {"label": s.label, data.axis.label: s.x, "series": s.series, "seeds": len(s.cells)}
        | {"mean_loss": points[i][0], "worst_loss": points[i][1], "on_front": i in front}
        | {f"worst_minus_{result.reference.label}{k}": v for k, v in _spread(d).items()}
        for i, (s, d) in enumerate(result.differences)
    ]


def _arm_rows(arms: ArmTable) -> Rows:
    return [
        {"label": label, "seeds": n}
        | {f"{c.name}{k}": v for c, s in zip(arms.columns, spreads, strict=True) for k, v in _spread(s).items()}
        for label, n, spreads in arms.rows
    ]


def _price_row(price: Price) -> dict[str, Any]:
    spreads = {
        "multipliers_left": price.total[0],
        "multipliers_right": price.total[1],
        "slope": price.measured,
        "slope_by_multipliers": price.implied,
        "gap": price.gap,
    }
    return {
        "series": price.series,
        "from": price.left.x,
        "to": price.right.x,
        "active": price.active,
        "agrees": price.agrees,
    } | {f"{name}{k}": v for name, spread in spreads.items() for k, v in _spread(spread).items()}


def _claim_row(cell: SweepCell, v: Certified) -> dict[str, Any]:
    numbers = {"estimate": v.estimate, "tolerance": v.tolerance, "lower": v.lower, "upper": v.upper}
    return {**_key(cell), "constraint": v.name, "verdict": v.verdict, **numbers}


def _key(cell: SweepCell) -> dict[str, Any]:
    return {"cell": cell.index, "name": cell.name, "label": cell.label, "seed": cell.seed}


def _spread(spread: Spread) -> dict[str, float]:
    return {"": spread.mean, "_lower": spread.lower, "_upper": spread.upper}


def _cost(cell: SweepCell) -> dict[str, Any]:
    seconds = float(np.nansum([t.seconds for t in cell.run.timing]))
    tokens = float(np.nansum([s.tokens for s in cell.run.ledger]))
    workers = cell.run.get("config.cluster.policy_workers", 1)
    return {
        "steps": len(cell.run.ledger),
        "seconds": seconds,
        "tokens": tokens,
        "workers": workers,
        "worker_hours": seconds * workers / 3600,
    }


def _matrix(data: SweepData) -> tuple[tuple[str, ...], list[tuple[str, list[tuple[str, str]]]]]:
    """Constraints, and per setting and constraint (class, text) over its seeds, e.g. ("undecided", "✓ 2 ? 1")."""
    names = tuple(dict.fromkeys(v.name for c in data.cells if c.run.certificate for v in c.run.certificate.constrained))
    rows = []
    for setting in data.settings:
        cells = []
        for name in names:
            verdicts = [
                v.verdict
                for c in setting.cells
                if c.run.certificate
                for v in c.run.certificate.constrained
                if v.name == name
            ]
            kind = next((v for v in ("violated", "undecided", "satisfied") if v in verdicts), "unconstrained")
            counts = " ".join(f"{MARKS[v]}\u00a0{verdicts.count(v)}" for v in MARKS if v in verdicts)
            cells.append((kind, counts or "no tolerance"))
        rows.append((setting.label, cells))
    return names, rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns of all rows; an unknown number is empty."""
    stream = io.StringIO()
    columns = list(dict.fromkeys(k for row in rows for k in row))
    writer = csv.writer(stream, lineterminator="\n")
    for cells in (columns, *([row.get(k, "") for k in columns] for row in rows)):
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else csv_cell(v) for v in cells])
    return stream.getvalue()
