"""Ratings to the data, start values and start metric of `model.stan`; see there for the meaning of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpeer.eval.irt.anchors import Anchors, check_anchors
from dpeer.eval.irt.categories import used_by_dimension, used_by_judge
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.scales import LEAST, SPREAD, Scales
from dpeer.eval.irt.types import Bools, Floats, Ints, Options, Ratings

SLICES_PER_THREAD = 8
LEAST_SLICE = 500
CENTRED = ("theta", "beta", "severity", "dev", "tau", "alpha")
ALIKE = 0.35
"""Spread of log discriminations up to which judges count as alike."""
TAU_INFORMATION = 0.15
"""Of one rating about a threshold."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What CmdStan is given, and what is needed to read its output."""

    data: dict[str, Any]
    blocks: tuple[tuple[str, Floats, Floats], ...]
    """(name, start values, posterior variances) of the parameters in declared order, variances unconstrained."""
    used: tuple[Ints, ...]
    """Categories in use, per dimension."""
    levels: tuple[tuple[Ints, ...], ...]
    """[J][D] positions in `used` of those that the judge gives."""
    cell_response: Ints  # [E]
    cell_dimension: Ints  # [E]
    item: Ints  # [B]
    item_dimension: Ints  # [B]
    criterion: Ints  # [C] order in which Stan has the criteria
    pair_judge: Ints  # [P]
    pair_response: Ints  # [P]
    response_effect: bool
    notes: tuple[str, ...]
    no_intervals: str | None


def build(ratings: Ratings, options: Options, scales: Scales) -> Problem:
    """Raises IrtError where the model has nothing to estimate, or an option asks for what the data do not hold."""
    _check(ratings, options)
    m, j, d, r = len(ratings.models), len(ratings.judges), len(ratings.dimensions), len(ratings.response_model)
    used = used_by_dimension(ratings)
    for name, categories in zip(ratings.dimensions, used, strict=True):
        if len(categories) < 2:
            score = ratings.scale[int(categories[0])] if len(categories) else None
            found = "is not rated" if score is None else f"has the score {score} only"
            raise IrtError(
                f"dimension {name} {found}, so there is nothing to estimate; name the others with --dimension"
            )
    levels = used_by_judge(ratings, used)
    cells, cell = np.unique(ratings.dimension * r + ratings.response, return_inverse=True)
    cell_dimension, cell_response = cells // r, cells % r
    items, cell_item = np.unique(
        cell_dimension * len(ratings.items) + ratings.response_item[cell_response], return_inverse=True
    )
    u = len(ratings) > len(cells) if options.response_effect is None else options.response_effect
    pairs, pair = np.unique(ratings.judge * r + ratings.response, return_inverse=True)
    pairs = pairs if options.halo else pairs[:0]
    criterion_dimension = np.array([ratings.dimensions.index(name) for name, _ in ratings.criteria])
    criterion = np.argsort(criterion_dimension, kind="stable")

    alpha, notes = _alpha(ratings, options)
    unused = [
        f"{name}: nobody gave {', '.join(str(s) for i, s in enumerate(ratings.scale) if i not in categories)}"
        for name, categories in zip(ratings.dimensions, used, strict=True)
        if len(categories) < len(ratings.scale)
    ]
    notes += [f"scores that are not used: {'; '.join(unused)}"] if unused else []
    never = [
        f"{judge} in {ratings.dimensions[i]}: {', '.join(str(ratings.scale[k]) for k in np.delete(used[i], own[i]))}"
        for judge, own in zip(ratings.judges, levels, strict=True)
        for i in range(d)
        if len(own[i]) < len(used[i])
    ]
    notes += [f"scores that a judge never gives, left out of its scale: {'; '.join(never)}"] if never else []
    order, group = _groups(ratings, options, cell)
    data: dict[str, Any] = {"M": m, "J": j, "D": d, "C": len(ratings.criteria), "K": len(ratings.scale)}
    data |= {"B": len(items), "E": len(cells), "N": len(ratings), "G": len(group["first"]), "P": len(pairs)}
    data |= {"steps": [len(c) - 1 for c in used], "score": [_padded(c - c[0], len(ratings.scale)) for c in used]}
    data |= {"levels": [[len(own) for own in judge] for judge in levels]}
    data |= {"level": [[_padded(own + 1, len(ratings.scale)) for own in judge] for judge in levels]}
    rated = np.zeros((j, d), bool)
    rated[ratings.judge, ratings.dimension] = True
    steps = [[max(len(own) - 2, 0) * int(rated[i, k] and j > 1) for k, own in enumerate(levels[i])] for i in range(j)]
    data |= {"own_steps": steps}
    data |= _segments("item", items // len(ratings.items), d) | _segments("cell", cell_dimension, d)
    data |= _segments("criterion", criterion_dimension[criterion], d)
    data |= {"cell_ability": cell_dimension * m + ratings.response_model[cell_response] + 1}
    data |= {"cell_item": cell_item + 1, "cell_length": ratings.response_length[cell_response]}
    data |= group | {"criterion": np.argsort(criterion)[group["criterion"]] + 1}
    data |= {"y": _category_in_use(ratings, used, levels)[order] + 1, "cell": cell[order] + 1}
    data |= {"pair": pair[order] + 1 if len(pairs) else []}
    data |= {"use_alpha": alpha, "use_u": u, "use_length": options.length, "use_order": options.order}
    data |= {"use_own_family": options.self_family, "use_own_model": options.self_model}
    data |= {"use_threads": options.threads > 1}
    precision = _precision(data, scales, cell_response, cell_dimension)
    data |= {f"centre_{block}": _centring(precision[block], getattr(scales, block)) for block in CENTRED}
    # Judges who differ much in discrimination leave the common scale loose: centred effects must all follow it.
    data["centre_u"] = _centring(precision["u"], scales.u[cell_dimension]) * min(1.0, (ALIKE / scales.alpha) ** 2)
    data["centre_theta"] = bool(np.mean(data["centre_theta"]) > 0.5)
    anchors = check_anchors(ratings, options.anchors, alpha, bool(u))
    notes += anchors.notes
    data |= _anchors(anchors, ratings, items)
    data = {k: _json(v) for k, v in data.items()}
    return Problem(
        data=data,
        blocks=tuple(_blocks(data, ratings, used, precision, scales)),
        used=used,
        levels=levels,
        cell_response=cell_response,
        cell_dimension=cell_dimension,
        item=items % len(ratings.items),
        item_dimension=items // len(ratings.items),
        criterion=criterion,
        pair_judge=pairs // r,
        pair_response=pairs % r,
        response_effect=bool(u),
        notes=tuple(notes),
        no_intervals=_no_intervals(j, bool(u)),
    )


def starts(problem: Problem, rng: np.random.Generator) -> dict[str, Any]:
    """Start values of one chain: the blocks' own, slightly jittered."""
    found: dict[str, Any] = {}
    for name, values, _ in problem.blocks:
        noise = 0.1 * rng.standard_normal(values.shape)
        if name == "L_theta":
            found[name] = np.eye(problem.data["D"]).tolist()
        else:
            found[name] = (values * np.exp(noise) if name.startswith("s_") else values + noise).tolist()
    return found


def metric(problem: Problem) -> Floats:
    """Diagonal of the inverse metric to start from: rough posterior variances, from counts."""
    return np.concatenate([variances for _, _, variances in problem.blocks])


def _check(ratings: Ratings, options: Options) -> None:
    if options.model not in ("rasch", "gmfrm"):
        raise IrtError(f"model {options.model} is unknown; give rasch or gmfrm")
    if len(ratings.models) < 2:
        raise IrtError(f"only {ratings.models[0]} was rated; abilities are relative, so at least two models are needed")
    wants = {
        "length": (
            options.length,
            _varies(ratings.response_length),
            "the responses' lengths are unknown or equal",
        ),
        "order": (options.order, _varies(ratings.reversed), "the scale was always listed the same way"),
        "self_family": (options.self_family, _varies(ratings.own_family), _ALL_OR_NONE.format("family")),
        "self_model": (options.self_model, _varies(ratings.own_model), _ALL_OR_NONE.format("model")),
    }
    for name, (wanted, varies, why) in wants.items():
        if wanted and not varies:
            raise IrtError(f"{name} cannot be estimated: {why}; leave it out")
    if options.halo and len(np.unique(ratings.judge * len(ratings.response_model) + ratings.response)) == len(ratings):
        raise IrtError("halo cannot be estimated: no judge rated a response twice (on two dimensions); leave it out")


_ALL_OR_NONE = "all ratings, or none, are of a judge's own {}"


def _varies(values: Floats | Bools) -> bool:
    return len(np.unique(values)) > 1


def _alpha(ratings: Ratings, options: Options) -> tuple[bool, list[str]]:
    if options.model == "rasch":
        return False, []
    if len(ratings.judges) == 1:
        return False, ["one judge: its discrimination is fixed at 1"]
    if len(ratings.judges) == 2 and len(ratings.scale) == 2:
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


def _groups(ratings: Ratings, options: Options, cell: Ints) -> tuple[Ints, dict[str, Any]]:
    """Order of the ratings by group, then cell; and the groups, cut into slices when there are threads."""
    n = len(ratings)
    reverse = ratings.reversed & options.order
    family, own = ratings.own_family & options.self_family, ratings.own_model & options.self_model
    keys = (ratings.judge, ratings.dimension, ratings.criterion, reverse, family, own)
    order = np.lexsort((cell, *reversed(keys)))
    table = np.stack([k[order].astype(np.int64) for k in keys])
    starts = np.flatnonzero(np.r_[True, (table[:, 1:] != table[:, :-1]).any(axis=0)])
    if options.threads > 1:
        most = max(LEAST_SLICE, -(-n // (options.threads * SLICES_PER_THREAD)))
        ends = np.r_[starts[1:], n]
        starts = np.concatenate([np.arange(a, b, most) for a, b in zip(starts, ends, strict=True)])
    judge, dimension, criterion, reverse_of, family_of, own_of = table[:, starts]
    return order, {
        "first": starts + 1,
        "last": np.r_[starts[1:], n],
        "judge": judge + 1,
        "dim": dimension + 1,
        "criterion": criterion,
        "reversed": reverse_of - 0.5,
        "own_family": family_of.astype(float),
        "own_model": own_of.astype(float),
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


def _precision(data: dict[str, Any], scales: Scales, response: Ints, dimension: Ints) -> dict[str, Any]:
    """What the ratings say about one effect of each block, other effects given: inverse variance in logits.

    Of `response` and `dimension` of each cell; [D] for effects that have a spread per dimension, [E] for u.
    """
    m, j, d = data["M"], data["J"], data["D"]
    items = np.subtract(data["item_last"], data["item_first"]) + 1
    of_cell = np.maximum(scales.information[response, dimension], LEAST)
    cell = 1 / (1 / of_cell + data["use_u"] * scales.u[dimension] ** 2)
    per_dimension = np.bincount(dimension, cell, minlength=d)
    total = float(of_cell.sum())
    return {
        "u": of_cell,
        "dimension": per_dimension,
        "theta": per_dimension / m,
        "beta": per_dimension / items,
        "total": total,
        "severity": total / j,
        "dev": total / (j * d),
        "tau": TAU_INFORMATION * data["N"] / (j * d),
        "alpha": total / j,
    }


def _centring(precision: Any, scale: Any) -> Any:
    """How far to centre a block: the square of the data's share in the posterior precision (measured: mixes best)."""
    return (precision / (precision + 1 / scale**2)) ** 2


def _blocks(
    data: dict[str, Any], ratings: Ratings, used: tuple[Ints, ...], precision: dict[str, Any], scales: Scales
) -> list[tuple[str, Floats, Floats]]:
    """Scales start as given, effects at 0, thresholds at the log odds of neighbouring scores; variances from counts."""
    m, j, d = (data[k] for k in "MJD")
    free = sum(data["steps"]) - d
    items_anchored, judges_anchored = np.array(data["items_anchored"], int), data["judges_anchored"]
    cells, items = (np.subtract(data[f"{x}_last"], data[f"{x}_first"]) + 1 for x in ("cell", "item"))
    counts = [np.bincount(ratings.category[ratings.dimension == i])[c] for i, c in enumerate(used)]
    logits = [np.diff(np.log(c)) for c in counts]  # log P(l) / P(l - 1) over all ratings of the dimension

    def effects(size: Any, precision: Any, centring: Any = 1.0, scale: Any = SPREAD) -> tuple[Floats, Floats]:
        """`size` effects of each kind; variance of effect / scale^(1 - centring)."""
        variance = 1 / (1 / np.square(scale) + precision) / np.power(scale, 2 * (1 - np.asarray(centring)))
        variances = np.repeat(np.broadcast_to(variance, np.shape(size)), size)
        return np.zeros(len(variances)), variances

    def judge_effects(block: str, size: int, anchored: bool) -> tuple[Floats, Floats]:
        return effects(size, precision[block], 0.0 if anchored else data[f"centre_{block}"], getattr(scales, block))

    def spread(start: Any, there: Any, levels: Any) -> tuple[Floats, Floats]:
        """A scale per dimension, or one, where the block is there; its variance is that of its logarithm."""
        size = np.size(start) * int(there)
        variance = np.broadcast_to(1 / (2 * np.maximum(levels, 1)), np.shape(np.atleast_1d(start)))
        return np.atleast_1d(np.asarray(start, float))[:size], variance[:size]

    corr, deviations = d * (d - 1) // 2, int(np.sum(data["own_steps"]))
    use_u, use_alpha, beta_free = data["use_u"], data["use_alpha"], items - 1 + items_anchored
    has_dev = (j > 1 and d > 1) or judges_anchored
    total, per_dimension = precision["total"], precision["dimension"]
    u, one = precision["u"], np.ones(d, int)
    found = [
        ("mu", np.array([x.mean() for x in logits]), 1 / per_dimension + 0.01),
        ("s_theta", *spread(scales.theta, True, m)),
        ("L_theta", np.zeros(corr), np.full(corr, 1 / m)),
        ("theta_raw", *effects((m - 1) * one, precision["theta"], data["centre_theta"], scales.theta)),
        ("s_beta", *spread(scales.beta, True, items)),
        ("beta_raw", *effects(beta_free, precision["beta"], data["centre_beta"], scales.beta)),
        ("beta_mean", *effects(one * (items_anchored.sum() > 0), per_dimension)),
        ("s_severity", *spread(scales.severity, j > 1 or judges_anchored, j)),
        ("severity_raw", *judge_effects("severity", j if judges_anchored else j - 1, judges_anchored)),
        ("s_dev", *spread(scales.dev, has_dev, j * d)),
        ("dev_raw", *judge_effects("dev", j * d if judges_anchored else (j - 1) * (d - 1), judges_anchored)),
        ("severity_mean", *effects(one * judges_anchored, total / d)),
        ("s_alpha", *spread(scales.alpha, use_alpha, j)),
        ("alpha_raw", *judge_effects("alpha", (j - 1 + data["alphas_anchored"]) * use_alpha, data["alphas_anchored"])),
        ("delta_raw", *effects(data["C"] - d, total / data["C"])),
        ("tau_raw", np.concatenate([_helmert(-x) for x in logits]), np.full(free, 1 / (1 + precision["tau"] * j))),
        ("s_tau", *spread(scales.tau, deviations > 0, deviations)),
        ("kappa_raw", *judge_effects("tau", deviations, False)),
        ("length", *effects(one * data["use_length"], per_dimension)),
        ("order", *effects(data["use_order"], total / 4)),
        ("own_family_effect", *effects(data["use_own_family"], total / 10)),
        ("own_model_effect", *effects(data["use_own_model"], total / 20)),
        ("s_halo", *spread(SPREAD, data["P"] > 0, data["P"] / 10)),
        ("halo_raw", *effects(data["P"], total / max(data["P"], 1), 0.0)),
        ("s_u", *spread(scales.u, use_u, cells / 10)),
        ("u_raw", *effects(use_u * np.ones(len(u), int), precision["u"], data["centre_u"], np.repeat(scales.u, cells))),
    ]
    return [(name, np.asarray(values, float), np.asarray(variances, float)) for name, values, variances in found]


def _helmert(x: Floats) -> Floats:
    """The free values that Stan's `sum_zero` turns into x - mean(x)."""
    i = np.arange(1, len(x))
    return np.asarray((np.cumsum(x)[:-1] - i * x[1:]) / np.sqrt(i * (i + 1)))


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
