"""Where the chains of `model.stan` start: values and rough posterior variances of every block of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpeer.eval.irt.comparisons import SPREADS
from dpeer.eval.irt.scales import SPREAD, Scales, helmert
from dpeer.eval.irt.types import Floats, Ints, Ratings

Blocks = tuple[tuple[str, Floats, Floats], ...]
"""(name, start values, posterior variances) of the parameters in declared order, variances unconstrained."""


def starts(blocks: Blocks, dimensions: int, rng: np.random.Generator) -> dict[str, Any]:
    """Start values of one chain: the blocks' own, slightly jittered."""
    values_of: dict[str, Any] = {}
    for name, values, _ in blocks:
        noise = 0.1 * rng.standard_normal(values.shape)
        if name == "L_theta":
            values_of[name] = np.eye(dimensions).tolist()
        else:
            values_of[name] = (values * np.exp(noise) if name.startswith("s_") else values + noise).tolist()
    return values_of


def metric(blocks: Blocks) -> Floats:
    """Diagonal of the inverse metric to start from: rough posterior variances, from counts."""
    return np.concatenate([variances for _, _, variances in blocks])


def _effects(size: Any, precision: Any, centring: Any = 1.0, scale: Any = SPREAD) -> tuple[Floats, Floats]:
    """`size` effects of each kind; variance of effect / scale^(1 - centring)."""
    variance = 1 / (1 / np.square(scale) + precision) / np.power(scale, 2 * (1 - np.asarray(centring)))
    variances = np.repeat(np.broadcast_to(variance, np.shape(size)), size)
    return np.zeros(len(variances)), variances


def _spread(start: Any, there: Any, levels: Any) -> tuple[Floats, Floats]:
    """A scale per dimension, or one, where the block is there; its variance is that of its logarithm."""
    size = np.size(start) * int(there)
    variance = np.broadcast_to(1 / (2 * np.maximum(levels, 1)), np.shape(np.atleast_1d(start)))
    return np.atleast_1d(np.asarray(start, float))[:size], variance[:size]


def blocks(
    data: dict[str, Any], ratings: Ratings, used: tuple[Ints, ...], precision: dict[str, Any], scales: Scales
) -> Blocks:
    """Scales start as given, effects at 0, thresholds at the log odds of neighbouring scores; variances from counts."""
    m, j, d = (data[k] for k in "MJD")
    free = sum(data["steps"]) - d
    items_anchored, judges_anchored = np.array(data["items_anchored"], int), data["judges_anchored"]
    cells, items = (np.subtract(data[f"{x}_last"], data[f"{x}_first"]) + 1 for x in ("cell", "item"))
    k = len(ratings.scale)
    counts = [np.bincount(ratings.category[ratings.dimension == i], minlength=k)[c] for i, c in enumerate(used)]
    logits = [np.diff(np.log(np.maximum(c, 1))) for c in counts]  # log P(l) / P(l - 1) over ratings of the dimension
    if data["graded"]:
        logits = [_of_steps(c) for c in counts]

    def judge_effects(block: str, size: int, anchored: bool) -> tuple[Floats, Floats]:
        return _effects(size, precision[block], 0.0 if anchored else data[f"centre_{block}"], getattr(scales, block))

    def _interaction(term: str, scale: Any) -> tuple[Floats, Floats]:
        centring = np.asarray(data[f"centre_{term}"], float)
        return _effects(np.ones(len(centring), int), precision[term], centring, scale)

    by_group = d * (m - 1) * (data["H"] - 1) if data["H"] else 0
    item_steps = int(np.sum((np.asarray(data["steps"]) - 1) * items)) * data["use_item_steps"]
    corr, deviations = d * (d - 1) // 2, int(np.sum(data["own_steps"]))
    use_u, use_alpha, beta_free = data["use_u"], data["use_alpha"], items - 1 + items_anchored
    of_cell = np.repeat(scales.u, cells)
    has_dev = (j > 1 and d > 1) or judges_anchored
    total, per_dimension = precision["total"], precision["dimension"]
    u, one = precision["u"], np.ones(d, int)
    named = [
        ("mu", np.array([x.mean() for x in logits]), 1 / per_dimension + 0.01),
        ("s_theta", *_spread(scales.theta, True, m)),
        ("L_theta", np.zeros(corr), np.full(corr, 1 / m)),
        ("theta_raw", np.zeros((m - 1) * d), np.ones((m - 1) * d)),
        ("s_beta", *_spread(scales.beta, True, items)),
        ("beta_raw", *_effects(beta_free, precision["beta"], data["centre_beta"], scales.beta)),
        ("beta_mean", *_effects(one * (items_anchored.sum() > 0), per_dimension)),
        ("s_severity", *_spread(scales.severity, j > 1 or judges_anchored, j)),
        ("severity_raw", *judge_effects("severity", j if judges_anchored else j - 1, judges_anchored)),
        ("s_dev", *_spread(scales.dev, has_dev, j * d)),
        ("dev_raw", *judge_effects("dev", j * d if judges_anchored else (j - 1) * (d - 1), judges_anchored)),
        ("severity_mean", *_effects(one * judges_anchored, total / d)),
        ("s_alpha", *_spread(scales.alpha, use_alpha, j)),
        ("alpha_raw", *judge_effects("alpha", (j - 1 + data["alphas_anchored"]) * use_alpha, data["alphas_anchored"])),
        ("delta_raw", *_effects(data["C"] - d, total / data["C"])),
        ("tau_raw", np.concatenate([helmert(-x) for x in logits]), np.full(free, 1 / (1 + precision["tau"] * j))),
        ("s_tau", *_spread(scales.tau, deviations > 0, deviations)),
        ("kappa_raw", *judge_effects("tau", deviations, False)),
        ("length", *_effects(one * data["use_length"], per_dimension)),
        ("order", *_effects(data["use_order"], total / 4)),
        ("own_family_effect", *_effects(data["use_own_family"], total / 10)),
        ("own_model_effect", *_effects(data["use_own_model"], total / 20)),
        ("s_v", *_spread(scales.v, data["V"] > 0, data["V"] / (10 * d))),
        ("v_raw", *_interaction("v", scales.v[np.asarray(data["triple_dim"], int) - 1])),
        ("s_judge_model", *_spread(scales.judge_model, data["X"] > 0, data["X"])),
        ("judge_model_raw", *_interaction("judge_model", scales.judge_model)),
        ("s_judge_item", *_spread(scales.judge_item, data["Z"] > 0, data["Z"] / 10)),
        ("judge_item_raw", *_interaction("judge_item", scales.judge_item)),
        ("s_group", *_spread(0.25 * one, data["H"] > 0, m * data["H"])),
        ("group_raw", *_effects(by_group, total / (d * m * max(data["H"], 1)), 0.0, 0.25)),
        ("s_item_step", *_spread(0.5, item_steps > 0, item_steps / 10)),
        ("item_step_raw", *_effects(item_steps, precision["tau"] * j / max(item_steps, 1), 0.0, 0.5)),
        ("s_halo", *_spread(SPREAD, data["use_halo"], data["P"] / 10)),
        ("halo_raw", *_effects(data["use_halo"] * data["P"], total / max(data["P"], 1), 0.0)),
        ("s_u", *_spread(scales.u, use_u, cells / 10)),
        (
            "u_raw",
            *_effects(use_u * np.ones(len(u), int), precision["u"], data["centre_u"], of_cell),
        ),
        *_of_comparisons(data, precision),
    ]
    return tuple((name, np.asarray(values, float), np.asarray(variances, float)) for name, values, variances in named)


def _of_steps(counts: Ints) -> Floats:
    """Minus the free steps that `model.stan` turns into the cutpoints of counts per category."""
    above = np.maximum(counts, 1)[::-1].cumsum()[::-1]
    cut = np.log(above[0] - above[1:]) - np.log(above[1:])  # minus log odds of a category or above
    steps = np.r_[0.0, np.cumsum(np.log(np.expm1(np.diff(cut))))]
    return np.asarray(steps.mean() - cut.mean() - steps)


def _of_comparisons(data: dict[str, Any], precision: dict[str, Any]) -> list[tuple[str, Floats, Floats]]:
    """Judges' preferences for a place and ties, and the scale of comparisons."""
    h, told = data["comparers"], precision["comparer"]
    named = []
    for name, there in (("position", data["use_position"]), ("tie", data["ties"] > 0)):
        spread, there = SPREADS[name], bool(there)
        several = there and h > 1
        named += [
            (f"{name}_mean", *_effects(int(there), told * max(h, 1), 1.0, 1.0)),
            (f"s_{name}", *_spread(spread, several, h)),
            (f"{name}_raw", *_effects(h * several, told, data[f"centre_{name}"], spread)),
        ]
    return [*named, ("log_scale", *_effects(int(data["use_scale"]), data["comparisons"] / 10, 1.0, 0.5))]
