"""Linked designs: balanced, identified, cheaper than the full crossing, and the same for the same seed."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeer.errors import ConfigError
from dpeer.eval.irt.design import check
from dpeer.eval.irt.linking import linked_design, planned_ratings
from dpeer.eval.irt.types import Bools, Options


def plan_of(design: Bools) -> pd.DataFrame:
    model, item, judge = np.nonzero(design)
    rows = {"model": model, "item": item, "judge": judge}
    return pd.DataFrame({name: [f"{name}{i}" for i in index] for name, index in rows.items()}).assign(dimension="d")


@given(
    models=st.integers(1, 5),
    items=st.integers(1, 60),
    judges=st.integers(2, 6),
    anchors=st.integers(1, 10),
    each=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_numbers_and_balance(models: int, items: int, judges: int, anchors: int, each: int, seed: int) -> None:
    anchors, each = min(anchors, items), min(each, judges)
    design = linked_design(models, items, judges, anchors, each, seed)
    assert design.shape == (models, items, judges)
    assert (design == design[0]).all(), "the same judges rate all models of an item"
    per_item = design[0].sum(axis=1)
    assert (per_item == judges).sum() >= anchors
    assert sorted(per_item)[: items - anchors] == [each] * (items - anchors)
    per_judge = design.sum(axis=(0, 1))
    assert np.ptp(per_judge) <= models, "judges differ by at most one item"
    assert (np.ptp(design.sum(axis=1), axis=1) <= 1).all(), "so do judges of each model"


@pytest.mark.parametrize(("judges", "each"), [(3, 2), (4, 2), (5, 2), (5, 3), (6, 2), (7, 3), (8, 4)])
def test_pairs_of_judges_meet_about_equally_often(judges: int, each: int) -> None:
    for seed in range(5):
        design = linked_design(2, 220, judges, 20, each, seed)[0].astype(int)
        met = (design.T @ design)[tuple(zip(*combinations(range(judges), 2), strict=True))]
        expected = 20 + 200 * each * (each - 1) / (judges * (judges - 1))
        assert np.abs(met - expected).max() <= 0.1 * expected + 1


def test_it_is_identified_and_cheaper_than_the_full_crossing() -> None:
    design = linked_design(4, 60, 5, 6, 2, seed=3)
    assert design.sum() == 4 * (6 * 5 + 54 * 2) < design.size / 2
    report = check(planned_ratings(plan_of(design), (1, 2, 3, 4, 5)), Options(), planned=True)
    assert report.rank["d"] == 4 + 5 - 2
    assert {w.kind for w in report.warnings} == {"common_leniency"}


def test_one_judge_per_response_is_linked_by_anchors_alone() -> None:
    ratings = planned_ratings(plan_of(linked_design(3, 40, 4, 5, 1, seed=0)), (0, 1))
    assert "nested_judges" not in {w.kind for w in check(ratings, Options(model="rasch"), planned=True).warnings}
    with pytest.raises(ConfigError, match=r"leave 3 of 4 judges without an item in common.*anchors: 1"):
        linked_design(3, 40, 4, 0, 1, seed=0)


def test_the_seed_decides() -> None:
    assert (linked_design(2, 30, 4, 3, 2, 1) == linked_design(2, 30, 4, 3, 2, 1)).all()
    assert (linked_design(2, 30, 4, 3, 2, 1) != linked_design(2, 30, 4, 3, 2, 2)).any()


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ((0, 5, 2, 1, 1), "0 models"),
        ((2, 5, 0, 1, 1), "0 judges"),
        ((2, 5, 2, 6, 1), "anchors: 6 of 5 items"),
        ((2, 5, 2, -1, 1), "anchors: -1"),
        ((2, 5, 2, 1, 3), "judges_per_response: 3 of 2 judges"),
        ((2, 5, 2, 1, 0), "judges_per_response: 0"),
    ],
)
def test_impossible_numbers(numbers: tuple[int, int, int, int, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        linked_design(*numbers, seed=0)


def test_a_plan_keeps_its_facets() -> None:
    rows = [
        {"model": m, "item": i, "judge": j, "dimension": d, "criterion": c, "repeat": r, "order": ("up", "down")[r]}
        for m, i, j, d, c, r in product("ab", "xyz", "ja", "EA", "12", range(2))
    ]
    plan = pd.DataFrame(rows).assign(model_family="f", judge_family=lambda t: np.where(t["judge"] == "j", "f", "g"))
    ratings = planned_ratings(plan, (0, 1, 2))
    assert (ratings.models, ratings.items, ratings.judges) == (("a", "b"), ("x", "y", "z"), ("a", "j"))
    assert set(ratings.criteria) == {(d, c) for d in "AE" for c in "12"}
    assert ratings.scale == (0, 1, 2) and len(ratings.response_model) == 6
    assert (ratings.reversed == (plan["order"] == "down")).all()
    assert (ratings.own_family == (plan["judge"] == "j")).all()
    assert (ratings.own_model == (plan["model"] == plan["judge"])).all()
