"""Ratings to the data of `model.stan`; see there for the meaning of each block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpeer.eval.irt.anchors import Anchors, check_anchors
from dpeer.eval.irt.categories import used_by_dimension, used_by_judge
from dpeer.eval.irt.cells import Cells
from dpeer.eval.irt.centring import centrings, precision_of
from dpeer.eval.irt.comparisons import notes_of, replicated, stan_comparisons
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.scales import Scales
from dpeer.eval.irt.stan_start import Blocks, blocks
from dpeer.eval.irt.stan_terms import Terms, check_terms, compared_tastes, term_data, terms
from dpeer.eval.irt.types import GRADED, MODELS, Bools, Floats, Ints, Options, Ratings

SLICES_PER_THREAD = 8
LEAST_SLICE = 500


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What CmdStan is given, and what is needed to read its output."""

    data: dict[str, Any]
    blocks: Blocks
    scales: Scales
    used: tuple[Ints, ...]
    """Categories in use, per dimension."""
    levels: tuple[tuple[Ints, ...], ...]
    """[J][D] positions in `used` of those that the judge gives."""
    cell_response: Ints  # [E]
    cell_dimension: Ints  # [E]
    item: Ints  # [B]
    item_dimension: Ints  # [B]
    criterion: Ints  # [C] order in which Stan has the criteria
    terms: Terms
    comparer: Ints  # judges that compare
    response_effect: bool
    notes: tuple[str, ...]
    no_intervals: str | None


def build(ratings: Ratings, options: Options, scales: Scales, centres: dict[str, Any] | None = None) -> Problem:
    """`centres`: those of an earlier fit, which are kept, see `restart.earlier`.

    Raises IrtError where the model has nothing to estimate, or an option asks for what the data do not hold."""
    _check(ratings, options)
    used = _used(ratings)
    levels = _levels(ratings, used, options)
    cells = Cells.of(ratings)
    response_effect = options.response_effect
    use_u = replicated(ratings) if response_effect is None else response_effect
    alpha, notes = _alpha(ratings, options)
    found = terms(ratings, options, cells)
    compared, comparer = stan_comparisons(ratings, cells.of_comparison, compared_tastes(found, ratings))
    compared["use_scale"] = options.comparison_scale
    anchors = check_anchors(ratings, options, alpha, bool(use_u), len(found.triple_item) > 0)
    dimension_of = np.array([ratings.dimensions.index(name) for name, _ in ratings.criteria])
    criterion = np.argsort(dimension_of, kind="stable")

    data = _sizes(ratings, cells)
    data |= term_data(found, ratings, options, cells)
    data |= _categories(ratings, used, levels, options)
    data |= _segments("criterion", dimension_of[criterion], data["D"])
    data |= _cell_data(ratings, cells)
    data |= _rating_data(ratings, options, used, levels, cells, criterion, found.of_rating)
    data |= compared | {"graded": options.model == GRADED, "use_alpha": alpha, "use_u": use_u} | _switches(options)
    data["use_threads"] &= len(ratings) > 0
    precision = precision_of(data, scales, cells, found)
    data |= centrings(precision, scales, cells.dimension, found)
    if centres:
        of_cell = centres["centre_u"][cells.response, cells.dimension]
        kept = {n: v for n, v in centres.items() if n in data and np.shape(v) == np.shape(data[n])}
        data |= kept | {"centre_u": np.where(np.isnan(of_cell), data["centre_u"], of_cell)}
    data |= _anchors(anchors, ratings, cells.items)
    data = {k: _json(v) for k, v in data.items()}
    return Problem(
        data=data,
        blocks=blocks(data, ratings, used, precision, scales),
        scales=scales,
        used=used,
        levels=levels,
        cell_response=cells.response,
        cell_dimension=cells.dimension,
        item=cells.items % len(ratings.items),
        item_dimension=cells.items // len(ratings.items),
        criterion=criterion,
        terms=found,
        comparer=comparer,
        response_effect=bool(use_u),
        notes=(*notes, *_unused_notes(ratings, used, levels), *notes_of(ratings), *anchors.notes),
        no_intervals=_no_intervals(len(np.unique(ratings.judge if len(ratings) else comparer)), bool(use_u)),
    )


def _levels(ratings: Ratings, used: tuple[Ints, ...], options: Options) -> tuple[tuple[Ints, ...], ...]:
    """[J][D] positions in `used` of the categories of a judge: all, where thresholds are not its own."""
    if options.thresholds == "judge":
        return used_by_judge(ratings, used)
    return tuple(tuple(np.arange(len(categories)) for categories in used) for _ in ratings.judges)


def _used(ratings: Ratings) -> tuple[Ints, ...]:
    """Categories in use, per dimension; where there are comparisons only, two. IrtError: a dimension has fewer."""
    compared = np.bincount(ratings.comparisons.dimension, minlength=len(ratings.dimensions)) > 0
    unrated = compared & ~ratings.rated
    used = tuple(np.arange(2) if unrated[d] else given for d, given in enumerate(used_by_dimension(ratings)))
    for name, categories in zip(ratings.dimensions, used, strict=True):
        if len(categories) < 2:
            score = ratings.scale[int(categories[0])] if len(categories) else None
            fault = "is not rated" if score is None else f"has the score {score} only"
            raise IrtError(
                f"dimension {name} {fault}, so there is nothing to estimate; name the others with --dimension"
            )
    return used


def _sizes(ratings: Ratings, cells: Cells) -> dict[str, Any]:
    return {
        "M": len(ratings.models),
        "J": len(ratings.judges),
        "D": len(ratings.dimensions),
        "C": len(ratings.criteria),
        "K": len(ratings.scale),
        "B": len(cells.items),
        "E": len(cells.response),
        "N": len(ratings),
    }


def _categories(
    ratings: Ratings, used: tuple[Ints, ...], levels: tuple[tuple[Ints, ...], ...], options: Options
) -> dict[str, Any]:
    """Which scores each dimension and each judge uses, and so which thresholds are free."""
    j, k = len(ratings.judges), len(ratings.scale)
    own_steps = ratings.judge_rated & (j > 1 and options.thresholds == "judge")
    steps = [[max(len(own) - 2, 0) * int(own_steps[i, d]) for d, own in enumerate(levels[i])] for i in range(j)]
    return {
        "steps": [len(c) - 1 for c in used],
        "score": [_padded(c - c[0], k) for c in used],
        "levels": [[len(own) for own in judge] for judge in levels],
        "level": [[_padded(own + 1, k) for own in judge] for judge in levels],
        "own_steps": steps,
    }


def _cell_data(ratings: Ratings, cells: Cells) -> dict[str, Any]:
    m, d, q = len(ratings.models), len(ratings.dimensions), len(ratings.items)
    return {
        **_segments("item", cells.items // q, d),
        **_segments("cell", cells.dimension, d),
        "cell_ability": cells.dimension * m + ratings.response_model[cells.response] + 1,
        "cell_item": cells.item + 1,
        "cell_length": ratings.response_length[cells.response],
    }


def _rating_data(
    ratings: Ratings,
    options: Options,
    used: tuple[Ints, ...],
    levels: tuple[tuple[Ints, ...], ...],
    cells: Cells,
    criterion: Ints,
    pair: Ints,
) -> dict[str, Any]:
    """The ratings in the order of their groups, and the groups."""
    order, group = _groups(ratings, options, cells)
    return group | {
        "G": len(group["first"]),
        "criterion": np.argsort(criterion)[group["criterion"]] + 1,
        "y": _category_in_use(ratings, used, levels)[order] + 1,
        "cell": cells.of_rating[order] + 1,
        "pair": pair[order] + 1 if len(pair) else pair,
    }


def _switches(options: Options) -> dict[str, bool]:
    return {
        "use_length": options.length,
        "use_order": options.order,
        "use_own_family": options.self_family,
        "use_own_model": options.self_model,
        "use_threads": options.threads > 1,
    }


def _unused_notes(ratings: Ratings, used: tuple[Ints, ...], levels: tuple[tuple[Ints, ...], ...]) -> Iterator[str]:
    """What is said of scores that nobody, or some judge, never gives."""
    unused = [
        f"{name}: nobody gave {', '.join(str(s) for i, s in enumerate(ratings.scale) if i not in categories)}"
        for name, categories, rated in zip(ratings.dimensions, used, ratings.rated, strict=True)
        if rated and len(categories) < len(ratings.scale)
    ]
    if unused:
        yield f"scores that are not used: {'; '.join(unused)}"
    never = [
        f"{judge} in {name}: {', '.join(str(ratings.scale[k]) for k in np.delete(used[d], own[d]))}"
        for judge, own in zip(ratings.judges, levels, strict=True)
        for d, name in enumerate(ratings.dimensions)
        if len(own[d]) < len(used[d])
    ]
    if never:
        yield f"scores that a judge never gives, left out of its scale: {'; '.join(never)}"


def _check(ratings: Ratings, options: Options) -> None:
    if options.model not in MODELS:
        raise IrtError(f"model {options.model} is unknown; give {', '.join(MODELS[:-1])} or {MODELS[-1]}")
    if options.model == GRADED:
        _check_graded(ratings, options)
    if len(ratings.models) < 2:
        raise IrtError(f"only {ratings.models[0]} was rated; abilities are relative, so at least two models are needed")
    c = ratings.comparisons
    wants = {
        "length": (
            options.length,
            _varies(ratings.response_length),
            "the responses' lengths are unknown or equal",
        ),
        "order": (options.order, _varies(ratings.reversed), "the scale was always listed the same way"),
        "self_family": (
            options.self_family,
            _varies(ratings.own_family) or c.own_family.any(),
            _ALL_OR_NONE.format("family"),
        ),
        "self_model": (
            options.self_model,
            _varies(ratings.own_model) or c.own_model.any(),
            _ALL_OR_NONE.format("model"),
        ),
    }
    both = "there must be ratings and comparisons, for a scale of the one in the other"
    wants["comparison_scale"] = (options.comparison_scale, len(ratings) > 0 and len(c) > 0, both)
    for name, (wanted, varies, why) in wants.items():
        if wanted and not varies:
            raise IrtError(f"{name} cannot be estimated: {why}; leave it out")
    check_terms(ratings, options)
    if options.halo and len(np.unique(ratings.judge * len(ratings.response_model) + ratings.response)) == len(ratings):
        raise IrtError("halo cannot be estimated: no judge rated a response twice (on two dimensions); leave it out")


def _check_graded(ratings: Ratings, options: Options) -> None:
    """Raises IrtError for what the model of cumulative logits does not hold."""
    if options.thresholds == "item":
        raise IrtError(
            "model graded has no thresholds of items: its cutpoints must stay in order, and deviations of items would "
            "not; give --thresholds common or judge, or take gmfrm"
        )
    if len(ratings.comparisons):
        raise IrtError(
            "model graded is a model of scores, and these ratings hold comparisons, which have other logits: take "
            "gmfrm or rasch"
        )


_ALL_OR_NONE = "all ratings, or none, are of a judge's own {}"


def _varies(values: Floats | Bools) -> bool:
    return len(np.unique(values)) > 1


def _alpha(ratings: Ratings, options: Options) -> tuple[bool, list[str]]:
    if options.model == "rasch":
        return False, []
    if len(ratings.judges) == 1:
        return False, ["one judge: its discrimination is fixed at 1"]
    categories = len(ratings.scale) if len(ratings) else 2 + (ratings.comparisons.outcome == 1).any()
    if len(ratings.judges) == 2 and categories == 2:
        why = "two judges and two categories: discriminations cannot be told apart from the spread, fixed at 1"
        return False, [why]
    return True, []


def _no_intervals(judges: int, response_effect: bool) -> str | None:
    if judges > 1 or response_effect:
        return None
    return (
        "One judge, and each response was rated once per dimension: the spread of responses cannot be told from the "
        "judge's noise, so intervals would be too narrow. Add a judge or repeats."
    )


def _groups(ratings: Ratings, options: Options, cells: Cells) -> tuple[Ints, dict[str, Any]]:
    """Order of the ratings by group, then cell; and the groups, cut into slices when there are threads."""
    n = len(ratings)
    reverse = ratings.reversed & options.order
    family, own = ratings.own_family & options.self_family, ratings.own_model & options.self_model
    cell, by_item = cells.of_rating, options.thresholds == "item"
    item = cells.item[cell] if by_item else np.zeros(n, np.int64)
    keys = (ratings.judge, ratings.dimension, ratings.criterion, reverse, family, own, item)
    order = np.lexsort((cell, *reversed(keys)))
    table = np.stack([k[order].astype(np.int64) for k in keys])
    starts = np.flatnonzero(np.r_[True, (table[:, 1:] != table[:, :-1]).any(axis=0)][:n])
    if options.threads > 1 and n:
        most = max(LEAST_SLICE, -(-n // (options.threads * SLICES_PER_THREAD)))
        ends = np.r_[starts[1:], n]
        starts = np.concatenate([np.arange(a, b, most) for a, b in zip(starts, ends, strict=True)])
    judge, dimension, criterion, reverse_of, family_of, own_of, item_of = table[:, starts]
    return order, {
        "first": starts + 1,
        "last": np.r_[starts[1:], n][: len(starts)],
        "judge": judge + 1,
        "dim": dimension + 1,
        "criterion": criterion,
        "reversed": reverse_of - 0.5,
        "own_family": family_of.astype(float),
        "own_model": own_of.astype(float),
        "group_item": item_of + 1 if by_item else item_of[:0],
    }


def _anchors(anchors: Anchors, ratings: Ratings, items: Ints) -> dict[str, Any]:
    q = len(ratings.items)
    mean, sd = anchors.items[items % q, items // q].T
    judges, log_alpha = anchors.judges, anchors.log_alpha
    fixed, judge_fixed, alpha_fixed = ~np.isnan(mean), ~np.isnan(judges[..., 0]), ~np.isnan(log_alpha[:, 0])
    return {
        "items_anchored": [bool(fixed[items // q == d].any()) for d in range(len(ratings.dimensions))],
        "item_anchored": fixed,
        "item_mean": np.nan_to_num(mean),
        "item_sd": np.nan_to_num(sd),
        "judges_anchored": bool(judge_fixed.any()),
        "judge_anchored": judge_fixed,
        "judge_mean": np.nan_to_num(judges[..., 0]),
        "judge_sd": np.nan_to_num(judges[..., 1]),
        "alphas_anchored": bool(alpha_fixed.any()),
        "alpha_anchored": alpha_fixed,
        "alpha_mean": np.nan_to_num(log_alpha[:, 0]),
        "alpha_sd": np.nan_to_num(log_alpha[:, 1]),
    }


def _segments(name: str, dimension: Ints, d: int) -> dict[str, Ints]:
    first = np.searchsorted(dimension, np.arange(d))
    return {f"{name}_first": first + 1, f"{name}_last": np.searchsorted(dimension, np.arange(d), side="right")}


def _category_in_use(ratings: Ratings, used: tuple[Ints, ...], levels: tuple[tuple[Ints, ...], ...]) -> Ints:
    """[N] each rating's place among the categories that its judge gives."""
    position = np.zeros((len(levels), len(used), len(ratings.scale)), np.int64)
    for j, judge in enumerate(levels):
        for d, own in enumerate(judge):
            position[j, d, used[d][own]] = np.arange(len(own))
    return np.asarray(position[ratings.judge, ratings.dimension, ratings.category])


def _padded(values: Ints, size: int) -> list[int]:
    return [*map(int, values), *[0] * (size - len(values))]


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.astype(np.int64) if value.dtype == bool else value).tolist()
    if isinstance(value, list):
        return [_json(v) for v in value]
    return int(value) if isinstance(value, bool | np.bool_) else value
