"""Plans of ratings: a sparse linked design, and a plan as index arrays, to be checked before it is paid for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.types import Bools, Ratings


def linked_design(models: int, items: int, judges: int, anchors: int, judges_per_response: int, seed: int) -> Bools:
    """[models, items, judges] who rates what: all judges on the anchors, `judges_per_response` on every other item.

    The same judges rate all models of an item. So each comparison of models within an item is free of severity, and
    every judge sees every model equally often; judges are linked by the anchors and by the items that they share.
    Judges differ by at most one item, and pairs of judges meet about equally often (a greedy balanced incomplete block
    design; on the size of the linking set see Wind & Jones, Educational and Psychological Measurement 78, 2018).

    Raises: ConfigError for numbers that cannot be met or that leave judges unlinked.
    """
    if min(models, items, judges) < 1:
        raise ConfigError(
            f"{models} models, {items} items and {judges} judges: a linked design needs at least one of each"
        )
    if not 0 <= anchors <= items:
        raise ConfigError(f"anchors: {anchors} of {items} items; choose a number from 0 to {items}")
    if not 1 <= judges_per_response <= judges:
        raise ConfigError(
            f"judges_per_response: {judges_per_response} of {judges} judges; choose a number from 1 to {judges}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(items)
    chosen = np.zeros((items, judges), bool)
    chosen[order[:anchors]] = True
    load = np.zeros(judges)
    met = np.zeros((judges, judges))
    for item in order[anchors:]:
        team: list[int] = []
        for _ in range(judges_per_response):
            keys = (rng.random(judges), met[:, team].sum(axis=1), load, np.isin(np.arange(judges), team))
            team.append(int(np.lexsort(keys)[0]))
        chosen[item, team] = True
        load[team] += 1
        met[np.ix_(team, team)] += 1
    apart = _unlinked(chosen)
    if apart:
        raise ConfigError(
            f"anchors: {anchors} and judges_per_response: {judges_per_response} leave {apart} of {judges} judges "
            "without an item in common with the others, so that severities cannot be compared; use anchors: 1 or more"
        )
    return np.broadcast_to(chosen, (models, items, judges)).copy()


def _unlinked(chosen: Bools) -> int:
    """Judges outside the part of the graph that judge 0 is in; those without any item included."""
    reached = np.zeros(chosen.shape[1], bool)
    reached[0] = True
    for _ in reached:
        reached |= chosen[chosen[:, reached].any(axis=1)].any(axis=0)
    return int((~reached).sum())


def planned_ratings(plan: pd.DataFrame, scale: Sequence[int]) -> Ratings:
    """A plan (columns of the ratings table, a row per rating still to be made) as Ratings, every category the lowest.

    For `dpeer.eval.irt.design.check(..., planned=True)`. Raises DataError as `encode` does.
    """
    score = 0 if "other_model" in plan else scale[0]  # a comparison's: a tie
    return encode(plan.assign(status="ok", score=score), scale=scale)
