"""Pictures of how far judges agree: kappa of pairs, and which scores others give where a judge gives its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dpeer.eval.report.picture import (
    MOST_ROWS,
    Interval,
    Picture,
    by_dimension,
    enumerated,
    heat,
    heat_height,
    intervals,
    matrix,
    rows_height,
)
from dpeer.eval.report.words import Frames, estimate, fixed, label, slug
from dpeer.report.text import percent

MOST_CONFUSED = 6
"""Judges whose confusions are drawn per dimension: those with the least agreement."""


def agreement(frames: Frames) -> Iterator[Picture]:
    """Per dimension: kappa of people with models where there are people, else of all pairs."""
    for dimension, part in by_dimension(frames["kappa"]):
        mixed = part[part["people"] == 1]
        part = (mixed if len(mixed) else part).dropna(subset=["kappa"])
        if not len(part):
            continue
        part = part.sort_values("kappa", ascending=False, kind="stable")[:MOST_ROWS]
        who = "people and models" if len(mixed) else "judges"
        names = [f"{label(row.judge, 18)} and {label(row.other, 18)}" for row in part.itertuples()]
        rows = [
            Interval(name, row.kappa, row.kappa_low, row.kappa_high)
            for name, row in zip(names, part.itertuples(), strict=True)
        ]
        words = [f"{name} {estimate(row, 'kappa')}" for name, row in zip(names, part.itertuples(), strict=True)]
        low, high = part["kappa"].iloc[-1], part["kappa"].iloc[0]
        yield Picture(
            f"kappa_{slug(dimension)}",
            f"{dimension}: weighted kappa of {who}",
            f"{dimension}: weighted kappa of {who} is {fixed(low)} to {fixed(high)}",
            f"Dot plot of weighted kappa with 95 % intervals. {enumerated(words)}.",
            intervals(rows, "weighted kappa (0 = chance)"),
            rows_height(len(rows)),
            counted=True,
        )


def confusion(frames: Frames) -> Iterator[Picture]:
    """Per dimension and judge: of the responses to which it gave a score, the shares of the scores that others gave."""
    for dimension, part in by_dimension(frames["confusion"]):
        same = part["n"].where(part["score"] == part["other_score"], 0)
        agreed = same.groupby(part["judge"], sort=False).sum() / part.groupby("judge", sort=False)["n"].sum()
        for judge in agreed.sort_values(kind="stable").index[:MOST_CONFUSED]:
            mine = part[part["judge"] == judge].sort_values(["score", "other_score"])
            values, own, _ = matrix(mine, "score", "other_score", "n")
            others = sorted(set(mine["other_score"]))
            values = np.nan_to_num(values[:, np.argsort(list(dict.fromkeys(mine["other_score"])))])
            share = values / values.sum(axis=1, keepdims=True)
            sentence = f"{label(judge)} gives the score of another judge in {percent(float(agreed[judge]))} of cases"
            yield Picture(
                f"confusion_{slug(dimension)}_{slug(judge)}",
                f"{dimension}: {sentence}",
                f"{dimension}: {sentence}",
                f"Heat map of the scores that others give where {label(judge)} gives a score. {sentence}.",
                heat(
                    share,
                    [str(score) for score in own],
                    [str(score) for score in others],
                    [[f"{100 * x:.0f}" if x else "" for x in row] for row in share],
                    colours="Blues",
                    limits=(0, 1),
                    xlabel="score of another judge",
                    ylabel=f"score of {label(judge, 18)}",
                ),
                heat_height(len(own), ["1"]) + 0.3,
                "Rows add up to 100 %.",
                counted=True,
            )
