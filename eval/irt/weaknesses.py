"""What is weak in a rating design that is identified: warnings, and how names are listed in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dpeer.eval.irt import comparisons, elimination
from dpeer.eval.irt.elimination import Part
from dpeer.eval.irt.stan_terms import MIN_REPEATED, MIN_REPEATED_SHARE, item_shares, repeated_enough
from dpeer.eval.irt.types import Bools, Ints, Options, Ratings

FEW = 30
"""Ratings per element below which its estimate is too wide to be of use."""
SHOWN = 6


@dataclass(frozen=True, slots=True)
class DesignWarning:
    kind: str
    """table, unrated, single_ratings, bridge, few_ratings, few_judges, nested_judges, unused_category, constant_judge,
    extreme_only, common_leniency, one_group, few_repeats or comparisons."""
    text: str

    def __str__(self) -> str:
        return self.text


def names_of(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = f"{separator}... ({len(names)} in all)" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


def groups_of(names: Sequence[str], labels: Ints) -> str:
    members = [[name for name, own in zip(names, labels, strict=True) if own == label] for label in np.unique(labels)]
    return names_of([f"{{{names_of(group)}}}" for group in members], " and ")


def weaknesses(
    ratings: Ratings, parts: dict[str, Part], items: Bools, judges: Bools, planned: bool
) -> Iterator[DesignWarning]:
    """Warnings of a design that was accepted; `items` [D, Q] and `judges` [D, J] mark anchored ones."""
    for note in ratings.notes:
        yield DesignWarning("table", note)
    for kind, lost in ratings.unrated.items():
        many = f"{kind}s" if len(lost) > 1 else kind
        yield DesignWarning("unrated", f"{many} without any usable rating, left out: {names_of(lost)}")
    for note in comparisons.notes_of(ratings):
        yield DesignWarning("comparisons", note)
    if not comparisons.replicated(ratings):
        yield DesignWarning(
            "single_ratings",
            "every response was rated once per dimension: what is particular to a response cannot be told from a "
            "judge's noise, so logits are too close to zero; have some responses rated twice",
        )
    if not judges.any() and len(ratings):
        yield DesignWarning(
            "common_leniency",
            "a leniency that all judges share cannot be seen in their ratings, only with human or anchored judges",
        )
    if len(ratings.judges) == 2:
        yield DesignWarning("few_judges", "two judges: how much judges differ in general is hardly known; add a third")
    gathered: dict[DesignWarning, list[str]] = {}
    for d, (name, part) in enumerate(parts.items()):
        for warning in _weak_parts(ratings, part, items[d], judges[d]):
            gathered.setdefault(warning, []).append(name)
    for warning, dimensions in gathered.items():
        yield DesignWarning(warning.kind, f"in {names_of(dimensions)}: {warning.text}")
    per_judge = np.bincount(ratings.judge, minlength=len(ratings.judges))
    compares = np.isin(np.arange(len(ratings.judges)), ratings.comparisons.judge)
    rates = zip(ratings.judges, per_judge, compares, strict=True)
    if few := [f"judge {name} ({n})" for name, n, compared in rates if n < FEW and (n or not compared)]:
        yield DesignWarning("few_ratings", f"fewer than {FEW} ratings by {names_of(few)}: severities will be wide")
    if not planned:
        yield from _category_warnings(ratings)


def terms_at_risk(ratings: Ratings, options: Options) -> Iterator[DesignWarning]:
    """Terms that were asked for and that these ratings hardly tell from others."""
    if options.groups and len(ratings.groups) > 1:
        for d, name in enumerate(ratings.dimensions):
            met = (item_shares(ratings)[1][..., d] > 0).sum(axis=1)
            if alone := [model for model, n in zip(ratings.models, met, strict=True) if n == 1]:
                yield DesignWarning(
                    "one_group",
                    f"in {name}: {names_of(alone)} answered items of one group only; how able they are on the mix of "
                    "all groups rests on the prior of the model x group effects",
                )
    if options.model_item and not repeated_enough(ratings):
        yield DesignWarning(
            "few_repeats",
            f"model x item was asked for, but in some dimension fewer than {MIN_REPEATED} pairs of model and item, or "
            f"less than {MIN_REPEATED_SHARE:.0%} of them, were answered more than once: its spread rests on few pairs",
        )


def _weak_parts(ratings: Ratings, part: Part, items: Bools, judges: Bools) -> Iterator[DesignWarning]:
    models = len(ratings.models)
    counts = part.counts
    rated = counts[models : models + len(ratings.judges)] > 0
    if rated.sum() == 1:
        only = ratings.judges[int(np.argmax(rated))]
        yield DesignWarning("few_judges", f"only {only} rated; intervals are too narrow, as its noise is not seen")
    labels = part.silent.labels(part.judges)[rated]
    if len(np.unique(labels)) > 1:
        seen = [name for name, on in zip(ratings.judges, rated, strict=True) if on]
        text = f"the severities of {groups_of(seen, labels)} cannot be compared (disjoint items)"
        yield DesignWarning("nested_judges", text)
    n_of, kind = _counts(ratings, part, counts[:models])
    if few := [f"{name} ({n:.0f})" for name, n in zip(ratings.models, n_of, strict=True) if n < FEW]:
        yield DesignWarning("few_ratings", f"fewer than {FEW} {kind} of {names_of(few)}: abilities will be wide")
    if part.compared.max() == 0:
        return
    for facet, names, met, anchored in (
        ("item", ratings.items, part.items_met, items),
        ("judge", ratings.judges, part.judges_met, judges),
    ):
        bridging = iter(()) if anchored.any() else elimination.bridges(met)
        for element, apart in islice(bridging, SHOWN):
            text = f"{facet} {names[element]} alone links {groups_of(ratings.models, apart)}"
            yield DesignWarning("bridge", text)


def _counts(ratings: Ratings, part: Part, rated: Ints) -> tuple[Ints, str]:
    """[M] ratings of each model, with its comparisons where there are some."""
    c = ratings.comparisons
    here = c.dimension == part.dimension
    if not here.any():
        return rated, "ratings"
    models = ratings.response_model[np.concatenate([c.response[here], c.other[here]])]
    return rated + np.bincount(models, minlength=len(rated)), "ratings and comparisons"


def _category_warnings(ratings: Ratings) -> Iterator[DesignWarning]:
    judges, dimensions, categories = len(ratings.judges), len(ratings.dimensions), len(ratings.scale)
    cell = (ratings.judge * dimensions + ratings.dimension) * categories + ratings.category
    counts = np.bincount(cell, minlength=judges * dimensions * categories).reshape(judges, dimensions, categories)
    for d, name in enumerate(ratings.dimensions):
        unused = [str(ratings.scale[k]) for k in np.flatnonzero(counts[:, d].sum(axis=0) == 0)]
        if unused and ratings.rated[d]:
            yield DesignWarning(
                "unused_category", f"in {name}: no judge gave {names_of(unused)}; its threshold is not estimated"
            )
    yield from _extremes(ratings)
    yield from _judges_categories(ratings, counts)


def _extremes(ratings: Ratings) -> Iterator[DesignWarning]:
    """Models and items with nothing but the lowest, or the highest, score: no rating bounds them on the other side."""
    for kind, names, index in (("model", ratings.models, ratings.model), ("item", ratings.items, ratings.item)):
        for d in np.flatnonzero(ratings.rated):
            dimension = ratings.dimensions[d]
            rows = ratings.dimension == d
            low, high = np.full(len(names), len(ratings.scale)), np.full(len(names), -1)
            np.minimum.at(low, index[rows], ratings.category[rows])
            np.maximum.at(high, index[rows], ratings.category[rows])
            used = ratings.category[rows]
            for at, word in ((used.min(), "lowest"), (used.max(), "highest")):
                if found := [name for name, a, b in zip(names, low, high, strict=True) if a == b == at]:
                    many = f"{kind}s" if len(found) > 1 else kind
                    yield DesignWarning(
                        "extreme_only",
                        f"in {dimension}: only the {word} score was given to {len(found):,} {many}: {names_of(found)}. "
                        "How far out they are is set by the prior, not by the ratings",
                    )


def _judges_categories(ratings: Ratings, counts: Ints) -> Iterator[DesignWarning]:
    """Judges [J, D, K] who leave scores out, in one line per kind."""
    constant: dict[str, list[str]] = {}
    never: dict[str, list[str]] = {}
    others = counts.sum(axis=(0, 1)) > 0
    for j, name in enumerate(ratings.judges):
        alone = (counts[j].sum(axis=-1) > 0) & ((counts[j] > 0).sum(axis=-1) == 1)
        if alone.any():
            where = names_of([ratings.dimensions[d] for d in np.flatnonzero(alone)])
            constant.setdefault(where, []).append(name)
        unused = [str(ratings.scale[k]) for k in np.flatnonzero((counts[j].sum(axis=0) == 0) & others)]
        if unused and counts[j].any() and not alone.all():
            never.setdefault(names_of(unused), []).append(name)
    for where, names in constant.items():
        what = "it tells" if len(names) == 1 else "they tell"
        yield DesignWarning(
            "constant_judge", f"{_judges(names)} gave one score only in {where}; {what} nothing about ability"
        )
    if len(never) > SHOWN:
        never = {"some scores": [name for names in never.values() for name in names]}
    for unused_scores, names in never.items():
        yield DesignWarning("unused_category", f"{_judges(names)} never gave {unused_scores}, which other judges did")


def _judges(names: Sequence[str]) -> str:
    """E.g. "judge ann", "200 judges (w000, w001, ...)"."""
    return f"judge {names[0]}" if len(names) == 1 else f"{len(names)} judges ({names_of(names)})"
