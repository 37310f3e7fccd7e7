"""Identification: the verdict must agree with the rank of the dense design matrix, and every refusal has its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from dpeer.eval.irt import design, elimination
from dpeer.eval.irt.design import check
from dpeer.eval.irt.linking import planned_ratings
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options, Ratings

Cell = tuple[int, int, int, int, int]
"""model, item, judge, dimension, criterion within the dimension"""
PLAIN = Options(model="rasch")


def ratings_of(cells: list[Cell], sizes: Cell, seed: int = 0, **arrays: np.ndarray) -> Ratings:
    m, q, j, d, c = np.array(cells, dtype=np.int64).reshape(-1, 5).T
    models, items, judges, dimensions, criteria = sizes
    pairs, response = np.unique(m * items + q, return_inverse=True)
    n = len(cells)
    no = np.zeros(n, bool)
    fields = {
        "response_length": np.zeros(len(pairs)),
        "category": np.arange(n) % 5,
        "reversed": no,
        "own_family": no,
        "own_model": no,
    }
    return Ratings(
        models=tuple(f"m{i}" for i in range(models)),
        items=tuple(f"q{i}" for i in range(items)),
        judges=tuple(f"j{i}" for i in range(judges)),
        dimensions=tuple(f"d{i}" for i in range(dimensions)),
        criteria=tuple((f"d{i}", f"c{k}") for i in range(dimensions) for k in range(criteria)),
        scale=(1, 2, 3, 4, 5),
        response_model=pairs // items,
        response_item=pairs % items,
        response=response,
        dimension=d,
        criterion=d * criteria + c,
        judge=j,
        **fields | arrays,
    )


def full(models: int, items: int, judges: int, dimensions: int, criteria: int) -> list[Cell]:
    return list(product(range(models), range(items), range(judges), range(dimensions), range(criteria)))


def dense(cells: list[Cell], sizes: Cell) -> np.ndarray:
    """[N, D * (M + Q + J + C)] design matrix, written out."""
    blocks = np.cumsum([0, *(n for n in (sizes[0], sizes[1], sizes[2], sizes[4]))])
    matrix = np.zeros((len(cells), sizes[3] * blocks[-1]))
    for row, (m, q, j, d, c) in enumerate(cells):
        for block, index in zip(blocks, (m, q, j, c), strict=False):
            matrix[row, d * blocks[-1] + block + index] = 1
    return matrix


def comparable(cells: list[Cell], sizes: Cell) -> bool:
    """Every contrast of models in every dimension lies in the row space."""
    matrix = dense(cells, sizes)
    rank = np.linalg.matrix_rank(matrix)
    width = sizes[0] + sizes[1] + sizes[2] + sizes[4]
    for d, m in product(range(sizes[3]), range(1, sizes[0])):
        contrast = np.zeros((1, matrix.shape[1]))
        contrast[0, d * width], contrast[0, d * width + m] = 1, -1
        if np.linalg.matrix_rank(np.vstack([matrix, contrast])) > rank:
            return False
    return True


@st.composite
def designs(draw: st.DrawFn) -> tuple[list[Cell], Cell]:
    sizes = (draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 4)), 1, draw(st.integers(1, 2)))
    cells = draw(st.lists(st.sampled_from(full(*sizes)), min_size=2, max_size=16, unique=True))
    return cells, sizes


REPAIR = re.compile(r"judge j(\d+) rates m(\d+) on item q(\d+)(?:, criterion c(\d+))?")


@given(designs())
@settings(max_examples=400, deadline=None)
def test_verdict_is_that_of_the_dense_matrix_and_the_repair_repairs(case: tuple[list[Cell], Cell]) -> None:
    cells, sizes = case
    try:
        report = check(ratings_of(cells, sizes), PLAIN, planned=True)
    except design.DesignError as error:
        assert not comparable(cells, sizes), error
        steps = REPAIR.findall(str(error))
        if "no usable rating" not in str(error):
            only = {c[4] for c in cells}
            assert steps
            added = [(int(m), int(q), int(j), 0, int(c) if c else min(only)) for j, m, q, c in steps]
            assert comparable(cells + added, sizes)
            assert not comparable(cells + added[1:], sizes), "one rating fewer would have done"
    else:
        assert comparable(cells, sizes)
        width = report.columns["d0"] + len({c[1] for c in cells})
        assert report.rank["d0"] == np.linalg.matrix_rank(dense(cells, sizes)) - len({c[1] for c in cells})
        assert report.rank["d0"] <= width


@st.composite
def covariates(draw: st.DrawFn) -> tuple[list[Cell], Cell, dict[str, np.ndarray], Options]:
    sizes = (3, draw(st.integers(2, 3)), draw(st.integers(2, 3)), draw(st.integers(1, 2)), 1)
    cells = full(*sizes)
    keep = draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells)))
    cells = [cell for cell, kept in zip(cells, keep, strict=True) if kept]
    assume(len(cells) > 4)
    family = draw(st.lists(st.integers(0, 1), min_size=6, max_size=6))
    arrays = {
        "own_family": np.array([family[m] == family[3 + j] for m, _, j, _, _ in cells]),
        "own_model": np.array([m == j for m, _, j, _, _ in cells]),
        "reversed": np.array(draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells)))),
    }
    responses = len({c[:2] for c in cells})
    lengths = draw(st.lists(st.integers(-1, 1), min_size=responses, max_size=responses))
    arrays["response_length"] = np.array(lengths, dtype=float)
    on = draw(st.tuples(*[st.booleans()] * 4))
    options = Options(model="rasch", self_family=on[0], self_model=on[1], order=on[2], length=on[3])
    return cells, sizes, arrays, options


@given(covariates())
@settings(max_examples=400, deadline=None)
def test_effects_are_refused_exactly_where_the_dense_matrix_loses_rank(
    case: tuple[list[Cell], Cell, dict[str, np.ndarray], Options],
) -> None:
    cells, sizes, arrays, options = case
    ratings = ratings_of(cells, sizes, **arrays)
    assume(comparable(cells, sizes))
    columns = []
    if options.length:
        dimension = np.array([c[3] for c in cells])
        columns += [ratings.response_length[ratings.response] * (dimension == d) for d in range(sizes[3])]
    for on, name in (
        (options.self_family, "own_family"),
        (options.self_model, "own_model"),
        (options.order, "reversed"),
    ):
        columns += [arrays[name].astype(float)] if on else []
    matrix = dense(cells, sizes)
    wide = np.column_stack([matrix, *columns])
    identified = np.linalg.matrix_rank(wide) == np.linalg.matrix_rank(matrix) + len(columns)
    wanted = (design.SelfPreferenceAliased, design.ConstantCovariate, design.CollinearCovariate)
    if identified:
        check(ratings, options)
    else:
        with pytest.raises(wanted):
            check(ratings, options)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_bridges_are_the_elements_whose_removal_parts_the_models(pattern: list[list[bool]]) -> None:
    met = np.array(pattern, dtype=float)

    def parts(rows: np.ndarray) -> int:
        return int(connected_components(sparse.csr_array(rows.T @ rows > 0), directed=False)[0])

    found = {element for element, _ in elimination.bridges(sparse.csr_array(met))}
    if parts(met) == 1:
        assert found == {e for e in range(len(met)) if parts(np.delete(met, e, axis=0)) > 1}


def test_disconnected_names_groups_and_bridge() -> None:
    cells = [c for c in full(4, 4, 4, 1, 1) if (c[0] < 2) == (c[1] < 2) == (c[2] < 2)]
    with pytest.raises(design.DisconnectedDesign, match=r"\{m0, m1\} and \{m2, m3\} share neither") as caught:
        check(ratings_of(cells, (4, 4, 4, 1, 1)), PLAIN)
    assert "judge j0 rates m2 on item q0 (which it must answer first)" in str(caught.value)
    assert caught.value.name == "DisconnectedDesign"


def test_disjoint_items_although_every_judge_rated_all() -> None:
    cells = [c for c in full(2, 6, 3, 2, 1) if (c[0] == 0) == (c[1] < 3)]
    with pytest.raises(design.DisjointItems, match=r"d0, d1: \{m0\} and \{m1\} answered disjoint items"):
        check(ratings_of(cells, (2, 6, 3, 2, 1)), PLAIN)


def test_judges_nested_in_models_and_the_repair_uses_an_existing_response() -> None:
    cells = [c for c in full(2, 6, 4, 1, 1) if (c[0] == 0) == (c[2] < 2)]
    with pytest.raises(design.DisjointJudges, match=r"judge j0 rates m1 on item q0\. One rating"):
        check(ratings_of(cells, (2, 6, 4, 1, 1)), PLAIN)


def test_the_repair_prefers_a_response_that_exists() -> None:
    cells = [c for c in full(2, 6, 4, 1, 1) if ((c[0] == 0) == (c[2] < 2)) and (c[0] == 0 or c[1] > 3)]
    with pytest.raises(design.DisjointJudges, match=r"judge j0 rates m1 on item q4\. One rating"):
        check(ratings_of(cells, (2, 6, 4, 1, 1)), PLAIN)


def test_criteria_nested_in_models() -> None:
    cells = [c for c in full(2, 6, 2, 1, 2) if c[0] == c[4]]
    with pytest.raises(design.DisjointCriteria, match="criterion c0"):
        check(ratings_of(cells, (2, 6, 2, 1, 2)), PLAIN)


def test_connected_by_every_facet_and_still_deficient() -> None:
    # A Latin square is identified: every model meets every item and every judge once.
    cells = [(m, q, (m + q) % 3, 0, 0) for m, q in product(range(3), range(3))]
    check(ratings_of(cells, (3, 3, 3, 1, 1)), PLAIN)
    # Each item is rated by two judges, one per model, in a chain: severities and abilities slide along it together.
    chain = [(0, 0, 0, 0, 0), (1, 0, 1, 0, 0), (0, 1, 1, 0, 0), (1, 1, 2, 0, 0), (0, 2, 2, 0, 0), (1, 2, 3, 0, 0)]
    with pytest.raises(design.RankDeficient, match=r"\{m0\} and \{m1\} are linked, but so that"):
        check(ratings_of(chain, (2, 3, 4, 1, 1)), PLAIN)


def test_a_fault_in_one_dimension_names_it() -> None:
    cells = [c for c in full(2, 4, 2, 2, 1) if c[3] == 0 or (c[0] == 0) == (c[1] < 2)]
    with pytest.raises(design.DisjointItems, match="in d1:"):
        check(ratings_of(cells, (2, 4, 2, 2, 1)), PLAIN)


def test_model_without_a_rating_in_a_dimension() -> None:
    cells = [c for c in full(3, 4, 2, 2, 1) if c[3] == 0 or c[0] < 2]
    with pytest.raises(design.DisconnectedDesign, match="d1: no usable rating of m2"):
        check(ratings_of(cells, (3, 4, 2, 2, 1)), PLAIN)


@pytest.mark.parametrize(
    ("sizes", "error"), [((1, 4, 2, 1, 1), design.TooFewModels), ((3, 4, 1, 1, 1), design.TooFewJudges)]
)
def test_nothing_to_compare(sizes: Cell, error: type[design.DesignError]) -> None:
    with pytest.raises(error):
        check(ratings_of(full(*sizes), sizes), PLAIN)
    with pytest.raises(design.NoRatings):
        check(ratings_of([], sizes), PLAIN)


def test_judges_that_rate_only_their_own_family() -> None:
    # Judge 0 rates its family (models 0 and 1); judges 1 and 2 are of another family and rate all.
    cells = [c for c in full(4, 8, 3, 1, 1) if c[2] > 0 or c[0] < 2]
    own = np.array([c[2] == 0 for c in cells])
    ratings = ratings_of(cells, (4, 8, 3, 1, 1), own_family=own)
    check(ratings, PLAIN)
    with pytest.raises(design.SelfPreferenceAliased, match=r"j0 rated only its own family.*let j0 also rate"):
        check(ratings, replace(PLAIN, self_family=True))


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (lambda c: False, "no judge rated its own family"),
        (lambda c: True, "rated only its own family"),
        (lambda c: c[0] == 0, "not to be told from ability"),
    ],
)
def test_self_preference_that_does_not_vary(own: Callable[[Cell], bool], why: str) -> None:
    cells = full(3, 6, 3, 1, 1)
    ratings = ratings_of(cells, (3, 6, 3, 1, 1), own_family=np.array([own(c) for c in cells]))
    with pytest.raises(design.SelfPreferenceAliased, match=why):
        check(ratings, replace(PLAIN, self_family=True))


def test_family_and_model_that_mark_the_same_ratings() -> None:
    cells = full(3, 6, 3, 1, 1)
    own = np.array([c[0] == c[2] for c in cells])
    ratings = ratings_of(cells, (3, 6, 3, 1, 1), own_family=own, own_model=own)
    check(ratings, replace(PLAIN, self_family=True))
    with pytest.raises(design.SelfPreferenceAliased, match="own_family, own_model mark the same"):
        check(ratings, replace(PLAIN, self_family=True, self_model=True))


def test_constant_covariates() -> None:
    cells, sizes = full(3, 6, 3, 1, 1), (3, 6, 3, 1, 1)
    by_model = np.repeat([-1.0, 0.0, 1.0], 6)
    with pytest.raises(design.ConstantCovariate, match="length: the same in all responses of each model"):
        check(ratings_of(cells, sizes, response_length=by_model), replace(PLAIN, length=True))
    with pytest.raises(design.ConstantCovariate, match="length: not known"):
        check(ratings_of(cells, sizes), replace(PLAIN, length=True))
    check(ratings_of(cells, sizes), replace(PLAIN, length=True), planned=True)
    with pytest.raises(design.ConstantCovariate, match="order: the same"):
        check(ratings_of(cells, sizes, reversed=np.array([c[0] == 1 for c in cells])), replace(PLAIN, order=True))
    with pytest.raises(design.CollinearCovariate, match="order"):
        check(ratings_of(cells, sizes, reversed=np.array([c[2] == 1 for c in cells])), replace(PLAIN, order=True))
    sums = by_model + np.tile(np.arange(6.0), 3)
    with pytest.raises(design.CollinearCovariate, match="length"):
        check(ratings_of(cells, sizes, response_length=sums), replace(PLAIN, length=True))


def test_order_that_follows_length() -> None:
    cells, sizes = full(3, 6, 3, 2, 1), (3, 6, 3, 2, 1)
    length = np.random.default_rng(0).choice([-1.0, 1.0], 18)
    ratings = ratings_of(cells, sizes, response_length=length)
    ratings = replace(ratings, reversed=length[ratings.response] > 0)
    check(ratings, replace(PLAIN, order=True))
    check(ratings, replace(PLAIN, length=True))
    with pytest.raises(design.CollinearCovariate, match="order: a combination of models, items, judges and length"):
        check(ratings, replace(PLAIN, order=True, length=True))


def test_random_effects_need_replication() -> None:
    cells = [(m, q, (m + q) % 2, 0, 0) for m, q in product(range(3), range(8))]
    once = ratings_of(cells, (3, 8, 2, 1, 1))
    check(once, PLAIN)
    with pytest.raises(design.ResponseEffectAliased):
        check(once, replace(PLAIN, response_effect=True))
    with pytest.raises(design.HaloAliased):
        check(once, replace(PLAIN, halo=True))
    binary = replace(ratings_of(full(3, 8, 2, 1, 1), (3, 8, 2, 1, 1)), scale=(0, 1))
    binary = replace(binary, category=binary.category % 2)
    check(binary, PLAIN)
    with pytest.raises(design.DiscriminationAliased, match="model rasch"):
        check(binary, Options())


def test_one_score_only_is_refused_unless_planned() -> None:
    sizes = (2, 4, 2, 1, 1)
    ratings = ratings_of(full(*sizes), sizes, category=np.full(16, 2))
    with pytest.raises(design.ConstantScores, match="every rating of d0 is 3"):
        check(ratings, PLAIN)
    check(ratings, PLAIN, planned=True)


def test_anchored_items_and_judges_link_what_is_disjoint() -> None:
    sizes = (2, 8, 4, 1, 1)
    cells = [c for c in full(*sizes) if (c[0] == 0) == (c[1] < 4) == (c[2] < 2)]
    ratings = ratings_of(cells, sizes)
    judges = {name: {"d0": [0.0, 0.1]} for name in ("j0", "j2")}
    items = {name: {"d0": [0.0, 0.0]} for name in ("q0", "q7")}
    with pytest.raises(design.DisconnectedDesign):
        check(ratings, PLAIN)
    with pytest.raises(design.DesignError):
        check(ratings, replace(PLAIN, anchors={"judges": judges}))
    with pytest.raises(design.DesignError):
        check(ratings, replace(PLAIN, anchors={"judges": judges, "items": {"q0": {"d0": [0.0, 0.0]}}}))
    report = check(ratings, replace(PLAIN, anchors={"judges": judges, "items": items}))
    assert "common_leniency" not in {w.kind for w in report.warnings}


def kinds(ratings: Ratings, planned: bool = False) -> dict[str, str]:
    return {w.kind: str(w) for w in check(ratings, PLAIN, planned).warnings}


def test_a_strong_design_has_one_warning() -> None:
    sizes = (3, 40, 3, 2, 1)
    assert set(kinds(ratings_of(full(*sizes), sizes))) == {"common_leniency"}


def test_weak_spots_are_named() -> None:
    sizes = (4, 60, 3, 1, 1)
    bridge = [c for c in full(*sizes) if c[1] == 0 or (c[0] < 2) == (c[1] < 30)]
    assert "item q0 alone links {m0, m1} and {m2, m3}" in kinds(ratings_of(bridge, sizes))["bridge"]
    one_judge = [c for c in full(*sizes) if c[2] == 0 or (c[0] < 2) == (c[2] == 1)]
    assert "judge j0 alone links" in kinds(ratings_of(one_judge, sizes))["bridge"]
    few = [c for c in full(*sizes) if c[0] < 3 or c[1] < 4]
    assert "m3 (12)" in kinds(ratings_of(few, sizes))["few_ratings"]
    nested = [c for c in full(*sizes) if c[1] % 3 == c[2]]
    assert "{j0} and {j1} and {j2}" in kinds(ratings_of(nested, sizes))["nested_judges"]
    two = [c for c in full(*sizes) if c[2] < 2]
    assert "few_judges" in kinds(ratings_of(two, (4, 60, 2, 1, 1)))


def test_categories_that_are_not_used() -> None:
    sizes = (3, 40, 3, 1, 1)
    cells = full(*sizes)
    category = np.arange(len(cells)) // 3 % 4
    category[[c[2] == 1 for c in cells]] = 2
    found = kinds(ratings_of(cells, sizes, category=category))
    assert "judge j1 gave one score only" in found["constant_judge"]
    assert "in d0: no judge gave 5" in found["unused_category"]
    assert not {"constant_judge", "unused_category"} & set(kinds(ratings_of(cells, sizes, category=category), True))


def test_many_offenders_are_counted_not_listed() -> None:
    sizes = (20, 40, 2, 1, 1)
    cells = [c for c in full(*sizes) if (c[0] < 10) == (c[1] < 20)]
    with pytest.raises(design.DisjointItems, match=r"m5, \.\.\. \(10 in all\)") as caught:
        check(ratings_of(cells, sizes), PLAIN)
    assert len(str(caught.value)) < 500


def test_a_plan_is_checked_before_it_is_paid_for() -> None:
    table, _ = simulate(Spec(models=3, items=12, dimensions=2, judges=3, linked=(3, 1)), seed=1)
    plan = table.drop(columns=["status", "score", "response_length"])
    ratings = planned_ratings(plan, (1, 2, 3, 4, 5))
    assert not ratings.category.any() and len(ratings) == len(plan)
    check(ratings, Options(length=True), planned=True)
    alone = plan[(plan["model"] == "model0") == (plan["item"] < "item06")]
    with pytest.raises(design.DisjointItems):
        check(planned_ratings(alone, (1, 2, 3, 4, 5)), Options(), planned=True)
