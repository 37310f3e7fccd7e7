"""Which scores count as a judge's own, and what a fit makes of a judge that uses fewer than the others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt.categories import SURELY, used_by_dimension, used_by_judge
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options, Ratings


def rated(scores: dict[str, list[int]]) -> Ratings:
    """Two models, one dimension; each judge gives its list of scores, response by response."""
    rows = [
        {"model": f"m{i % 2}", "item": f"q{i}", "dimension": "A", "judge": judge, "score": score, "status": "ok"}
        for judge, given in scores.items()
        for i, score in enumerate(given)
    ]
    return encode(pd.DataFrame(rows))


def own(ratings: Ratings) -> dict[str, list[int]]:
    used = used_by_dimension(ratings)
    levels = used_by_judge(ratings, used)
    return {
        name: [ratings.scale[k] for k in used[0][judge[0]]] for name, judge in zip(ratings.judges, levels, strict=True)
    }


def test_a_score_is_left_out_where_it_would_surely_have_been_given() -> None:
    often = [1, 2, 3] * 20
    assert own(rated({"a": often, "b": often, "c": [1, 3] * 30})) == {"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 3]}


@pytest.mark.parametrize(("ratings", "left_out"), [(int(3 * SURELY), True), (int(3 * SURELY) - 1, False)])
def test_a_score_that_may_be_missing_by_chance_stays(ratings: int, left_out: bool) -> None:
    few = ([1, 3] * ratings)[:ratings]
    assert own(rated({"a": [1, 2, 3] * 30, "b": [1, 2, 3] * 30, "c": few}))["c"] == ([1, 3] if left_out else [1, 2, 3])


def test_a_constant_judge_keeps_the_scale_and_a_score_that_nobody_gives_is_none() -> None:
    found = own(rated({"a": [1, 2, 5] * 20, "b": [1, 2, 5] * 20, "c": [2] * 60}))
    assert found == {"a": [1, 2, 5], "b": [1, 2, 5], "c": [1, 2, 5]}


def test_a_judge_without_the_middle_score_does_not_distort_the_others() -> None:
    """Its threshold is one step from the lowest to the highest score, and the common spread stays small."""
    spec = Spec(models=4, items=40, dimensions=1, judges=3, categories=3, s_u=0.3, s_tau=0.1)
    table, truth = simulate(spec, 3)
    rng = np.random.default_rng(0)
    coarse = (table["judge"] == "rater2") & (table["score"] == 2)
    table.loc[coarse, "score"] = rng.choice([1, 3], int(coarse.sum()))
    posterior = fit(encode(table), Options(chains=2, warmup=300, draws=200, seed=2))
    tau = posterior.flat("tau").mean(axis=0)[:, 0]
    assert np.isnan(tau[2, 0]) and np.isfinite(tau[2, 1]) and np.isfinite(tau[:2]).all()
    assert posterior.flat("s_tau").mean() < 1
    assert np.abs(tau[:2] - truth["tau"][:2, 0]).max() < 0.6
    assert any("rater2 in dimension0: 2" in note for note in posterior.facts["notes"])
