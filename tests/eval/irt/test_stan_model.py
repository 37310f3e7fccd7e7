"""The Stan program computes the formula of the method: against a likelihood written out rating by rating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import helmert

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import Problem, build
from dpeer.eval.irt.stan_start import starts
from dpeer.eval.irt.types import Floats, Options, Ratings
from tests.eval.irt.stan_at import at_start

NORMAL = {  # blocks that are moved, with the standard deviation of their prior, or the parameter that holds it
    "mu": 5.0,
    "tau_raw": 2.5,
    "severity_raw": "s_severity",
    "alpha_raw": "s_alpha",
    "delta_raw": 1.0,
    "length": 1.0,
    "order": 1.0,
    "own_family_effect": 1.0,
    "own_model_effect": 1.0,
    "halo_raw": 1.0,
    "group_raw": 1.0,
    "item_step_raw": 1.0,
    "position_mean": 1.0,
    "tie_mean": 2.0,
    "log_scale": 0.5,
}
PARTLY_CENTRED = (
    *("u_raw", "v_raw", "kappa_raw", "judge_model_raw", "judge_item_raw"),
    *("position_raw", "tie_raw"),
)
EFFECTS = {"halo": True, "length": True, "order": True, "self_family": True, "self_model": True}
NEVER = Spec(models=3, items=20, dimensions=2, judges=3, categories=4)
CASES = {
    "rasch, 2 categories": (Spec(models=3, items=4, dimensions=1, judges=2, categories=2), {"model": "rasch"}),
    "gmfrm, 5 categories": (Spec(models=3, items=4, dimensions=2, judges=3), {}),
    "no response effect": (Spec(models=3, items=4, dimensions=2, judges=3), {"response_effect": False}),
    "everything": (
        Spec(models=5, items=4, dimensions=2, judges=2, repeats=2, criteria=2, self_judges=1, length=0.3),
        EFFECTS,
    ),
    "threads": (Spec(models=3, items=4, dimensions=2, judges=3), {"threads": 2}),
    "scores far from what is expected": (Spec(models=3, items=4, dimensions=2, judges=3), {}),
    "an unused category": (Spec(models=3, items=4, dimensions=2, judges=3, categories=4), {}),
    "model x item": (Spec(models=3, items=4, dimensions=2, judges=3, samples=2), {"model_item": True}),
    "model x item without response effects": (
        Spec(models=3, items=4, dimensions=2, judges=2, samples=3),
        {"response_effect": False, "length": True, "model_item": True},
    ),
    "judges and models, items": (
        Spec(models=4, items=5, dimensions=2, judges=3, samples=2),
        {"judge_model": True, "judge_item": True},
    ),
    "judges and models, halo": (Spec(models=3, items=5, dimensions=2, judges=3), {"judge_model": True, "halo": True}),
    "groups of items": (Spec(models=4, items=9, dimensions=2, judges=2), {"groups": True}),
    "common thresholds": (Spec(models=3, items=4, dimensions=2, judges=3), {"thresholds": "common"}),
    "thresholds of items": (
        Spec(models=3, items=4, dimensions=2, judges=3, criteria=2),
        {"thresholds": "item", "threads": 2},
    ),
    "thresholds of items, an unused category": (
        Spec(models=4, items=5, dimensions=2, judges=3, categories=4),
        {"thresholds": "item", "model": "rasch"},
    ),
    "wide severities": (Spec(models=3, items=4, dimensions=2, judges=3), {"severity_prior": "wide"}),
    "comparisons beside ratings": (
        Spec(models=4, items=4, dimensions=2, judges=3, self_judges=1, compared=1, position=0.5, tie=0.2, length=0.3),
        {"length": True, "self_family": True, "self_model": True, "comparison_scale": True},
    ),
    "comparisons beside ratings, with interactions": (
        Spec(models=4, items=5, dimensions=2, judges=3, samples=2, compared=1),
        {"judge_model": True, "groups": True, "thresholds": "item"},
    ),
    "comparisons only, with interactions": (
        Spec(models=4, items=4, dimensions=2, judges=3, samples=2, compared=1, rated=False),
        {"judge_model": True},
    ),
    "comparisons only": (Spec(models=4, items=4, dimensions=2, judges=3, compared=1, rated=False), {}),
    "comparisons in which one judge gives no tie": (Spec(models=4, items=12, dimensions=1, judges=3, compared=1), {}),
    "graded": (Spec(models=3, items=4, dimensions=2, judges=3, link="graded"), {"model": "graded"}),
    "graded, everything": (
        Spec(models=5, items=4, dimensions=2, judges=2, repeats=2, criteria=2, self_judges=1, link="graded"),
        {**EFFECTS, "model": "graded", "thresholds": "common", "threads": 2},
    ),
    "graded, 2 categories": (Spec(models=3, items=4, dimensions=1, judges=3, categories=2), {"model": "graded"}),
    "graded, an unused category": (Spec(models=3, items=4, dimensions=2, judges=3, categories=4), {"model": "graded"}),
    "a category that one judge never gives": (NEVER, {}),
    "graded, a category that one judge never gives": (NEVER, {"model": "graded"}),
}


@pytest.mark.parametrize("case", CASES)
def test_differences_of_the_log_density_are_those_of_the_formula(case: str, tmp_path: Path) -> None:
    spec, switches = CASES[case]
    table, _ = simulate(spec, 11)
    if switches.get("groups"):
        table["item_group"] = "g" + (table["item"].str[-1].astype(int) % 3).astype(str)
    if case.endswith("an unused category"):
        table.loc[(table["score"] == 2) & (table["dimension"] == table["dimension"].iloc[0]), "score"] = 3
    if case.endswith("a category that one judge never gives"):
        table.loc[(table["score"] == 2) & (table["judge"] == table["judge"].iloc[0]), "score"] = 1
    if case == "comparisons in which one judge gives no tie":
        of_one = table["other_model"].notna() & (table["judge"] == table["judge"].iloc[0])
        table = table[~of_one | (table["score"] != 0)]
    options, ratings = Options(**switches), encode(table)
    problem = build(ratings, options, guessed(ratings))
    rng = np.random.default_rng(0)
    first = starts(problem.blocks, problem.data["D"], rng)
    second = {name: moved(name, value, rng) for name, value in first.items()}
    if case == "scores far from what is expected":
        second["mu"] = [150.0, -150.0]  # exp(4 * 150) times an alpha overflows
    density, likelihood, prior = [], [], []
    for number, start in enumerate((first, second)):
        found = at_start(problem, start, options, tmp_path / str(number))
        density.append(float(found["lp__"][0, 0]))
        draw = {k: v[0] for k, v in found.items()}
        rated = log_likelihood(ratings, problem, options, draw)
        likelihood.append(rated + log_likelihood_of_comparisons(ratings, problem, options, draw))
        prior.append(
            log_prior(start, problem) + log_prior_of_u(problem, ratings, draw) + log_prior_of_thresholds(problem, draw)
        )
        prior[-1] += log_prior_of_interactions(problem, draw) + log_prior_of_comparing_judges(draw)
    change = likelihood[1] - likelihood[0]
    assert abs(change) > 0.3
    assert density[1] - density[0] == pytest.approx(change + prior[1] - prior[0], rel=1e-6, abs=1e-4)


def moved(name: str, value: Any, rng: np.random.Generator) -> Any:
    if name not in NORMAL and name not in PARTLY_CENTRED:
        return value
    values = np.asarray(value, float)
    return (values + 0.7 * rng.standard_normal(values.shape)).tolist()


def log_prior(start: dict[str, Any], problem: Problem) -> float:
    """Of the moved blocks, up to a constant."""
    total = 0.0
    for name, scale in NORMAL.items():
        values = np.asarray(start.get(name, []), float)
        if values.size:
            sd = scale
            if isinstance(scale, str):  # partly centred: N(0, s^share)
                share = problem.data[f"centre_{scale.removeprefix('s_')}"]
                sd = float(np.ravel(start[scale])[0]) ** share
            total -= 0.5 * float(np.sum((values / sd) ** 2))
    return total


def log_prior_of_u(problem: Problem, ratings: Ratings, found: dict[str, Floats]) -> float:
    if not problem.response_effect:
        return 0.0
    return -0.5 * float(np.sum((effects(problem, ratings, found) / found["s_u"][problem.cell_dimension]) ** 2))


def log_prior_of_interactions(problem: Problem, found: dict[str, Floats]) -> float:
    total = 0.0
    for name in ("judge_model", "judge_item"):
        if f"{name}_raw" in found:
            effect = interaction(problem, found, name)
            total -= 0.5 * float(np.sum((effect / found[f"s_{name}"][0]) ** 2))
    if "v_raw" in found:
        total -= 0.5 * float(np.sum((model_item(problem, found) / found["s_v"][problem.terms.triple_dimension]) ** 2))
    return total


def interaction(problem: Problem, found: dict[str, Floats], name: str) -> Floats:
    """Of a partly centred block without a middle."""
    effect: Floats = found[f"{name}_raw"] * found[f"s_{name}"][0] ** (1 - np.array(problem.data[f"centre_{name}"]))
    return effect


def model_item(problem: Problem, found: dict[str, Floats]) -> Floats:
    """v of each triple: its raw value less the share of what the model and the item say."""
    v, terms = [], problem.terms
    places = zip(terms.triple_model, terms.triple_item, terms.triple_dimension, strict=True)
    for i, (m, q, d) in enumerate(places):
        known = [*zip(problem.item, problem.item_dimension, strict=True)]
        item = known.index((q, d)) if (q, d) in known else [*problem.item_dimension].index(d)
        middle = found["mu"][d] * problem.data["rated"][d] + found["theta"][m, d] - found["beta"][item]
        share = problem.data["centre_v"][i]
        v.append((found["v_raw"][i] - share * middle) * found["s_v"][d] ** (1 - share))
    return np.array(v)


def of_triple(problem: Problem, found: dict[str, Floats]) -> dict[tuple[int, int, int], float]:
    """v by model, item and dimension; nothing without it."""
    if "v_raw" not in found:
        return {}
    terms = problem.terms
    keys = zip(terms.triple_model, terms.triple_item, terms.triple_dimension, strict=True)
    return dict(zip(keys, model_item(problem, found), strict=True))


def of_group(problem: Problem, ratings: Ratings, found: dict[str, Floats], m: int, q: int, d: int) -> float:
    if "group" not in found:
        return 0.0
    assert found["group"].sum(axis=1) == pytest.approx(0, abs=1e-6)
    return float(found["group"][d * len(ratings.models) + m, ratings.item_group[q]])


def log_prior_of_thresholds(problem: Problem, found: dict[str, Floats]) -> float:
    """Deviations of each judge's thresholds, in log odds, from the common ones: normal with sd s_tau, and no mean."""
    total, at = 0.0, 0
    for d, used in enumerate(problem.used):
        common = np.concatenate([[0.0], np.cumsum(found["tau"][at : at + len(used) - 1])])
        for j, judge in enumerate(problem.levels):
            given = judge[d]
            alpha = np.exp(found["log_alpha"][j]) if "log_alpha" in found else 1.0
            own = found["kappa"][j, at : at + len(used) - 1]
            usual = alpha * np.diff(common[given])
            if problem.data["graded"]:
                deviation = moves(own[given[1:] - 1], usual / np.diff(given))
            else:
                deviation = own[given[1:] - 1] - usual
            assert deviation.sum() == pytest.approx(0, abs=1e-8)
            assert np.delete(own, given[1:] - 1) == pytest.approx(0)
            if problem.data["own_steps"][j][d]:
                total -= 0.5 * float(np.sum((deviation / found["s_tau"][0]) ** 2))
        at += len(used) - 1
    return total


def moves(cut: Floats, usual: Floats) -> Floats:
    """By how much cutpoints of graded responses were moved: their gaps are softplus of something, which was moved."""
    assert (np.diff(cut) > 0).all() and cut.mean() == pytest.approx(usual.mean(), abs=1e-8)
    deviation = np.cumsum(np.diff([np.log(np.expm1(np.diff(c, prepend=c[0] - 1))) for c in (usual, cut)], axis=0))
    return np.asarray(deviation - deviation.mean())


def log_prior_of_comparing_judges(found: dict[str, Floats]) -> float:
    """Preferences for a place and log odds of a tie: normal about their means."""
    total = 0.0
    for name in ("position", "tie"):
        if f"s_{name}" in found:
            total -= 0.5 * float(np.sum(((found[name] - found[f"{name}_mean"][0]) / found[f"s_{name}"][0]) ** 2))
    return total


def log_likelihood_of_comparisons(
    ratings: Ratings, problem: Problem, options: Options, found: dict[str, Floats]
) -> float:
    """Sum over comparisons of log P(outcome): two steps of equal slope, from losing over a tie to winning."""
    cell = {(r, d): e for e, (r, d) in enumerate(zip(problem.cell_response, problem.cell_dimension, strict=True))}
    u = effects(problem, ratings, found) if problem.response_effect else None
    triples = of_triple(problem, found)
    tastes = dict(zip(problem.terms.judge_model, found.get("judge_model", []), strict=True))
    c, total = ratings.comparisons, 0.0
    ever = {j: bool((c.outcome[c.judge == j] == 1).any()) for j in set(c.judge.tolist())}
    for v in range(len(c)):
        j, d = c.judge[v], c.dimension[v]
        h = list(problem.comparer).index(j)
        place = found["position"][h] * c.place[v]
        for r, sign in ((c.response[v], 1), (c.other[v], -1)):
            m, q = ratings.response_model[r], ratings.response_item[r]
            worth = found["theta"][m, d] + triples.get((m, q, d), 0.0) + of_group(problem, ratings, found, m, q, d)
            worth += tastes.get(j * len(ratings.models) + m, 0.0)
            if u is not None:
                worth += u[cell[r, d]]
            if options.length:
                worth += found["length"][d] * ratings.response_length[r]
            place += sign * worth
        if options.self_family:
            place += found["own_family_effect"][0] * c.own_family[v]
        if options.self_model:
            place += found["own_model_effect"][0] * c.own_model[v]
        slope = np.exp(found["log_alpha"][j]) if "log_alpha" in found else 1.0
        slope *= np.exp(found["log_scale"][0]) if "log_scale" in found else 1.0
        steps = [slope * place - found["tie"][h], slope * place + found["tie"][h]]
        logits = {2: steps[0] + steps[1], 0: 0.0} | ({1: steps[1]} if ever[j] else {})
        total += logits[int(c.outcome[v])] - float(np.logaddexp.reduce(list(logits.values())))
    return total


def effects(problem: Problem, ratings: Ratings, found: dict[str, Floats]) -> Floats:
    """u of each cell: its partly centred raw value less the share of the cell's expectation that was put into it."""
    share, u, triples = problem.data["centre_u"], [], of_triple(problem, found)
    models = len(found["theta"])
    for e, d in enumerate(problem.cell_dimension):
        m = (problem.data["cell_ability"][e] - 1) % models
        middle = (
            found["mu"][d] * problem.data["rated"][d]
            + found["theta"][m, d]
            - found["beta"][problem.data["cell_item"][e] - 1]
        )
        if "length" in found:
            middle += found["length"][d] * problem.data["cell_length"][e]
        item = ratings.response_item[problem.cell_response[e]]
        middle += triples.get((m, item, d), 0.0)
        if "group" in found:
            row, column = np.unravel_index(problem.data["cell_group"][e] - 1, found["group"].shape, order="F")
            middle += found["group"][row, column]
        u.append((found["u_raw"][e] - share[e] * middle) * found["s_u"][d] ** (1 - share[e]))
    return np.array(u)


def log_likelihood(ratings: Ratings, problem: Problem, options: Options, found: dict[str, Floats]) -> float:
    """Sum over ratings of log P(score), from abilities, difficulties, severities and so on of one draw."""
    cell = {(r, d): e for e, (r, d) in enumerate(zip(problem.cell_response, problem.cell_dimension, strict=True))}
    item = {(q, d): b for b, (q, d) in enumerate(zip(problem.item, problem.item_dimension, strict=True))}
    responses, q = len(ratings.response_model), len(ratings.items)
    pair = {(p // responses, p % responses): n for n, p in enumerate(problem.terms.pairs)}
    triples = of_triple(problem, found)
    by_model = {(x // len(ratings.models), x % len(ratings.models)): n for n, x in enumerate(problem.terms.judge_model)}
    by_item = {(z // q, z % q): n for n, z in enumerate(problem.terms.judge_item)}
    steps = item_steps(problem, found)
    criterion = np.argsort(problem.criterion)
    step_first = np.cumsum([0, *[len(c) - 1 for c in problem.used]])
    u = effects(problem, ratings, found) if problem.response_effect else None
    total = 0.0
    for n in range(len(ratings)):
        r, d, j = ratings.response[n], ratings.dimension[n], ratings.judge[n]
        place = found["mu"][d] + found["theta"][ratings.model[n], d]
        place -= found["beta"][item[ratings.item[n], d]] + found["severity"][j, d]
        place -= found["delta"][criterion[ratings.criterion[n]]]
        if u is not None:
            place += u[cell[r, d]]
        if options.halo:
            place += found["s_halo"][0] * found["halo_raw"][pair[j, r]]
        m, i = ratings.model[n], ratings.item[n]
        place += triples.get((m, i, d), 0.0) + of_group(problem, ratings, found, m, i, d)
        if options.judge_model:
            place += interaction(problem, found, "judge_model")[by_model[j, m]]
        if options.judge_item:
            place += interaction(problem, found, "judge_item")[by_item[j, i]]
        if options.length:
            place += found["length"][d] * ratings.response_length[r]
        if options.order:
            place += found["order"][0] * (0.5 if ratings.reversed[n] else -0.5)
        if options.self_family and ratings.own_family[n]:
            place += found["own_family_effect"][0]
        if options.self_model and ratings.own_model[n]:
            place += found["own_model_effect"][0]
        alpha = np.exp(found["log_alpha"][j]) if "log_alpha" in found else 1.0
        given = problem.levels[j][d]
        used = problem.used[d][given]
        if problem.data["graded"]:
            cut = found["kappa"][j, step_first[d] + given[1:] - 1]
            reached = np.concatenate([[1.0], 1 / (1 + np.exp(cut - alpha * place)), [0.0]])
            total += float(np.log(-np.diff(reached))[list(used).index(ratings.category[n])])
            continue
        logits = [0.0]
        own = steps.get((i, d), np.zeros(len(problem.used[d]) - 1))
        for k in range(1, len(used)):
            passed = found["kappa"][j, step_first[d] + given[k] - 1] + alpha * own[given[k] - 1]
            logits.append(logits[-1] + alpha * (used[k] - used[k - 1]) * place - passed)
        chosen = list(used).index(ratings.category[n])
        total += logits[chosen] - float(np.logaddexp.reduce(logits))
    return total


def item_steps(problem: Problem, found: dict[str, Floats]) -> dict[tuple[int, int], Floats]:
    """Deviations of the thresholds of an item in a dimension; nothing where they are common."""
    if "item_step_raw" not in found:
        return {}
    own, at = {}, 0
    for q, d in zip(problem.item, problem.item_dimension, strict=True):
        n = len(problem.used[d]) - 1
        own[q, d] = found["s_item_step"][0] * found["item_step_raw"][at : at + n - 1] @ helmert(n)
        at += n - 1
    return own
