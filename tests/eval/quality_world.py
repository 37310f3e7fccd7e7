"""A data set with known truth, and verifiers of known severity and noise that rate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

DIMENSIONS = ("A", "C", "E", "T")
MASKS = [m for size in (2, 3, 4) for m in combinations(DIMENSIONS, size)]


@dataclass(frozen=True)
class Judge:
    """Adds `leniency` points to what it sees, with noise of sd `noise`; sees nothing of the dimensions in `blind`."""

    leniency: float = 0.0
    noise: float = 0.6
    blind: tuple[str, ...] = ()


HONEST = {"ana": Judge(), "ben": Judge(-0.4, 0.7), "cy": Judge(0.4, 0.6)}


def truth(
    per_mask: int, rng: np.random.Generator, extra: float = 0.0, weak: float = 0.0, poor: float = 0.0
) -> pd.DataFrame:
    """record, response, mask, dimension, claimed and fails (in truth), a row per response and active dimension.

    Shares of rejects that also fail another dimension (`extra`), of those that do not fail their own (`weak`), and of
    goldens that fail one (`poor`).
    """
    rows = []
    for m, mask in enumerate(MASKS):
        for n in range(per_mask):
            for response in ("golden", *(f"reject_{d}" for d in mask)):
                own = response.removeprefix("reject_")
                failed = {own} & set(mask)
                others = [d for d in mask if d != own]
                if own in mask and rng.random() < weak:
                    failed = set()
                elif rng.random() < (extra if own in mask else poor):
                    failed = failed | {str(rng.choice(others))}
                rows += [
                    {"record": f"{m}-{n}", "response": response, "mask": "+".join(mask), "dimension": d}
                    | {"claimed": d == own, "fails": d in failed}
                    for d in mask
                ]
    return pd.DataFrame(rows)


def ratings(
    made: pd.DataFrame, judges: Mapping[str, Judge], rng: np.random.Generator, spread: float = 0.4
) -> pd.DataFrame:
    """Scores 0 to 4: what a response is worth, the same for all judges, moved by the judge, rounded and cut off."""
    worth = np.where(made["fails"], 0.9, 3.4) + rng.normal(0, spread, len(made))
    told = []
    for name, judge in judges.items():
        blind = made["dimension"].isin(judge.blind).to_numpy()
        seen = np.where(blind, 2.0, worth) + judge.leniency + rng.normal(0, judge.noise, len(made))
        score = np.clip(np.rint(seen), 0, 4).astype(int)
        told.append(made[["record", "response", "mask", "dimension"]].assign(judge=name, score=score))
    return pd.concat(told, ignore_index=True)


def bad_records(made: pd.DataFrame) -> set[str]:
    wrong: Sequence[str] = made.loc[made["fails"] != made["claimed"], "record"]
    return set(wrong)
