"""Pictures of the models: abilities, contrasts to the base model, ranks, fair averages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dpeer.eval.report.picture import (
    BLUE,
    GREY,
    INK,
    MOST_ROWS,
    Interval,
    Paint,
    Picture,
    by_dimension,
    enumerated,
    heat,
    heat_height,
    intervals,
    matrix,
    named,
    rows_height,
    shared_range,
    sided,
)
from dpeer.eval.report.words import (
    SURE,
    Frames,
    base_of,
    clear,
    estimate,
    fixed,
    label,
    plural,
    probability,
    signed,
    slug,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_RANKS = 40
"""Of more models than can be named, so many of the most able are shown with their ranks."""


def ability(frames: Frames) -> Iterator[Picture]:
    """Per dimension: abilities with intervals, highest first, and beside them the contrasts to the base model."""
    frame = frames["ability"]
    base = base_of(frame)
    spans = (
        shared_range(frame, "ability_low", "ability_high", "ability"),
        shared_range(frame, "family_low", "family_high", "contrast"),
    )
    for dimension, part in by_dimension(frame):
        part = part.sort_values("ability", ascending=False, kind="stable")
        yield _ability(dimension, part, base, spans[0], _leads(frames, dimension))
        if base is not None and (drawn := _contrast(dimension, part[part["model"] != base], base, spans[1])):
            yield drawn


def _leads(frames: Frames, dimension: str) -> bool:
    """Some model is first in a dimension, as surely as a finding must be."""
    ranks = frames.get("ranks")
    if ranks is None:
        return False
    first = ranks[(ranks["dimension"] == dimension) & (ranks["rank"] == 1)]
    return bool((first["probability"] >= SURE).any())


def _ability(
    dimension: str, part: pd.DataFrame, base: str | None, xlim: tuple[float, float] | None, sure: bool
) -> Picture:
    rows = [
        Interval(
            row.model,
            row.ability,
            row.ability_low,
            row.ability_high,
            *((INK, "s") if row.model == base else (BLUE, "o")),
        )
        for row in part.itertuples()
    ]
    first = next(part.itertuples())
    word = "ability" if sure else "estimate, but is not surely first"
    words = enumerated([f"{label(row.model)} {estimate(row, 'ability')}" for row in part.itertuples()])
    return Picture(
        f"ability_{slug(dimension)}",
        f"{dimension}: abilities",
        f"{dimension}: {label(first.model)} has the highest {word}, {estimate(first, 'ability')}",
        f"Dot plot of abilities in logits with 95 % intervals. {words}.",
        intervals(rows, "ability (logits)", xlim=xlim),
        rows_height(len(rows)),
        f"Black square: {label(base)}, the base model." if base else "",
    )


def _contrast(dimension: str, part: pd.DataFrame, base: str, xlim: tuple[float, float] | None) -> Picture | None:
    """The contrasts that are claimed; None where none of the dimension is."""
    part = part.sort_values("contrast", ascending=False, kind="stable")
    rows, both = [], "contrast_these" in part
    for row in part[part["family_low"].notna()].itertuples():
        remark = f"P {probability(row.p_better)}"
        rows.append(sided(row.model, row.contrast, row.family_low, row.family_high, remark))
        if both:
            bounds = (row.contrast_these, row.contrast_these_low, row.contrast_these_high)
            rows.append(Interval(f"{row.model}, these prompts", *bounds, GREY, "D"))
    if not rows:
        return None
    sides = [clear(row.low, row.high) for row in rows if row.marker != "D"]
    words = enumerated(
        [
            f"{label(row.model)} {estimate(row, 'contrast')}, P better {probability(row.p_better)}"
            for row in part.itertuples()
        ]
    )
    return Picture(
        f"contrast_{slug(dimension)}",
        f"{dimension}: differences to {label(base)}",
        f"{dimension}: {_sides(sides, label(base))}",
        f"Dot plot of ability minus that of {label(base)} in logits with simultaneous 95 % intervals. {words}.",
        intervals(rows, "ability minus base (logits)", xlim=xlim),
        rows_height(len(rows)),
        "Bars: all differences that are claimed, over all dimensions, lie within them at once with 95 % probability. "
        "Triangles: the bar excludes zero. P: probability of being better than the base model."
        + " Grey diamonds: on these prompts alone, each for itself; all else: on new prompts of this kind."
        * both,
    )


def _sides(sides: list[int], base: str) -> str:
    """E.g. "3 of 4 models are better than base, 1 is worse"."""
    better, worse, total = sides.count(1), sides.count(-1), len(sides)
    if not better and not worse:
        return f"no model differs reliably from {base}"
    if total == 1:
        return f"{'better' if better else 'worse'} than {base}, with an interval that excludes zero"
    if total in (better, worse):
        return f"all {total} are {'better' if better else 'worse'} than {base}"
    parts = [
        f"{n} of {total} {'is' if n == 1 else 'are'} {side}" for n, side in ((better, "better"), (worse, "worse")) if n
    ]
    return f"{' and '.join(parts)} than {base}"


def ranks(frames: Frames) -> Iterator[Picture]:
    """Per dimension: probability of every rank for every model, best expected rank first."""
    for dimension, part in by_dimension(frames["ranks"]):
        values, models, places = matrix(part.sort_values("rank", kind="stable"), "model", "rank", "probability")
        values = np.nan_to_num(values)
        order = np.argsort(values @ np.arange(len(places)), kind="stable")
        few = len(order) <= MOST_ROWS
        order, places = (order, places) if few else (order[:SHOWN_RANKS], places[:MOST_ROWS])
        values, names = values[order][:, : len(places)], [models[i] for i in order]
        texts = [[f"{100 * p:.0f}" if p > 0.005 else "" for p in row] for row in values]
        first = int(np.argmax(values[:, 0]))
        verb = "ranks first" if values[first, 0] >= SURE else "most likely ranks first, but not surely"
        words = enumerated([f"{label(n)}: first {probability(row[0])}" for n, row in zip(names, values, strict=True)])
        yield Picture(
            f"ranks_{slug(dimension)}",
            f"{dimension}: rank probabilities",
            f"{dimension}: {label(names[first])} {verb} (P {probability(values[first, 0])})",
            f"Heat map of the probability of each rank. {words}.",
            heat(
                values,
                names,
                [str(p) for p in places],
                texts,
                colours="Blues",
                limits=(0, 1),
                xlabel="rank (1 = most able)",
            ),
            heat_height(len(names), ["1"]),
            "Colour: probability, from white (0) to dark blue (1); numbers: per cent."
            + ("" if few else f" The {len(names)} most able of {len(models):,}."),
        )


def fair(frames: Frames) -> Iterator[Picture]:
    """Per dimension: raw mean scores beside fair averages, on the rating scale."""
    frame = frames["ability"]
    if not frame["fair"].notna().any():
        return
    reversals = frames.get("reversals")
    scores = frame[["fair_low", "fair", "fair_high", "raw_mean"]].to_numpy(dtype=np.float64)
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    xlim = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    for dimension, part in by_dimension(frame):
        part = part.sort_values("fair", ascending=False, kind="stable")
        turned = 0 if reversals is None else int((reversals["dimension"] == dimension).sum())
        gaps = (part["fair"] - part["raw_mean"]).abs()
        widest = part.loc[gaps.idxmax()] if gaps.notna().any() else part.iloc[0]
        how = f"reverses {plural(turned, 'pair')}" if turned else "changes no order"
        moved = signed(widest["fair"] - widest["raw_mean"])
        words = enumerated(
            [f"{label(r.model)} raw {fixed(r.raw_mean)}, fair {estimate(r, 'fair')}" for r in part.itertuples()]
        )
        yield Picture(
            f"fair_{slug(dimension)}",
            f"{dimension}: fair averages beside raw means",
            f"{dimension}: adjusting {how}; {label(widest['model'])} moves by {moved}",
            f"Dot plot of raw mean scores and fair averages with 95 % intervals. {words}.",
            _fair(part, xlim),
            rows_height(len(part)),
            "Filled: fair average, what an average judge would give over items like these. Hollow: raw mean.",
        )


def _fair(part: pd.DataFrame, xlim: tuple[float, float]) -> Paint:
    size = 2.0 if len(part) > MOST_ROWS else 6.5

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        ys = np.arange(len(part))
        low, fair, high, raw = (part[c].to_numpy(np.float64) for c in ("fair_low", "fair", "fair_high", "raw_mean"))
        axes.hlines(ys, np.minimum(fair, raw), np.maximum(fair, raw), colors=GREY, linestyles=":", linewidth=1)
        axes.hlines(ys, low, high, colors=BLUE, linewidth=2.2 * size / 6.5)
        axes.plot(raw, ys, "o", markerfacecolor="white", markeredgecolor=GREY, markersize=size, zorder=4)
        axes.plot(fair, ys, "o", color=BLUE, markersize=size, zorder=3)
        axes.set_yticks(*named(list(part["model"])))
        axes.set(xlabel="score on the rating scale", xlim=xlim, ylim=(len(part) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")

    return paint
