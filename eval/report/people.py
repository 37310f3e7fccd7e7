"""People beside models as judges: the picture of what models favour, and the tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpeer.eval.report.picture import Picture, by_dimension, decided, enumerated, intervals, rows_height, shared_range
from dpeer.eval.report.table import Table, bounded, build
from dpeer.eval.report.words import Frames, clear, count, estimate, fixed, known, label, signed, slug
from dpeer.report.text import listing

TABLES = ("leniency", "favours", "human_ratings")


def favours(frames: Frames) -> Table:
    return build(
        "What judges that are models add to single models, beyond their leniency, in logits; with it the ability is "
        "what these judges see",
        (row for _, part in by_dimension(frames["favours"]) for row in part.itertuples()),
        Dimension=lambda r: str(r.dimension),
        Model=lambda r: str(r.model),
        Favour_n=lambda r: bounded(r, "favour", signed),
        Ability_to_these_judges_n=lambda r: bounded(r, "ability_judges", signed),
        Human_ratings_n=lambda r: count(r.ratings),
    )


def leniency(frames: Frames) -> Table:
    return build(
        "Leniency of judges that are models against the people, in logits (positive: they rate higher)",
        frames["leniency"].itertuples(),
        Dimension=lambda r: str(r.dimension),
        Leniency_n=lambda r: bounded(r, "leniency", signed),
        People_n=lambda r: count(r.people),
        Human_ratings_n=lambda r: count(r.ratings),
        Responses_n=lambda r: count(r.responses),
        Rated_by_models_too_n=lambda r: count(r.shared),
        Abilities=lambda r: "on the people's scale" if r.scaled else "on that of all judges",
    )


def human_ratings(frames: Frames) -> Table:
    """How precise contrasts are, and would be with more ratings by people."""
    frame = frames["human_ratings"]
    now = set(frame.groupby("dimension", sort=False).head(1).index)
    return build(
        "Half-width of contrasts to the base (95 %, mean over models) by ratings of people: as fitted, and forecast",
        frame.reset_index().itertuples(),
        Dimension=lambda r: str(r.dimension),
        Human_ratings_n=lambda r: count(r.ratings),
        Half_width_n=lambda r: f"± {fixed(r.half_width)}",
        What=lambda r: _what(r) if r.index in now else "forecast",
    )


def _what(row: Any) -> str:
    halved = f"halved at about {count(row.halving)}" if known(row.halving) else f"at best ± {fixed(row.least)}"
    return f"as fitted; {halved}"


def favoured(frames: Frames) -> Iterator[Picture]:
    """Per dimension: what judges that are models add to each model, most first."""
    frame = frames["favours"]
    xlim = shared_range(frame, "favour_low", "favour_high")
    for dimension, part in by_dimension(frame):
        part = part.sort_values("favour", ascending=False, kind="stable")
        rows = [decided(r.model, r.favour, r.favour_low, r.favour_high) for r in part.itertuples()]
        sides = np.array([clear(r.favour_low, r.favour_high) for r in part.itertuples()])
        names = part["model"].to_numpy()
        parts = [
            f"{verb} {listing([label(n) for n in names[sides == side]])}"
            for side, verb in ((1, "favour"), (-1, "disfavour"))
            if (sides == side).any()
        ]
        verdict = " and ".join(parts) if parts else "favour no model reliably against the people"
        words = enumerated([f"{label(r.model)} {estimate(r, 'favour')}" for r in part.itertuples()])
        yield Picture(
            f"favours_{slug(dimension)}",
            f"{dimension}: what judges that are models favour",
            f"{dimension}: judges that are models {verdict}",
            f"Dot plot of what judges that are models add to each model, in logits with 95 % intervals. {words}.",
            intervals(rows, "favour (logits, against the people)", xlim=xlim),
            rows_height(len(rows)),
            "Zero in sum over the models: a leniency towards all alike stands in the table. Grey: the interval holds "
            "zero.",
        )
