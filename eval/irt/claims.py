"""What may be said of the models at once: simultaneous intervals, smallest effects of interest, sets of ranks.

A table of M models and D dimensions holds (M - 1) D contrasts; at 95 % each, one in twenty excludes zero by chance. The
intervals here hold all at once: mean +- q sd, where q is the 95 % quantile over draws of the largest standardised
deviation in the family (sup-t; Montiel Olea & Plagborg-Moller 2019). Ranks: Mogstad et al. (2024) with these intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import MOST_RANKED, estimates
from dpeer.eval.irt.types import Bools, Floats, Posterior, Ratings

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Claims:
    """What a person wants to claim."""

    smallest: float = 0.0
    """Smallest effect of interest, in logits."""
    family: tuple[str, ...] = ()
    """Patterns MODEL/DIMENSION (* and ? as in file names) of the contrasts that are claimed together; empty: all."""


def simultaneous(draws: Floats, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Bounds [C] within which the draws [S, C] lie together with probability `level`."""
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    q = np.quantile(_deviation(draws), level) if draws.shape[1] else 0.0
    return mean - q * sd, mean + q * sd


def _deviation(draws: Floats) -> Floats:
    """Largest standardised deviation from the mean over the columns of each draw [S]; fixed columns have none."""
    sd = draws.std(axis=0)
    away = np.abs(draws - draws.mean(axis=0)) / np.where(sd > 0, sd, np.inf)
    return np.asarray(away.max(axis=1, initial=0.0))


def contrast_table(posterior: Posterior, base: str, wanted: Claims) -> pd.DataFrame:
    """A row per model other than the base and dimension.

    contrast with its own 95 % interval; family_low, family_high: all contrasts of the family at once, nan outside it;
    p_better; p_better_by, p_worse_by: beyond the smallest effect of interest; p_equivalent: within it; verdict. All
    about new prompts of this kind; contrast_these and p_better_these about those that were answered.
    """
    r, theta = posterior.ratings, posterior.flat("theta")
    others = [m for m, name in enumerate(r.models) if name != base]
    contrast = (theta[:, others] - theta[:, [r.models.index(base)]]).reshape(len(theta), -1)
    names, chosen = [r.models[m] for m in others], in_family(r, base, wanted)
    low, high = (np.full(contrast.shape[1], np.nan) for _ in range(2))
    low[chosen], high[chosen] = simultaneous(contrast[:, chosen])
    limit = wanted.smallest
    frame = pd.DataFrame(
        {
            "model": np.repeat(np.array(names, dtype=object), len(r.dimensions)),
            "dimension": np.tile(np.array(r.dimensions, dtype=object), len(names)),
            **estimates("contrast", contrast),
            "family_low": low,
            "family_high": high,
            "p_better": (contrast > 0).mean(axis=0),
            "p_better_by": (contrast > limit).mean(axis=0),
            "p_worse_by": (contrast < -limit).mean(axis=0),
            "p_equivalent": (np.abs(contrast) < limit).mean(axis=0),
        }
    )
    if "theta_these" in posterior.draws:
        these = posterior.flat("theta_these")
        these = (these[:, others] - these[:, [r.models.index(base)]]).reshape(len(theta), -1)
        frame = frame.assign(**estimates("contrast_these", these), p_better_these=(these > 0).mean(axis=0))
    return frame.assign(verdict=[verdict(a, b, limit) for a, b in zip(low, high, strict=True)])


def in_family(ratings: Ratings, base: str, wanted: Claims) -> Bools:
    """Which contrasts to the base [(M - 1) D] are claimed together; ConfigError for a pattern that none has."""
    names = [f"{m}/{d}" for m in ratings.models if m != base for d in ratings.dimensions]
    if not wanted.family:
        return np.ones(len(names), bool)
    found = {pattern: [fnmatchcase(name, pattern) for name in names] for pattern in wanted.family}
    if missing := [pattern for pattern, hits in found.items() if not any(hits)]:
        raise ConfigError(
            f"claim {missing[0]}: no contrast has this name; write MODEL/DIMENSION, * for all. There are "
            f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        )
    return np.asarray(np.any(list(found.values()), axis=0))


def verdict(low: float, high: float, smallest: float = 0.0) -> str:
    """What an interval says: better, worse, equivalent, no worse or undecided; with a size where one was asked for."""
    side = "better" if low > 0 else "worse" if high < 0 else ""
    if smallest > 0:
        if max(low, -high) > smallest:
            return f"{side} by more than {smallest:g}"
        if low > -smallest and high < smallest:
            return f"{side} by less than {smallest:g}" if side else f"equivalent within {smallest:g}"
        if not side and low > -smallest:
            return f"no worse by {smallest:g}"
    return side or "undecided"


def rank_sets(posterior: Posterior) -> pd.DataFrame:
    """Ranks (1 = most able) that each model may have, all models and dimensions at once; none of above MOST_RANKED
    models, of which hardly any two can be told apart among so many pairs."""
    r, theta = posterior.ratings, posterior.flat("theta")
    M = len(r.models)
    rows: list[dict[str, Any]] = []
    if M <= MOST_RANKED:
        q = np.quantile(np.max([_deviation(pairs) for pairs in _pairs(theta)], axis=0), LEVEL)
        first, second = np.triu_indices(M, 1)
        for d, pairs in enumerate(_pairs(theta)):
            mean, width = pairs.mean(axis=0), q * pairs.std(axis=0)
            above, below = mean - width > 0, mean + width < 0  # the first of the pair is surely better, worse
            better = np.bincount(second[above], minlength=M) + np.bincount(first[below], minlength=M)
            worse = np.bincount(first[above], minlength=M) + np.bincount(second[below], minlength=M)
            rows += [
                {"model": name, "dimension": r.dimensions[d], "best_rank": 1 + better[m], "worst_rank": M - worse[m]}
                for m, name in enumerate(r.models)
            ]
    frame = pd.DataFrame(rows, columns=["model", "dimension", "best_rank", "worst_rank"])
    return frame.sort_values("model", key=lambda column: column.map(r.models.index), kind="stable", ignore_index=True)


def _pairs(theta: Floats) -> Iterator[Floats]:
    """Differences of all pairs of models [S, M (M - 1) / 2] of one dimension after the other."""
    first, second = np.triu_indices(theta.shape[1], 1)
    for d in range(theta.shape[2]):
        yield theta[:, first, d] - theta[:, second, d]


def claims(result: Result) -> list[str]:
    """Sentences on models against the base; none at all unless the gate is green (else read its reasons)."""
    if not result.gate["green"]:
        return []
    sentences, misfit, table = [], result.tables["misfit"], result.tables["contrasts"]
    together = int(table["family_low"].notna().sum())
    family = f"; all {together} at once" if together > 1 else ""
    for row in table[table["verdict"] != "undecided"].itertuples():
        own = misfit[misfit["notable"] & (misfit["model"] == row.model) & (misfit["dimension"] == row.dimension)]
        gaps = [*map(_gap, own.itertuples()), *_pair_gaps(result.tables.get("comparisons"), row)]
        caveat = "".join(f"; but {gap}" for gap in gaps)
        said = f"{row.model} is {_against(row.verdict, result.facts['base'])} in {row.dimension}"
        sentences.append(
            f"{said}: {row.contrast:+.2f} logits [{row.family_low:.2f}, {row.family_high:.2f}{family}], "
            f"{_certainty(row)}{caveat}{_rests_on(row)}"
        )
    return sentences


def _rests_on(row: Any) -> str:
    """What leaving out a judge makes of it, where that was looked at (`irt.without_judge`)."""
    said = getattr(row, "stable", "")
    if not said:
        return ""
    return f"; {said}, whichever judge is left out" if said == "stable" else f"; judges left out: {said}"


def _against(said: str, base: str) -> str:
    """E.g. "better than base by more than 0.2"."""
    for words, than in (("better", "than"), ("no worse", "than"), ("worse", "than"), ("equivalent", "to")):
        if said.startswith(words):
            return f"{words} {than} {base}{said.removeprefix(words)}"
    raise ValueError(said)


def _certainty(row: Any) -> str:
    """Probability of what the verdict says, each contrast for itself."""
    said = row.verdict
    if said.startswith("equivalent"):
        p = row.p_equivalent
    elif "less than" in said:
        p = row.p_better - row.p_better_by if said.startswith("better") else 1 - row.p_better - row.p_worse_by
    elif "more than" in said:
        p = row.p_better_by if said.startswith("better") else row.p_worse_by
    elif said.startswith("no worse"):
        p = 1 - row.p_worse_by
    else:
        p = row.p_better if said.startswith("better") else 1 - row.p_better
    return "P > 0.999" if p > 0.999 else f"P = {p:.3f}"


def _gap(cell: Any) -> str:
    gap = cell.observed - cell.expected
    return f"{cell.judge} scores it {abs(gap):.2f} {'higher' if gap > 0 else 'lower'} than the model of judging expects"


def _pair_gaps(table: pd.DataFrame | None, claimed: Any) -> Iterator[str]:
    """Pairs with the model of a claim whose comparisons are not as expected."""
    if table is None:
        return
    for pair in table[table["notable"] & (table["dimension"] == claimed.dimension)].itertuples():
        if claimed.model in (pair.model, pair.other):
            other, sign = (pair.other, 1) if claimed.model == pair.model else (pair.model, -1)
            gap = sign * (pair.observed - pair.expected)
            yield (
                f"compared with {other} it does {abs(gap):.2f} {'better' if gap > 0 else 'worse'} than the model of "
                "judging expects (mean outcome, -1 to 1)"
            )
