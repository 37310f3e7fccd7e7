"""Ratings to the data, start values and start metric of `model.stan`; see there for the meaning of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.irt.anchors import check_anchors
from eval.irt.errors import IrtError
from eval.irt.types import Bools, Floats, Ints, Options, Ratings

SLICES_PER_THREAD = 8
LEAST_SLICE = 500
SCALE = 0.7
"""Spread of effects, in logits, that start values and metric reckon with; `SCALES`: that of the smaller ones."""
SCALES = {"severity": 0.5, "dev": 0.25, "tau": 0.25, "alpha": 0.35}
CENTRED = ("theta", "beta", "severity", "dev", "tau", "alpha", "u")
FEW_CELLS = 100
"""Responses per dimension below which s_u may well be near zero, where a block that is partly centred has a funnel."""
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


def build(ratings: Ratings, options: Options) -> Problem:
    """Raises IrtError where the model has nothing to estimate, or an option asks for what the data do not hold."""
    _check(ratings, options)
    m, j, d, r = len(ratings.models), len(ratings.judges), len(ratings.dimensions), len(ratings.response_model)
    used = tuple(np.unique(ratings.category[ratings.dimension == i]) for i in range(d))
    for name, categories in zip(ratings.dimensions, used, strict=True):
        if len(categories) < 2:
            score = ratings.scale[int(categories[0])] if len(categories) else None
            found = "is not rated" if score is None else f"has the score {score} only"
            raise IrtError(f"dimension {name} {found}, so there is nothing to estimate; leave it out (--dimensions)")
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
    order, group = _groups(ratings, options, cell)
    data: dict[str, Any] = {"M": m, "J": j, "D": d, "C": len(ratings.criteria), "K": len(ratings.scale)}
    data |= {"B": len(items), "E": len(cells), "N": len(ratings), "G": len(group["first"]), "P": len(pairs)}
    data |= {"steps": [len(c) - 1 for c in used], "score": [_padded(c - c[0], len(ratings.scale)) for c in used]}
    data |= _segments("item", items // len(ratings.items), d) | _segments("cell", cell_dimension, d)
    data |= _segments("criterion", criterion_dimension[criterion], d)
    data |= {"cell_ability": cell_dimension * m + ratings.response_model[cell_response] + 1}
    data |= {"cell_item": cell_item + 1, "cell_length": ratings.response_length[cell_response]}
    data |= group | {"criterion": np.argsort(criterion)[group["criterion"]] + 1}
    data |= {"y": _category_in_use(ratings, used)[order] + 1, "cell": cell[order] + 1}
    data |= {"pair": pair[order] + 1 if len(pairs) else []}
    data |= {"use_alpha": alpha, "use_u": u, "use_length": options.length, "use_order": options.order}
    data |= {"use_own_family": options.self_family, "use_own_model": options.self_model}
    data |= {"use_threads": options.threads > 1}
    precision = _precision(data, ratings)
    data |= {f"centre_{block}": _centring(precision[block], SCALES.get(block, SCALE)) for block in CENTRED}
    data["centre_theta"] = data["centre_theta"] > 0.5
    data["centre_u"] *= len(cells) >= FEW_CELLS * d
    data |= _anchors(ratings, options, items, alpha, u)
    data = {k: _json(v) for k, v in data.items()}
    return Problem(
        data=data,
        blocks=tuple(_blocks(data, ratings, used, precision)),
        used=used,
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


def _anchors(ratings: Ratings, options: Options, items: Ints, alpha: bool, u: bool) -> dict[str, Any]:
    anchors = check_anchors(ratings, options.anchors, alpha, u)
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


def _precision(data: dict[str, Any], ratings: Ratings) -> dict[str, float]:
    """What the ratings say about one effect of each block, other effects given: inverse variance in logits."""
    m, j, d, e, n = (data[k] for k in "MJDEN")
    spread = np.mean([np.var(ratings.category[ratings.dimension == i]) for i in range(d)])
    rating = float(np.clip(0.5 * spread, 0.1, 2.0))
    cell = 1 / (1 / (rating * n / e) + data["use_u"] * SCALE**2)
    judge = n / (j * d)
    return {
        "rating": rating,
        "cell": cell,
        "u": rating * n / e,
        "theta": cell * e / (m * d),
        "beta": cell * e / data["B"],
        "severity": rating * n / j,
        "dev": rating * judge,
        "tau": TAU_INFORMATION * judge,
        "alpha": rating * n / j,
    }


def _centring(precision: float, scale: float = SCALE) -> float:
    """How far to centre a block: the square of the data's share in the posterior precision (measured: mixes best)."""
    return (precision / (precision + 1 / scale**2)) ** 2


def _blocks(
    data: dict[str, Any], ratings: Ratings, used: tuple[Ints, ...], precision: dict[str, float]
) -> list[tuple[str, Floats, Floats]]:
    """Scales start at SCALE, effects at 0, thresholds at the log odds of neighbouring scores; variances from counts."""
    m, j, d, e, n = (data[k] for k in "MJDEN")
    free = sum(data["steps"]) - d
    anchored, judges_anchored, u = sum(data["items_anchored"]), data["judges_anchored"], data["use_u"]
    counts = [np.bincount(ratings.category[ratings.dimension == i])[c] for i, c in enumerate(used)]
    logits = [np.diff(np.log(c)) for c in counts]  # log P(l) / P(l - 1) over all ratings of the dimension
    rating, cell = precision["rating"], precision["cell"]

    def effects(size: int, precision: float, centring: float = 1.0, scale: float = SCALE) -> tuple[Floats, Floats]:
        variance = 1 / (1 / scale**2 + precision) / scale ** (2 * (1 - centring))  # of effect / scale^(1 - centring)
        return np.zeros(size), np.full(size, variance)

    def judge_effects(block: str, size: int, anchored: bool) -> tuple[Floats, Floats]:
        return effects(size, precision[block], 0.0 if anchored else data[f"centre_{block}"], SCALES[block])

    def scales(size: int, levels: float) -> tuple[Floats, Floats]:
        return np.full(size, SCALE), np.full(size, 1 / (2 * max(levels, 1)))

    corr = d * (d - 1) // 2
    tau = np.concatenate([_helmert(-x) for x in logits])
    found = [
        ("mu", np.array([x.mean() for x in logits]), np.full(d, d / (cell * e) + 0.01)),
        ("s_theta", *scales(d, m)),
        ("L_theta", np.zeros(corr), np.full(corr, 1 / m)),
        ("theta_raw", *effects((m - 1) * d, precision["theta"], data["centre_theta"])),
        ("s_beta", *scales(d, data["B"] / d)),
        ("beta_raw", *effects(data["B"] - d + anchored, precision["beta"], data["centre_beta"])),
        ("beta_mean", *effects(d * (anchored > 0), cell * e / d)),
        ("s_severity", *scales(int(j > 1 or judges_anchored), j)),
        ("severity_raw", *judge_effects("severity", j if judges_anchored else j - 1, judges_anchored)),
        ("s_dev", *scales(int((j > 1 and d > 1) or judges_anchored), j * d)),
        (
            "dev_raw",
            *judge_effects("dev", j * d if judges_anchored else (j - 1) * (d - 1), judges_anchored),
        ),
        ("severity_mean", *effects(d * judges_anchored, rating * n / d)),
        ("s_alpha", *scales(int(data["use_alpha"]), j)),
        (
            "alpha_raw",
            *judge_effects("alpha", (j - 1 + data["alphas_anchored"]) * data["use_alpha"], data["alphas_anchored"]),
        ),
        ("delta_raw", *effects(data["C"] - d, rating * n / data["C"])),
        ("tau_raw", tau, np.full(free, 1 / (1 + precision["tau"] * j))),
        ("s_tau", *scales(int(j > 1 and free > 0), j * free)),
        ("tau_dev_raw", *judge_effects("tau", (j - 1) * free, False)),
        ("length", *effects(d * data["use_length"], cell * e / d)),
        ("order", *effects(data["use_order"], rating * n / 4)),
        ("own_family_effect", *effects(data["use_own_family"], rating * n / 10)),
        ("own_model_effect", *effects(data["use_own_model"], rating * n / 20)),
        ("s_halo", *scales(int(data["P"] > 0), data["P"] / 10)),
        ("halo_raw", *effects(data["P"], rating * n / max(data["P"], 1), 0)),
        ("s_u", *scales(d * u, e / d / 10)),
        ("u_raw", *effects(e * u, precision["u"], data["centre_u"])),
    ]
    return [(name, np.asarray(values, float), np.asarray(variances, float)) for name, values, variances in found]


def _helmert(x: Floats) -> Floats:
    """The free values that Stan's `sum_zero` turns into x - mean(x)."""
    i = np.arange(1, len(x))
    return np.asarray((np.cumsum(x)[:-1] - i * x[1:]) / np.sqrt(i * (i + 1)))


def _segments(name: str, dimension: Ints, d: int) -> dict[str, Ints]:
    first = np.searchsorted(dimension, np.arange(d))
    return {f"{name}_first": first + 1, f"{name}_last": np.searchsorted(dimension, np.arange(d), side="right")}


def _category_in_use(ratings: Ratings, used: tuple[Ints, ...]) -> Ints:
    position = np.zeros((len(used), len(ratings.scale)), np.int64)
    for d, categories in enumerate(used):
        position[d, categories] = np.arange(len(categories))
    return position[ratings.dimension, ratings.category]


def _padded(values: Ints, size: int) -> list[float]:
    return [*map(float, values), *[0.0] * (size - len(values))]


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.astype(np.int64) if value.dtype == bool else value).tolist()
    if isinstance(value, list):
        return [_json(v) for v in value]
    return int(value) if isinstance(value, bool | np.bool_) else value
