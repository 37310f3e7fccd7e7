"""Agreement against published examples and by definition; cards recover planted effects."""

from __future__ import annotations

import runpy
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeer.eval.irt.agreement import agreement, coincidences, kappa_of, krippendorff_alpha, weighted_kappa
from dpeer.eval.irt.cards import judge_cards
from dpeer.eval.irt.encode import encode

PUBLISHED = """1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""
"""Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section C: four observers, twelve units."""


def published() -> pd.DataFrame:
    rows = [
        {"model": "m", "item": f"q{u}", "judge": f"o{o}", "dimension": "d", "score": int(value)}
        for o, line in enumerate(PUBLISHED.splitlines())
        for u, value in enumerate(line.split())
        if value != "."
    ]
    return pd.DataFrame(rows)


def test_alpha_of_the_published_example_is_0_815() -> None:
    (row,) = agreement(encode(published()))["alpha"].itertuples()
    assert row.alpha == pytest.approx(0.815, abs=0.0005)
    assert row.units == 11 and row.alpha_low < row.alpha < row.alpha_high <= 1


def test_kappa_of_the_published_example_is_0_35() -> None:
    """Cohen (1968), table 1, with his weights."""
    table = np.array([[0.44, 0.07, 0.09], [0.05, 0.20, 0.05], [0.01, 0.03, 0.06]])
    assert kappa_of(table, np.array([[0, 1, 3], [1, 0, 6], [3, 6, 0.0]])) == pytest.approx(0.348, abs=0.001)
    assert kappa_of(table, 1 - np.eye(3)) == pytest.approx(0.492, abs=0.001)


def _alpha_by_definition(values: dict[int, list[int]], scores: int) -> float:
    """Disagreement within units over that of all pairable values, with ranks counted one by one."""
    units = [unit for unit in values.values() if len(unit) > 1]
    everything = [value for unit in units for value in unit]
    n_c = [everything.count(c) for c in range(scores)]

    def cost(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        return (sum(n_c[low : high + 1]) - (n_c[a] + n_c[b]) / 2) ** 2

    pairs = [(u, i, j) for u, unit in enumerate(units) for i in range(len(unit)) for j in range(len(unit)) if i != j]
    observed = sum(cost(units[u][i], units[u][j]) / (len(units[u]) - 1) for u, i, j in pairs) / len(everything)
    n = len(everything)
    expected = sum(cost(everything[i], everything[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return 1 - observed / expected


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=2, max_size=6))
def test_alpha_is_its_definition(units: list[list[int]]) -> None:
    counts = np.array([[unit.count(c) for c in range(4)] for unit in units], dtype=float)
    pairable = {value for unit in units if len(unit) > 1 for value in unit}
    found = krippendorff_alpha(coincidences(counts, np.zeros(len(units), dtype=np.int64))[0])
    if len(pairable) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(_alpha_by_definition(dict(enumerate(units)), 4), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_quadratic_kappa_is_one_less_mean_squares(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    table = np.zeros((4, 4))
    np.add.at(table, (a, b), 1)
    chance = np.mean([(x - y) ** 2 for x in a for y in b])
    found = float(weighted_kappa(table))
    assert np.isnan(found) if chance == 0 else found == pytest.approx(1 - np.mean((a - b) ** 2) / chance)


def planted() -> pd.DataFrame:
    """Judge `own` adds two points to its family, `top` one point where the scale is listed from the top."""
    rng = np.random.default_rng(0)
    rows = []
    for m, q in product(range(4), range(40)):
        quality = int(rng.integers(2, 6))
        length = int(rng.integers(10, 1000))
        for judge, order in product(("ann", "own", "top"), ("up", "down")):
            score = quality + 2 * (judge == "own" and m == 0) + (judge == "top" and order == "down")
            rows.append((f"m{m}", f"q{q}", judge, score, order, "a" if m == 0 else "b", length, 30))
    columns = ["model", "item", "judge", "score", "order", "model_family", "response_length", "prompt_tokens"]
    frame = pd.DataFrame(rows, columns=columns).assign(dimension="d")
    return frame.assign(judge_family=frame["judge"].map({"ann": "human", "own": "a", "top": "c"}))


def test_cards_recover_planted_effects() -> None:
    ratings = encode(planted())
    tables = agreement(ratings)
    judges = pd.DataFrame({"judge": ratings.judges})
    cards = judge_cards(ratings, judges, tables["kappa"], None).set_index("judge")
    assert cards.loc["own", "own_family"] == pytest.approx(2, abs=0.2)
    assert cards.loc["top", "position"] == pytest.approx(1) and cards.loc["ann", "position"] == 0
    assert np.isnan(cards.loc["top", "own_family"]) and cards.loc["ann", "person"]
    assert (cards["length"].abs() < 0.3).all() and (cards["tokens"] == 30).all()
    pair = tables["kappa"].query("judge == 'ann' and other == 'top'").iloc[0]
    assert pair.people == 1 and pair.exact == 1.0
    assert cards.loc["top", "kappa_people"] == pytest.approx(pair.kappa)
    assert tables["confusion"].query("judge == 'ann'")["n"].sum() == 2 * 160
    assert list(tables["alpha"]["who"]) == ["all judges", "models"]


def test_people_and_notes_survive_a_saved_fit(tmp_path_factory: pytest.TempPathFactory) -> None:
    from dataclasses import replace

    from dpeer.eval.irt.fit_folder import load, save

    made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]
    posterior = made_up(models=2, items=3)
    ratings = replace(
        posterior.ratings, people=("j0",), notes=("odd",), tokens={"j1": 3.5}, price={"j1": 0.2}, currency="EUR"
    )
    save(replace(posterior, ratings=ratings), folder := tmp_path_factory.mktemp("fit"))
    found = load(folder).ratings
    assert (found.people, found.notes, found.tokens) == (("j0",), ("odd",), {"j1": 3.5})
    assert (found.price, found.currency) == ({"j1": 0.2}, "EUR")
