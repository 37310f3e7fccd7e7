"""Large tables and crowds: warnings in one line per kind, extreme elements flagged, no dense matrix."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt import design, elimination
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.types import Options


def warned(frame: pd.DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for warning in check(encode(frame), Options()).warnings:
        found.setdefault(warning.kind, []).append(str(warning))
    return found


def crowd(judges: int) -> pd.DataFrame:
    """Each judge rates three answers, all alike; every fifth judge two, which differ."""
    rng = np.random.default_rng(0)
    rows = [(f"m{m}", f"q{q}", f"w{j:03d}", "d", 1 + j % 5 - (k == 2 and j % 5 == 4))
            for j in range(judges) for k, (m, q) in enumerate(rng.integers(0, [5, 30], (3, 2)))]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "item", "judge", "dimension", "score"])


@pytest.mark.parametrize("judges", [100, 200, 500])
def test_a_crowd_is_told_in_one_line_per_kind(judges: int) -> None:
    found = warned(crowd(judges))
    assert len(found["constant_judge"]) == len(found["unused_category"]) == 1
    assert f"{judges * 4 // 5} judges (w000, " in found["constant_judge"][0]
    assert f"({judges // 5} in all)" in found["unused_category"][0]


@pytest.mark.parametrize(("best", "worst"), [("m0", "m1"), ("m2", "m0")])
def test_elements_with_only_extreme_scores_are_flagged(best: str, worst: str) -> None:
    rows = [(m, q, j, "d", 3 + (k % 3) - 1) for k, (m, q, j) in enumerate(product(("m0", "m1", "m2"), "abcd", "xyz"))]
    frame = pd.DataFrame(rows, columns=["model", "item", "judge", "dimension", "score"])
    assert "extreme_only" not in warned(frame)
    frame.loc[frame["model"] == best, "score"] = 5
    frame.loc[frame["model"] == worst, "score"] = 1
    low, high = warned(frame)["extreme_only"]
    assert f"only the lowest score was given to 1 model: {worst}." in low
    assert f"only the highest score was given to 1 model: {best}." in high


def pairs_of(texts: int, raters: int) -> pd.DataFrame:
    """Each text is rated by two raters on two criteria."""
    rng = np.random.default_rng(1)
    rows = [(f"p{m}", f"c{c}", f"R{j}", "all", (m + j + c) % 5)
            for m in range(texts) for j in rng.choice(raters, 2, replace=False) for c in range(2)]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "item", "judge", "dimension", "score"])


def test_many_elements_need_no_dense_matrix() -> None:
    """The dense matrix of models and judges alone would hold 450 MB."""
    ratings = encode(pairs_of(6000, 1500))
    tracemalloc.start()
    try:
        report = check(ratings, Options())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.rank == {"all": 6000 + len(ratings.judges) + 1 - 3} and report.components == {"all": 1}
    assert peak < 1e8


def test_many_islands_are_refused_with_the_groups() -> None:
    table = pairs_of(300, 30)
    islands = [table.assign(**{c: f"{k}-" + table[c] for c in ("model", "item", "judge")}) for k in range(3)]
    with pytest.raises(design.DisconnectedDesign, match=r"Cheapest repair: judge .* rates .*; judge"):
        check(encode(pd.concat(islands)), Options())


@pytest.mark.parametrize("anchored", [False, True])
def test_covariates_are_explained_alike_with_and_without_a_dense_matrix(
    monkeypatch: pytest.MonkeyPatch, anchored: bool
) -> None:
    ratings = encode(pairs_of(60, 10))
    known = np.zeros(len(ratings.items), bool), np.arange(len(ratings.judges)) < 3 * anchored
    part = elimination.eliminate(ratings, 0, *known)
    rng = np.random.default_rng(0)
    columns = np.column_stack([rng.normal(size=len(ratings)), rng.normal(size=60)[ratings.model]])
    dense = elimination.unexplained(part, columns)
    monkeypatch.setattr(elimination, "DENSE", 0)
    assert np.allclose(elimination.unexplained(part, columns), dense, atol=1e-8 * len(ratings))
    assert dense[1, 1] < 1e-8 or anchored, "a covariate that is constant within models is explained"


def test_a_covariate_that_iteration_does_not_settle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pairs_of(60, 10)
    table["response_length"] = np.random.default_rng(0).integers(1, 900, len(table))
    monkeypatch.setattr(elimination, "DENSE", 0)
    check(encode(table), Options(length=True))
    monkeypatch.setattr(elimination, "ITERATIONS", 2)
    with pytest.raises(design.CollinearCovariate, match="length: not determined in 2 iterations"):
        check(encode(table), Options(length=True))
