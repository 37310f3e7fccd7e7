"""Which design is precise enough, and cheapest: judges x repeats x samples, with the items that each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.precision import (
    Z95,
    Components,
    Design,
    difference_sd,
    information,
    items_needed,
    power,
    reliability,
    right_order,
)

MOST_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of the difference of two models, in logits."""

    half_width: float | None = None
    """Of its 95 % interval."""
    difference: float | None = None
    """A true difference that is to be found."""
    power: float | None = None
    """Probability that the interval of `difference` leaves out zero."""
    order: float | None = None
    """Probability that two models with `difference` come in the right order."""

    def sd(self) -> float:
        """Posterior sd that meets all that is asked for. ConfigError: nothing is asked for, or it makes no sense."""
        wanted = []
        if self.half_width is not None:
            wanted.append(self.half_width / Z95)
        if (self.power is not None or self.order is not None) and self.difference is None:
            raise ConfigError("--power and --order need --difference, the true difference in logits to be found")
        if self.difference is not None:
            if self.power is None and self.order is None:
                raise ConfigError("--difference needs --power or --order, the probability of finding it")
            if self.power is not None:
                wanted.append(self.difference / (Z95 + float(stats.norm.ppf(self.power))))
            if self.order is not None:
                wanted.append(self.difference / float(stats.norm.ppf(self.order)))
        if not wanted:
            raise ConfigError("say what is wanted: --half-width W, or --difference D with --power P or --order P")
        return min(wanted)


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one rating and one response; price in any currency."""

    rating: float = 0.0
    response: float = 0.0
    seconds: float = 0.0
    """Of one rating, with all that rate side by side."""


def candidates(
    components: Sequence[Components],
    goal: Goal,
    costs: Costs,
    *,
    judges: Sequence[int],
    samples: Sequence[int] = (1,),
    repeats: Sequence[int] = (1,),
    most_items: int = MOST_ITEMS,
) -> pd.DataFrame:
    """Designs that meet the goal in every dimension, cheapest first; one per number of judges, samples and repeats.

    Columns: judges, samples, repeats, items, responses, ratings, price, hours, half_width (of the worst dimension),
    dimension (the worst), power and right_order of the goal's difference (nan without), reliability (least).
    Raises ConfigError: no design of at most `most_items` items will do.
    """
    sd, models = goal.sd(), len(components[0].position)
    rows = []
    for j, r in product(judges, repeats):
        for s in samples:
            needed = max(items_needed(c, Design(1, j, s, r), sd) for c in components)
            rows.append(_row(components, goal, costs, Design(needed, j, s, r), models))
    frame = pd.DataFrame(rows)
    fits = frame[frame["items"] <= most_items]
    if fits.empty:
        least = frame.sort_values("items").iloc[0]
        raise ConfigError(
            f"no design with at most {most_items:,} items is that precise: with {least.judges} judges, {least.samples} "
            f"samples and {least.repeats} repeats it takes {least['items']:,}. Allow more of them (--judges, "
            "--samples, --repeats), more items, or ask for less"
        )
    order = ["price", "ratings", "responses", "samples", "repeats", "judges"]
    return fits.sort_values(order, kind="stable").reset_index(drop=True)


def _row(
    components: Sequence[Components], goal: Goal, costs: Costs, design: Design, models: int
) -> dict[str, float | int | str]:
    sds = [difference_sd(c, design) for c in components]
    worst = int(np.argmax(sds))
    responses = models * design.items * design.samples
    ratings = responses * design.judges * design.repeats * sum(c.criteria for c in components)
    asked = goal.difference
    return {
        "judges": design.judges,
        "samples": design.samples,
        "repeats": design.repeats,
        "items": design.items,
        "responses": responses,
        "ratings": ratings,
        "price": ratings * costs.rating + responses * costs.response,
        "hours": ratings * costs.seconds / 3600,
        "half_width": Z95 * sds[worst],
        "dimension": components[worst].dimension,
        "power": np.nan if asked is None else power(sds[worst], asked),
        "right_order": np.nan if asked is None else right_order(sds[worst], asked),
        "reliability": min(reliability(c, sd) for c, sd in zip(components, sds, strict=True)),
    }


def variances(components: Sequence[Components]) -> pd.DataFrame:
    """The G-study: variance components per dimension.

    Columns: dimension, component, sd (logits), share (of all of them, judges and items included), averaged_over: what
    a D-study makes more of to lower it.
    """
    rows = []
    for c in components:
        alone = replace(c, s_u=0.0)
        noise = 1 / float(information(alone, 1, 1).mean())
        parts = (
            ("models", c.s_theta**2, "what is measured"),
            ("items", c.s_beta**2, "items; cancels in differences"),
            ("judges", float(c.severity.var(ddof=min(1, len(c.severity) - 1))), "judges; cancels in differences"),
            ("model x item", c.s_v**2, "items"),
            ("response", c.s_u**2, "items and samples"),
            ("rating", noise, "items, samples, judges and repeats"),
        )
        total = sum(value for _, value, _ in parts)
        rows += [(c.dimension, name, np.sqrt(value), value / total, over) for name, value, over in parts]
    return pd.DataFrame(rows, columns=["dimension", "component", "sd", "share", "averaged_over"])
