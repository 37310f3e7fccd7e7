"""Which design is precise enough, and cheapest: judges x repeats x samples, with the items that each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.precision import (
    NEVER,
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

    def sd(self, s_theta: float = 0.0) -> float:
        """Posterior sd that meets all that is asked for, where abilities spread by `s_theta` (0: no prior).

        Raises ConfigError: nothing is asked for, or it makes no sense.
        """
        wanted = []  # posterior
        apart = []  # without the prior
        if self.half_width is not None:
            wanted.append(self.half_width / Z95)
        if (self.power is not None or self.order is not None) and self.difference is None:
            raise ConfigError("--power and --order need --difference, the true difference in logits to be found")
        if self.difference is not None:
            if self.power is None and self.order is None:
                raise ConfigError("--difference needs --power or --order, the probability of finding it")
            if self.power is not None:
                apart.append(_se_of_power(self.difference, self.power, s_theta))
            if self.order is not None:
                apart.append(self.difference / float(stats.norm.ppf(self.order)))
        wanted += [se / np.sqrt(1 + se**2 / (2 * s_theta**2)) if s_theta > 0 else se for se in apart]
        if not wanted:
            raise ConfigError("say what is wanted: --half-width W, or --difference D with --power P or --order P")
        return float(min(wanted))

    def met_by_prior(self, s_theta: float) -> bool:
        """Nothing needs to be rated: abilities are taken to differ so little."""
        return s_theta > 0 and self.sd(s_theta) >= np.sqrt(2) * s_theta


def _se_of_power(difference: float, power: float, s_theta: float) -> float:
    """Largest sd of an unshrunken difference whose shrunken interval leaves out zero with this probability."""
    z = float(stats.norm.ppf(power))
    most = difference / (Z95 + z)
    if s_theta == 0:
        return most

    def excess(se: float) -> float:
        return float(difference / se - Z95 * np.sqrt(1 + se**2 / (2 * s_theta**2)) - z)

    return float(optimize.brentq(excess, most * 1e-9, most, xtol=most * 1e-12))


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
    dimension (the worst), power and right_order of the goal's difference (least; nan without), reliability (least).
    Raises ConfigError: no design of at most `most_items` items will do, or the goal is met without any rating.
    """
    models = len(components[0].position)
    if all(goal.met_by_prior(c.s_theta) for c in components):
        spread = max(c.s_theta for c in components)
        raise ConfigError(
            f"abilities are taken to spread so little (s_theta {spread:.2g}) that differences lie within "
            f"±{Z95 * np.sqrt(2) * spread:.2f} before anything is rated. Ask for a half-width below that, or for what "
            "finds a true difference: --difference D with --power P"
        )
    rows = []
    for j, r in product(judges, repeats):
        for s in samples:
            needed = max(items_needed(c, Design(1, j, s, r), goal.sd(c.s_theta)) for c in components)
            rows.append(_row(components, goal, costs, Design(needed, j, s, r), models))
    frame = pd.DataFrame(rows)
    fits = frame[frame["items"] <= most_items]
    if fits.empty:
        least = frame.sort_values("items").iloc[0]
        if least["items"] == NEVER:
            raise ConfigError(
                f"no number of items is that precise with at most {max(judges)} judges: what a judge thinks of a model "
                "(judge x model) is lowered by more judges alone. Allow more of them (--judges), or ask for less"
            )
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
    asked = np.nan if goal.difference is None else goal.difference
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
        "power": min(power(sd, asked, c.s_theta) for c, sd in zip(components, sds, strict=True)),
        "right_order": min(right_order(sd, asked, c.s_theta) for c, sd in zip(components, sds, strict=True)),
        "reliability": min(reliability(c, sd) for c, sd in zip(components, sds, strict=True)),
    }


def variances(components: Sequence[Components]) -> pd.DataFrame:
    """The G-study: variance components per dimension.

    Columns: dimension, component, sd (logits), share (of all of them, judges and items included), averaged_over: what
    a D-study makes more of to lower it.
    """
    rows = []
    for c in components:
        alone = replace(c, s_u=0.0, s_halo=0.0)
        noise = 1 / float(information(alone, 1, 1).mean())
        parts = (
            ("models", c.s_theta**2, "what is measured"),
            ("items", c.s_beta**2, "items; cancels in differences"),
            ("judges", float(c.severity.var(ddof=min(1, len(c.severity) - 1))), "judges; cancels in differences"),
            ("model x item", c.s_v**2, "items"),
            ("judge x model", c.s_judge_model**2, "judges"),
            ("response", c.s_u**2, "items and samples"),
            ("halo", c.s_halo**2, "items, samples and judges"),
            ("rating", noise, "items, samples, judges and repeats"),
        )
        total = sum(value for _, value, _ in parts)
        rows += [(c.dimension, name, np.sqrt(value), value / total, over) for name, value, over in parts]
    return pd.DataFrame(rows, columns=["dimension", "component", "sd", "share", "averaged_over"])
