"""The page of a loop: abilities per round on the scale of one fit, and how tolerances moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.ability import estimates
from dpeer.eval.irt.types import Floats
from dpeer.eval.report.picture import Interval, decided, interval_plot, shared_range
from dpeer.eval.report.table import Table, bounded, build
from dpeer.eval.report.words import clear, fixed, probability, signed
from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import Plot
from dpeer.report.table_files import write_frames
from dpeer.report.text import exact, number

WEAKEST = "weakest"


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """abilities: draws [S, D] of the base model and of each round, by name in order; all of one fit. rows: what each
    round reached and decided, as loop.json has it. verdicts: of the round with the ablest weakest dimension, corrected
    for the choice; None without certificate."""

    name: str
    dimensions: tuple[str, ...]
    abilities: Mapping[str, Floats]
    rows: Sequence[Mapping[str, Any]]
    chosen: str
    verdicts: Sequence[Mapping[str, Any]] | None
    ended: str


def ability_frame(found: Rounds) -> pd.DataFrame:
    """A row per model and dimension, and one for its weakest: ability in logits with _low and _high (95 %)."""
    frames = []
    for model, draws in found.abilities.items():
        all_ = np.concatenate([draws, draws.min(axis=1, keepdims=True)], axis=1)
        names = (*found.dimensions, WEAKEST)
        frames.append(pd.DataFrame({"model": model, "dimension": names, **estimates("ability", all_)}))
    return pd.concat(frames, ignore_index=True)


def move_frame(found: Rounds) -> pd.DataFrame:
    """A row per round and dimension: tolerance, level and error on the dual split, weakest (P), move, following."""
    rows = [
        {
            "round": row["round"],
            "dimension": d,
            "tolerance": _tolerance(row["tolerance"][d]),
            "level": row["level"][d],
            "error": row["error"][d],
            "weakest": row["weakest"][d],
            "move": move,
            "following": _tolerance(row["next"][d]),
        }
        for row in found.rows
        for d, move in row["moves"].items()
    ]
    return pd.DataFrame(rows).astype({"level": float, "error": float})


def gain(found: Rounds) -> tuple[float, float, float]:
    """What the weakest ability of the last round has over that of the first: mean and 95 % bounds, in logits."""
    named = list(found.abilities.values())
    draws = named[-1].min(axis=1) - named[1].min(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(draws.mean()), float(low), float(high)


def finding(found: Rounds) -> str:
    if len(found.rows) < 2:
        return f"One round so far: its weakest dimension is {_weakest(found.rows[-1])}"
    mean, low, high = gain(found)
    words = {1: "rose", 0: "has not clearly changed", -1: "fell"}[clear(low, high)]
    then, now = (_weakest(found.rows[k]) for k in (0, -1))
    places = f"{then} in round 1, {now} in round {len(found.rows)}" if then != now else f"{now} in both"
    return f"The weakest ability {words} from round 1 to {len(found.rows)}: {signed(mean)} logits ({places})"


def write_page(found: Rounds, folder: Path) -> Path:
    """Write loop.html and tables/*.csv, json, md and tex; returns the page's path."""
    frames = {"abilities": ability_frame(found), "moves": move_frame(found)}
    files = write_frames(frames, folder / "tables")
    _, low, high = gain(found) if len(found.rows) > 1 else (math.nan, math.nan, math.nan)
    page = templates("dpeer.eval.report").get_template("loop.html.j2").render(
        name=found.name,
        finding=finding(found),
        interval=f"{fixed(low)} to {fixed(high)}" if len(found.rows) > 1 else "",
        ended=found.ended,
        plots=list(_plots(frames["abilities"])),
        abilities=_abilities(frames["abilities"]),
        moves=_moves(frames["moves"]),
        chosen=found.chosen,
        compared=len(found.rows),
        certificate=None if found.verdicts is None else _certificate(found.verdicts),
        runs=[f"round-{row['round']}" for row in found.rows],
        files=[str(path.relative_to(folder)) for path in files],
    )  # fmt: skip
    write_text(folder / "loop.html", page)
    return folder / "loop.html"


def _plots(frame: pd.DataFrame) -> Iterator[Plot]:
    xlim = shared_range(frame, "ability_low", "ability_high")
    names = [WEAKEST, *(d for d in dict.fromkeys(frame["dimension"]) if d != WEAKEST)]
    for d in names:
        rows: list[Interval] = [
            decided(str(r.model), r.ability, r.ability_low, r.ability_high)
            for r in frame[frame["dimension"] == d].itertuples()
        ]
        title = "The weakest dimension of each" if d == WEAKEST else f"Dimension {d}"
        yield interval_plot(title, rows, "ability (logits), right = better", xlim)


def _abilities(frame: pd.DataFrame) -> Table:
    wide = {d: part.set_index("model") for d, part in frame.groupby("dimension", sort=False)}
    columns = {f"{d}_n": (lambda m, part=part: bounded(part.loc[m], "ability", signed)) for d, part in wide.items()}
    title = "Abilities in logits, with 95 % intervals"
    return build(title, dict.fromkeys(frame["model"]), Model=lambda m: str(m), **columns)


def _moves(frame: pd.DataFrame) -> Table:
    return build(
        "Tolerances",
        frame.itertuples(),
        Round=lambda r: str(r.round),
        Dimension=lambda r: str(r.dimension),
        Tolerance_n=lambda r: exact(r.tolerance),
        Level_reached_n=lambda r: f"{number(r.level)} ± {number(r.error, 2)}",
        **{"P_(weakest)_n": lambda r: probability(r.weakest)},
        Move=lambda r: str(r.move),
        Next_n=lambda r: exact(r.following),
    )


def _certificate(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    return build(
        "Verdicts",
        verdicts,
        Constraint=lambda v: str(v["name"]),
        Tolerance_n=lambda v: exact(_tolerance(v["tolerance"])),
        Mean_n=lambda v: number(_known(v["estimate"])),
        Undecided_n=lambda v: f"{number(_known(v['lower']))} to {number(_known(v['upper']))}",
        Verdict=lambda v: str(v["verdict"]),
    )


def _weakest(row: Mapping[str, Any]) -> str:
    return str(max(row["weakest"], key=row["weakest"].__getitem__))


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _tolerance(value: Any) -> float:
    return math.inf if value in ("inf", None) else float(value)
