"""What is weak in a rating design that is identified: warnings, and how names are listed in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpeer.eval.irt import elimination
from dpeer.eval.irt.elimination import Part
from dpeer.eval.irt.types import Bools, Ints, Ratings

FEW = 30
"""Ratings per element below which its estimate is too wide to be of use."""
SHOWN = 6


@dataclass(frozen=True, slots=True)
class DesignWarning:
    kind: str
    """unrated, single_ratings, bridge, few_ratings, few_judges, nested_judges, unused_category, constant_judge or
    common_leniency."""
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
    for kind, lost in ratings.unrated.items():
        many = f"{kind}s" if len(lost) > 1 else kind
        yield DesignWarning("unrated", f"{many} without any usable rating, left out: {names_of(lost)}")
    cells = ratings.response * len(ratings.dimensions) + ratings.dimension
    if len(np.unique(cells)) == len(cells):
        yield DesignWarning(
            "single_ratings",
            "every response was rated once per dimension: what is particular to a response cannot be told from a "
            "judge's noise, so logits are too close to zero; have some responses rated twice",
        )
    if not judges.any():
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
    if few := [f"judge {name} ({n})" for name, n in zip(ratings.judges, per_judge, strict=True) if n < FEW]:
        yield DesignWarning("few_ratings", f"fewer than {FEW} ratings by {names_of(few)}: severities will be wide")
    if not planned:
        yield from _category_warnings(ratings)


def _weak_parts(ratings: Ratings, part: Part, items: Bools, judges: Bools) -> Iterator[DesignWarning]:
    models = len(ratings.models)
    counts = part.gram.diagonal()
    rated = counts[models : models + len(ratings.judges)] > 0
    if rated.sum() == 1:
        only = ratings.judges[int(np.argmax(rated))]
        yield DesignWarning("few_judges", f"only {only} rated; intervals are too narrow, as its noise is not seen")
    labels = elimination.clusters(part.null[models : models + len(ratings.judges)][rated])
    if labels.max() > 0:
        seen = [name for name, on in zip(ratings.judges, rated, strict=True) if on]
        text = f"the severities of {groups_of(seen, labels)} cannot be compared (disjoint items)"
        yield DesignWarning("nested_judges", text)
    if few := [f"{name} ({n:.0f})" for name, n in zip(ratings.models, counts[:models], strict=True) if n < FEW]:
        yield DesignWarning("few_ratings", f"fewer than {FEW} ratings of {names_of(few)}: abilities will be wide")
    for facet, names, met, anchored in (
        ("item", ratings.items, part.items_met, items),
        ("judge", ratings.judges, part.judges_met, judges),
    ):
        bridging = [] if anchored.any() else elimination.bridges(met)
        for element, apart in bridging[:SHOWN]:
            text = f"{facet} {names[element]} alone links {groups_of(ratings.models, apart)}"
            yield DesignWarning("bridge", text)


def _category_warnings(ratings: Ratings) -> Iterator[DesignWarning]:
    judges, dimensions, categories = len(ratings.judges), len(ratings.dimensions), len(ratings.scale)
    cell = (ratings.judge * dimensions + ratings.dimension) * categories + ratings.category
    counts = np.bincount(cell, minlength=judges * dimensions * categories).reshape(judges, dimensions, categories)
    for d, name in enumerate(ratings.dimensions):
        unused = [str(ratings.scale[k]) for k in np.flatnonzero(counts[:, d].sum(axis=0) == 0)]
        if unused:
            yield DesignWarning(
                "unused_category", f"in {name}: no judge gave {names_of(unused)}; its threshold is not estimated"
            )
    for j, name in enumerate(ratings.judges):
        rated = counts[j].sum(axis=-1) > 0
        constant = rated & ((counts[j] > 0).sum(axis=-1) == 1)
        if constant.any():
            where = names_of([ratings.dimensions[d] for d in np.flatnonzero(constant)])
            yield DesignWarning(
                "constant_judge", f"judge {name} gave one score only in {where}; it tells nothing about ability"
            )
        others = counts.sum(axis=(0, 1)) > 0
        unused = [str(ratings.scale[k]) for k in np.flatnonzero((counts[j].sum(axis=0) == 0) & others)]
        if unused and not constant.all():
            yield DesignWarning(
                "unused_category", f"judge {name} never gave {names_of(unused)}, which other judges did"
            )
