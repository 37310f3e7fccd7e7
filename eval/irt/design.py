"""Identification of a rating design: can these ratings, or this plan of ratings, tell the models apart?

A direction on which the ratings are silent (see `irt.elimination`) and that moves models apart makes the design
useless for comparing them, even where every two models are connected: refused, by name, with the cheapest repair. One
that moves only judges apart harms only statements about judges: a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpeer.errors import DpeerError
from dpeer.eval.irt import comparisons, elimination
from dpeer.eval.irt.elimination import Part
from dpeer.eval.irt.types import Bools, Floats, Ints, Options, Ratings
from dpeer.eval.irt.weaknesses import FEW, DesignWarning, groups_of, names_of, terms_at_risk, weaknesses

ALIASED = 1e-8
"""Share of a covariate's squares that must be left unexplained by models, items, judges and criteria."""
MOST_REPAIRS = 60
"""Ratings that a repair counts; six are shown."""


class DesignError(DpeerError):
    """A design that cannot answer the question; `name` says how it fails."""

    name = "DesignError"

    def __init__(self, text: str) -> None:
        super().__init__(f"{self.name}: {text}")


class NoRatings(DesignError):
    name = "NoRatings"


class TooFewModels(DesignError):
    name = "TooFewModels"


class TooFewJudges(DesignError):
    name = "TooFewJudges"


class ConstantScores(DesignError):
    name = "ConstantScores"


class DisconnectedDesign(DesignError):
    """Groups of models that share neither items nor judges."""

    name = "DisconnectedDesign"


class DisjointItems(DesignError):
    name = "DisjointItems"


class DisjointJudges(DesignError):
    name = "DisjointJudges"


class DisjointCriteria(DesignError):
    name = "DisjointCriteria"


class RankDeficient(DesignError):
    """Every two facets are connected, and yet a contrast of models is not identified."""

    name = "RankDeficient"


class SelfPreferenceAliased(DesignError):
    name = "SelfPreferenceAliased"


class ConstantCovariate(DesignError):
    name = "ConstantCovariate"


class CollinearCovariate(DesignError):
    name = "CollinearCovariate"


class ResponseEffectAliased(DesignError):
    name = "ResponseEffectAliased"


class HaloAliased(DesignError):
    name = "HaloAliased"


class DiscriminationAliased(DesignError):
    name = "DiscriminationAliased"


@dataclass(frozen=True, slots=True)
class DesignReport:
    """An accepted design; mappings are by dimension."""

    warnings: tuple[DesignWarning, ...]
    ratings: dict[str, int]
    rank: dict[str, int]
    columns: dict[str, int]
    """Models, judges and criteria that were rated: rank + 3 where all are comparable."""
    components: dict[str, int]
    """Connected parts of the model x item x judge graph."""


def check(ratings: Ratings, options: Options, planned: bool = False) -> DesignReport:
    """Refuse a design in which abilities or a wanted effect are not identified; warn of a weak one.

    Near-linear in the number of ratings. With `planned`, categories are not looked at, nor is a length not known yet.
    Anchored judges and items (`options.anchors`) count as known.

    Raises: a `DesignError` by its name, with the offenders and the cheapest repair.
    """
    _enough(ratings, planned)
    items = _anchored(ratings.items, ratings.dimensions, options, "items")
    judges = _anchored(ratings.judges, ratings.dimensions, options, "judges")
    parts = [elimination.eliminate(ratings, d, items[d], judges[d]) for d in range(len(ratings.dimensions))]
    together = [_together(*known) for known in zip(parts, items, judges, strict=True)]
    _comparable(ratings, parts, items, judges)
    _covariates(ratings, options, parts, planned)
    _random_effects(ratings, options)
    named = dict(zip(ratings.dimensions, parts, strict=True))
    return DesignReport(
        warnings=(*weaknesses(ratings, named, items, judges, planned), *terms_at_risk(ratings, options)),
        ratings={name: len(part.rows) for name, part in named.items()},
        rank={name: part.rank for name, part in named.items()},
        columns={name: part.columns for name, part in named.items()},
        components={name: int(labels.max()) + 1 for name, labels in zip(named, together, strict=True)},
    )


def _anchored(names: Sequence[str], dimensions: Sequence[str], options: Options, kind: str) -> Bools:
    """[D, n]"""
    known = (options.anchors or {}).get(kind, {})
    return np.array([[dimension in known.get(name, ()) for name in names] for dimension in dimensions], bool)


def _together(part: Part, items: Bools, judges: Bools) -> Ints:
    return elimination.joined(elimination.linked((part.items_met, items), (part.judges_met, judges)), part.compared)


def _enough(ratings: Ratings, planned: bool) -> None:
    if not len(ratings) and not len(ratings.comparisons):
        raise NoRatings(f"none of {sum(ratings.statuses.values())} rows is a rating with status ok and a score")
    if len(ratings.models) < 2:
        raise TooFewModels(
            f"only {ratings.models[0]} was rated; ability is relative. Cheapest repair: rate a base model too"
        )
    comparing = np.setdiff1d(ratings.comparisons.judge, ratings.judge)
    if len(ratings.judges) - len(comparing) < 2 and len(ratings):
        who = "the only judge who rates" if len(comparing) else "the only judge"
        raise TooFewJudges(
            f"{who} is '{ratings.judges[ratings.judge[0]]}', whose severity and noise cannot be told from ability. "
            f"Cheapest repair: a second judge on the same responses, {FEW} or more per model"
        )
    if planned:
        return
    for d, name in enumerate(ratings.dimensions):
        used = np.unique(ratings.category[ratings.dimension == d])
        outcomes = ratings.comparisons.outcome[ratings.comparisons.dimension == d]
        if not len(used) and (outcomes == 1).all():
            raise ConstantScores(f"every comparison in {name} is a tie. Repair: leave the dimension out")
        if len(used) == 1 and (outcomes == 1).all():
            raise ConstantScores(
                f"every rating of {name} is {ratings.scale[used[0]]}. "
                "Repair: leave the dimension out, or use harder prompts or a finer scale"
            )


def _comparable(ratings: Ratings, parts: Sequence[Part], items: Bools, judges: Bools) -> None:
    faults: dict[tuple[type[DesignError], str, str], list[str]] = {}
    for d, (name, part) in enumerate(zip(ratings.dimensions, parts, strict=True)):
        if fault := _fault(ratings, part, items[d], judges[d]):
            faults.setdefault(fault, []).append(name)
    for (error, problem, repair), dimensions in faults.items():
        raise error(f"in {names_of(dimensions)}: {problem}. Cheapest repair: {repair}")


def _fault(ratings: Ratings, part: Part, items: Bools, judges: Bools) -> tuple[type[DesignError], str, str] | None:
    labels = part.groups()
    if labels.max() == 0:
        return None
    if not len(part.rows):
        return DisconnectedDesign, f"{groups_of(ratings.models, labels)} are never compared", _bridge(ratings, labels)
    if not part.linked_to_ratings.all():
        missing = [name for name, seen in zip(ratings.models, part.linked_to_ratings, strict=True) if not seen]
        compared = ", nor a comparison that links them to one that was rated" if len(ratings.comparisons) else ""
        return (
            DisconnectedDesign,
            f"no usable rating of {names_of(missing)}{compared}",
            "let the judges of the other models rate them",
        )
    by_items, by_judges, by_criteria = (
        elimination.joined(elimination.linked(facet), part.compared)
        for facet in ((part.items_met, items), (part.judges_met, judges), (part.criteria_met, None))
    )
    reasons: tuple[tuple[Ints, type[DesignError], str], ...] = (
        (_together(part, items, judges), DisconnectedDesign, "share neither an item nor a judge"),
        (by_items, DisjointItems, "answered disjoint items"),
        (by_judges, DisjointJudges, "were rated by disjoint judges"),
        (by_criteria, DisjointCriteria, "were rated on disjoint criteria"),
    )
    error: type[DesignError] = RankDeficient
    groups, reason = labels, "are linked, but so that ability cannot be told from difficulty and severity"
    for apart, named, why in reasons:
        if apart.max() > 0:
            error, groups, reason = named, apart, why
            break
    return error, f"{groups_of(ratings.models, groups)} {reason}", _repair(ratings, part, labels)


def _bridge(ratings: Ratings, labels: Ints) -> str:
    """One comparison for every group of models beyond the first."""
    groups = [[m for m, own in zip(ratings.models, labels, strict=True) if own == k] for k in range(labels.max() + 1)]
    steps = [f"{ratings.judges[0]} compares {group[0]} with {groups[0][0]}" for group in groups[1:]]
    return f"{names_of(steps, '; ')}, on items that both answered, {FEW} or more"


def _repair(ratings: Ratings, part: Part, labels: Ints) -> str:
    """The fewest ratings that make all models comparable, of responses that exist where possible.

    A rating of model b in a cell (item, judge, criterion) where model a has one removes exactly one silent direction,
    along ability[b] - ability[a]; so it takes as many as there are directions that move models apart.
    """
    silent = part.silent.sample(min(part.silent.nullity, MOST_REPAIRS))[part.models][part.compared]
    model, judge, criterion = part.elements[0], ratings.judge[part.rows], ratings.criterion[part.rows]
    counts = np.bincount(model, minlength=len(ratings.models))
    hub = int(np.argmax(np.bincount(labels, weights=counts)))
    cells = np.flatnonzero(labels[model] == hub)
    steps = []
    for label in np.unique(labels[labels != hub]):
        newcomer = int(np.argmax(np.where(labels == label, counts, -1)))
        direction = silent[newcomer] - silent[model[cells[0]]]
        if np.linalg.norm(direction) < 1e-6:
            continue
        silent = silent - np.outer(silent @ direction, direction) / (direction @ direction)
        answered = np.isin(part.item, ratings.response_item[ratings.response_model == newcomer])[cells]
        cell = cells[np.argmax(answered)]
        who, what, by = ratings.models[newcomer], ratings.items[part.item[cell]], ratings.judges[judge[cell]]
        on = f", criterion {ratings.criteria[criterion[cell]][1]}" if len(np.unique(criterion)) > 1 else ""
        todo = "" if answered.any() else " (which it must answer first)"
        steps.append(f"judge {by} rates {who} on item {what}{on}{todo}")
    more = f" and more: {labels.max() + 1:,} groups" if len(steps) >= MOST_REPAIRS else ""
    return f"{names_of(steps, '; ')}{more}. One rating each identifies the abilities, {FEW} or more make them precise"


def _covariates(ratings: Ratings, options: Options, parts: Sequence[Part], planned: bool) -> None:
    """Wanted effects must not be combinations of abilities, difficulties, severities and each other."""
    wanted = {
        "own_family": (options.self_family, ratings.own_family),
        "own_model": (options.self_model, ratings.own_model),
        "order": (options.order, ratings.reversed),
    }
    shared = {name: values.astype(np.float64) for name, (on, values) in wanted.items() if on}
    length = ratings.response_length[ratings.response]
    with_length = options.length and not (planned and not length.any())
    left = np.diag(_left_by_comparisons(ratings, list(shared)))
    for d, (name, part) in enumerate(zip(ratings.dimensions, parts, strict=True)):
        if not len(part.rows):
            if with_length:
                _length_varies(ratings, d)
            continue
        columns = [values[part.rows] for values in (*([length] if with_length else []), *shared.values())]
        if not columns:
            return
        rest = elimination.unexplained(part, np.column_stack(columns))
        names = [*(["length"] if with_length else []), *shared]
        unknown = [label for label, value in zip(names, rest.diagonal(), strict=True) if np.isnan(value)]
        if unknown:
            raise _undetermined(unknown, name)
        if with_length:
            if rest[0, 0] <= ALIASED * (columns[0] @ columns[0]):
                raise _length_aliased(ratings, part, columns[0], name)
            rest = rest[1:, 1:] - np.outer(rest[0, 1:], rest[0, 1:]) / rest[0, 0]
        left += rest
    for index, (name, values) in enumerate(shared.items()):
        if left[index, index] <= ALIASED * (values @ values):
            raise _order_aliased(ratings, values) if name == "order" else _self_aliased(ratings, name, values)
    if len(shared) > 1:
        scale = 1 / np.sqrt(left.diagonal())
        if np.linalg.eigvalsh(left * scale[:, None] * scale)[0] < ALIASED:
            error = CollinearCovariate if "order" in shared else SelfPreferenceAliased
            raise error(f"{names_of(shared)} mark the same ratings and cannot be told apart. Repair: leave one out")


def _left_by_comparisons(ratings: Ratings, names: Sequence[str]) -> Floats:
    """What comparisons alone tell of each effect: squares that abilities leave unexplained."""
    c = ratings.comparisons
    none = np.zeros(len(c))
    columns = {"own_family": c.own_family.astype(float), "own_model": c.own_model.astype(float)}
    if not len(c) or not names:
        return np.zeros(len(names))
    return comparisons.unexplained(ratings, np.column_stack([columns.get(name, none) for name in names]))


def _length_varies(ratings: Ratings, dimension: int) -> None:
    c = ratings.comparisons
    gap = ratings.response_length[c.response] - ratings.response_length[c.other]
    gap = np.where(c.dimension == dimension, gap, 0.0)
    if comparisons.unexplained(ratings, gap[:, None])[0] <= ALIASED * (gap @ gap):
        raise ConstantCovariate(
            f"length: in {ratings.dimensions[dimension]} not known, or not to be told from ability in its comparisons. "
            "Repair: a table with response_length and other_response_length, or no length effect"
        )


def _undetermined(names: Sequence[str], dimension: str) -> DesignError:
    return CollinearCovariate(
        f"{names_of(names)}: not determined in {elimination.ITERATIONS:,} iterations whether models, items, judges and "
        f"criteria explain it in {dimension}. Repair: leave it out, or link the parts of the design by more ratings"
    )


def _same_within(index: Ints, values: Floats, size: int) -> Bools:
    """[size] whether a covariate is the same in all ratings of each element."""
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    return high <= low


def _length_aliased(ratings: Ratings, part: Part, length: Floats, dimension: str) -> DesignError:
    if not length.any():
        return ConstantCovariate("length: not known. Repair: a table with response_length, or no length effect")
    if _same_within(part.elements[0], length, len(ratings.models)).all():
        return ConstantCovariate(
            f"length: the same in all responses of each model in {dimension}, so that its effect cannot be told from "
            "ability. Repair: responses that vary in length, or no length effect"
        )
    return CollinearCovariate(
        f"length: in {dimension} a sum of model and item parts, so that its effect cannot be told from theirs. "
        "Repair: more samples per model and item, or no length effect"
    )


def _order_aliased(ratings: Ratings, order: Floats) -> DesignError:
    repair = "Repair: an even number of repeats (every second one lists the scale from the top), or no order effect"
    if _same_within(ratings.model, order, len(ratings.models)).all():
        return ConstantCovariate(f"order: the same in all ratings of each model, not to be told from ability. {repair}")
    return CollinearCovariate(
        f"order: a combination of models, items, judges and length, not to be told from theirs. {repair}"
    )


def _self_aliased(ratings: Ratings, name: str, values: Floats) -> DesignError:
    own = "its own family" if name == "own_family" else "itself"
    if not values.any():
        return SelfPreferenceAliased(f"{name}: no judge rated {own}. Repair: leave this effect out")
    constant = _same_within(ratings.judge, values, len(ratings.judges))
    marked = np.bincount(ratings.judge, weights=values, minlength=len(ratings.judges)) > 0
    only = [judge for judge, on in zip(ratings.judges, constant & marked, strict=True) if on]
    if only:
        problem = f"{names_of(only)} rated only {own}, so that self-preference cannot be told from severity"
        repair = f"let {only[0]} also rate the other models, on the items that other judges rated"
    elif _same_within(ratings.model, values, len(ratings.models)).all():
        problem = "the judges of a model are all of its family or all of another, not to be told from ability"
        repair = "a judge of another family on the same responses"
    else:
        problem = f"which judges rated {own} is a combination of models, items and judges"
        repair = "let a judge of another family rate the same responses"
    return SelfPreferenceAliased(f"{name}: {problem}. Cheapest repair: {repair}")


def _random_effects(ratings: Ratings, options: Options) -> None:
    """Effects without a column of their own need replication of the right kind."""
    dimensions, judges = len(ratings.dimensions), len(ratings.judges)
    repeated = comparisons.replicated(ratings)
    if options.response_effect and not repeated:
        raise ResponseEffectAliased(
            "every response was rated once per dimension, so that its effect cannot be told from noise. "
            "Repair: a second judge on the same responses, or no response effect"
        )
    seen = np.unique((ratings.response * judges + ratings.judge) * dimensions + ratings.dimension)
    if options.halo and len(np.unique(seen // dimensions)) == len(seen):
        raise HaloAliased(
            f"no judge rated a response on two dimensions ({names_of(ratings.dimensions)}). "
            "Repair: rate the same responses on all dimensions, or no halo effect"
        )
    binary = len(ratings.scale) == 2 and judges == 2 and len(seen) == len(ratings) and not len(ratings.comparisons)
    if binary and options.model != "rasch" and options.response_effect is not False and repeated:
        raise DiscriminationAliased(
            f"{names_of(ratings.judges)} rated each response once on a two-point scale, so that discrimination "
            "cannot be told from the spread of responses. Repair: model rasch (equal discrimination) or a third judge"
        )
