"""Random interactions of `model.stan`: which pairs and triples have an effect of their own, and how far it is centred.

Every effect belongs to something that was rated, so that sparse designs with many models, items and judges stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpeer.eval.irt.cells import Cells
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.people import scaled, taste_of, tastes
from dpeer.eval.irt.scales import LEAST, Scales
from dpeer.eval.irt.types import Bools, Floats, Ints, Options, Ratings

THRESHOLDS = ("common", "judge", "item")
SEVERITY_PRIORS = {"shrunken": ((np.log(0.5), 0.8), (np.log(0.25), 0.7)), "wide": ((np.log(5), 0.1), (np.log(5), 0.1))}
"""(mean, sd) of the log sd of judges' severities, and of their deviations per dimension."""
MIN_REPEATED, MIN_REPEATED_SHARE = 20, 0.1
"""Pairs of model and item, and share of them, that must be answered more than once in every dimension for an effect of
model x item by default: its spread would else rest on a handful of pairs."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Index arrays of the interactions; empty where a term is off."""

    triple_model: Ints  # [V] sorted by dimension, model, item
    triple_item: Ints  # [V]
    triple_dimension: Ints  # [V]
    difficulty: Ints  # [V] position among those of `Cells.items`
    of_cell: Ints  # [E] triple of a response x dimension
    judge_model: Ints  # [X] judge * M + model, or of `people.tastes`
    judge_item: Ints  # [Z] judge * Q + item
    pairs: Ints  # [P] judge * R + response, and by dimension where some are on the people's scale
    of_rating: Ints  # [N] pair of a rating
    groups: int  # H
    scaled: Bools  # [D] on the people's scale


def answered_repeatedly(ratings: Ratings) -> bool:
    """Some model answered some item more than once."""
    pair = ratings.response_model * len(ratings.items) + ratings.response_item
    return len(np.unique(pair)) < len(pair)


def repeated_enough(ratings: Ratings) -> bool:
    """In every dimension enough pairs of model and item were answered more than once, by responses that were rated or
    compared, to tell what a model does on an item from the luck of a response."""
    pair, cells = ratings.response_model * len(ratings.items) + ratings.response_item, Cells.of(ratings)
    for d in range(len(ratings.dimensions)):
        _, answers = np.unique(pair[cells.response[cells.dimension == d]], return_counts=True)
        if (answers > 1).sum() < max(MIN_REPEATED, MIN_REPEATED_SHARE * len(answers)):
            return False
    return True


def check_terms(ratings: Ratings, options: Options) -> None:
    """Raises IrtError for an unknown choice, or a term that these ratings cannot hold."""
    for name, given, known in (
        ("thresholds", options.thresholds, THRESHOLDS),
        ("severity prior", options.severity_prior, tuple(SEVERITY_PRIORS)),
    ):
        if given not in known:
            raise IrtError(f"{name} {given} is unknown; give {', '.join(known[:-1])} or {known[-1]}")
    if options.model_item and not answered_repeatedly(ratings):
        raise IrtError(
            "model x item cannot be estimated: every model answered every item once, so that what it does on an item "
            "cannot be told from the luck of one response; draw several samples, or leave it out"
        )
    pair, item = ratings.judge * len(ratings.response_model) + ratings.response, ratings.judge * len(ratings.items)
    pairs = np.unique(pair, return_index=True)[1]
    if (options.judge_model or options.judge_item) and len(ratings.judges) < 2:
        raise IrtError("judge x model and judge x item need two judges at least; leave them out")
    if options.judge_item and len(np.unique((item + ratings.item)[pairs])) == len(pairs):
        raise IrtError(
            "judge x item cannot be estimated: no judge rated two responses to an item; leave it out, or let judges "
            "rate several models' responses to the same items"
        )
    if options.groups and len(ratings.groups) < 2:
        raise IrtError(
            "groups cannot be estimated: the table has no column item_group with two groups of items at least; add it, "
            "or leave the term out"
        )


def terms(ratings: Ratings, options: Options, cells: Cells) -> Terms:
    m, q, r = len(ratings.models), len(ratings.items), len(ratings.response_model)
    none = np.zeros(0, np.int64)
    triple, of_cell, item_of_triple, judge_model, judge_item = none, none, none, none, none
    on = repeated_enough(ratings) if options.model_item is None else options.model_item
    if on:
        response = cells.response
        key = (cells.dimension * m + ratings.response_model[response]) * q + ratings.response_item[response]
        triple, first, of_cell = np.unique(key, return_index=True, return_inverse=True)
        item_of_triple = cells.item[first]
    where = scaled(ratings, options)
    pair, per = ratings.judge * r + ratings.response, _per_pair(where)
    pairs, of_rating = np.unique(pair * per + ratings.dimension % per, return_inverse=True)
    if where.any():
        judge_model = tastes(ratings, where)
    elif options.judge_model:
        c = ratings.comparisons
        met = np.concatenate([pairs, *(c.judge * r + shown for shown in (c.response, c.other))])
        judge_model = np.unique(met // r * m + ratings.response_model[met % r])
    if options.judge_item:
        judge_item = np.unique(ratings.judge * q + ratings.item)
    if not (options.halo or len(judge_model) or options.judge_item):
        pairs, of_rating = none, none
    return Terms(
        triple_model=triple // q % m,
        triple_item=triple % q,
        triple_dimension=triple // (q * m),
        difficulty=item_of_triple,
        of_cell=of_cell,
        judge_model=judge_model,
        judge_item=judge_item,
        pairs=pairs,
        of_rating=of_rating,
        groups=len(ratings.groups) if options.groups else 0,
        scaled=where,
    )


def term_data(found: Terms, ratings: Ratings, options: Options, cells: Cells) -> dict[str, Any]:
    """Sizes and index arrays of `model.stan`."""
    m, q, r, d = len(ratings.models), len(ratings.items), len(ratings.response_model), len(ratings.dimensions)
    per = _per_pair(found.scaled)
    judge, response = found.pairs // per // r, found.pairs // per % r
    model = ratings.response_model[response]
    group: Ints = np.zeros(0, np.int64)
    if found.groups:
        of_item = ratings.item_group[ratings.response_item[cells.response]]
        group = (of_item * d + cells.dimension) * m + ratings.response_model[cells.response] + 1
    severity, dev = SEVERITY_PRIORS[options.severity_prior]
    return {
        "P": len(found.pairs),
        "V": len(found.triple_item),
        "X": len(found.judge_model),
        "Z": len(found.judge_item),
        "H": found.groups,
        "pair_model": _place(found.judge_model, taste(found, ratings, judge, found.pairs % per, model)),
        "pair_item": _place(found.judge_item, judge * q + ratings.response_item[response]),
        "cell_triple": found.of_cell + 1,
        "triple_ability": found.triple_dimension * m + found.triple_model + 1,
        "triple_item": found.difficulty + 1,
        "triple_dim": found.triple_dimension + 1,
        "cell_group": group,
        "use_halo": options.halo,
        "use_item_steps": options.thresholds == "item",
        "severity_prior": list(severity),
        "dev_prior": list(dev),
    }


def taste(found: Terms, ratings: Ratings, judge: Ints, dimension: Ints, model: Ints) -> Ints:
    """Keys, as in `Terms.judge_model`, of what judges add to models in a dimension."""
    if found.scaled.any():
        return taste_of(ratings, found.scaled, judge, dimension, model)
    return np.asarray(judge * len(ratings.models) + model, dtype=np.int64)


def compared_tastes(found: Terms, ratings: Ratings) -> tuple[Ints, ...]:
    """[V] of both responses compared, places from 1 in `Terms.judge_model`; empty where the term is off."""
    c = ratings.comparisons
    models = (ratings.response_model[response] for response in (c.response, c.other))
    return tuple(_place(found.judge_model, taste(found, ratings, c.judge, c.dimension, model)) for model in models)


def _per_pair(where: Bools) -> int:
    """Pairs of `Terms.pairs` per judge and response."""
    return len(where) if where.any() else 1


def _place(sorted_keys: Ints, keys: Ints) -> Ints:
    """From 1; empty where the term is off."""
    return np.searchsorted(sorted_keys, keys) + 1 if len(sorted_keys) else np.zeros(0, np.int64)


def term_precision(found: Terms, scales: Scales, of_response: Floats, total: float) -> dict[str, Floats]:
    """What the ratings say about one effect of each term: inverse variance in logits.

    `of_response` [E]: about the level of a response in a dimension.
    """
    return {
        "v": np.maximum(np.bincount(found.of_cell, of_response, minlength=len(found.triple_item)), LEAST),
        "judge_model": np.full(len(found.judge_model), total / max(len(found.judge_model), 1)),
        "judge_item": np.full(len(found.judge_item), total / max(len(found.judge_item), 1)),
    }


def term_effects(
    found: Terms, ratings: Ratings, stan: dict[str, Floats], data: dict[str, Any], used: tuple[Ints, ...], items: Ints
) -> dict[str, Floats]:
    """Draws [chains, draws, ...] by name of the interactions that Stan writes raw, see `Posterior`.

    `used`: categories in use per dimension; `items` [B]: the item of each difficulty.
    """
    m, q, j, d = (len(x) for x in (ratings.models, ratings.items, ratings.judges, ratings.dimensions))
    effects: dict[str, Floats] = {}
    if "v_raw" in stan:
        at = (found.triple_model, found.triple_item, found.triple_dimension)
        mu = stan["mu"] * np.asarray(data["rated"])
        ability = (stan["theta"] + mu[..., None, :])[..., at[0], at[2]]
        middle = ability - stan["beta"][..., np.asarray(data["triple_item"]) - 1]
        v = uncentred(stan["v_raw"], middle, np.asarray(data["centre_v"]), stan["s_v"][..., at[2]])
        effects["v"] = _filled(v, at, (m, q, d))
    if "judge_item_raw" in stan:
        centre = np.asarray(data["centre_judge_item"])
        z = uncentred(stan["judge_item_raw"], 0.0, centre, stan["s_judge_item"])
        effects["judge_item"] = _filled(z, (found.judge_item // q, found.judge_item % q), (j, q))
    if "item_step_raw" in stan:
        steps = np.full((*stan["item_step_raw"].shape[:2], q, d, len(ratings.scale) - 1), np.nan)
        at_raw, at_item = 0, 0
        for dimension, categories in enumerate(used):
            free = len(categories) - 2
            for item in items[at_item : data["item_last"][dimension]]:
                own = _sum_zero(stan["item_step_raw"][..., at_raw : at_raw + free])
                steps[..., item, dimension, categories[1:] - 1] = stan["s_item_step"] * own
                at_raw += free
            at_item = data["item_last"][dimension]
        effects["item_step"] = steps
    return effects


def item_shares(ratings: Ratings) -> tuple[Floats, Floats]:
    """Share of each group among the items [H, D] that were rated or compared in a dimension, and among those that a
    model answered [M, H, D]; every item counts once."""
    cells = Cells.of(ratings)
    answered = np.zeros((len(ratings.models), len(ratings.items), len(ratings.dimensions)))
    answered[ratings.response_model[cells.response], ratings.response_item[cells.response], cells.dimension] = 1
    member = np.eye(len(ratings.groups))[ratings.item_group]  # [Q, H]
    own = np.einsum("mqd,qh->mhd", answered, member)
    every = np.einsum("qd,qh->hd", answered.max(axis=0), member)
    return every / np.maximum(every.sum(axis=0), 1), own / np.maximum(own.sum(axis=1, keepdims=True), 1)


def on_this_mix(theta: Floats, group: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Abilities [..., M, D] on items of which `share` [H, D] are of each group, and what a model gains on each group
    [..., M, H, D] from there, where both were given for an equal mix. Their sum stays."""
    gain = (group * share).sum(axis=-2)
    return theta + gain, group - gain[..., None, :]


def uncentred(raw: Floats, middle: Floats | float, centre: Floats, scale: Floats) -> Floats:
    """Effects from their partly centred form, see `model.stan`."""
    return np.asarray(scale ** (1 - centre) * (raw - centre * middle))


def _filled(values: Floats, at: tuple[Ints, ...], shape: tuple[int, ...]) -> Floats:
    """values [..., n] at `at`, nan elsewhere: [..., *shape]."""
    full = np.full((*values.shape[:-1], *shape), np.nan)
    index: Any = (..., *at)
    full[index] = values
    return full


def _sum_zero(z: Floats) -> Floats:
    """n - 1 free values to n that sum to zero, as Stan's `sum_zero`: [..., n]."""
    n = z.shape[-1] + 1
    x, total = np.zeros((*z.shape[:-1], n)), np.zeros(z.shape[:-1])
    for k in range(n - 1, 0, -1):
        w = z[..., k - 1] / np.sqrt(k * (k + 1))
        total = total + w
        x[..., k - 1] += total
        x[..., k] -= w * k
    return x
