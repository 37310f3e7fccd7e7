"""Derivatives that are written by hand are those of the density."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.stan_start import starts
from dpeer.eval.irt.types import Options
from tests.eval.irt.stan_at import gradients
from tests.eval.irt.test_stan_model import CASES, moved

GRADIENTS = (
    *("gmfrm, 5 categories", "no response effect", "everything", "model x item", "judges and models, halo"),
    *("groups of items", "scores far from what is expected", "a category that one judge never gives"),
    *("thresholds of items, an unused category", "comparisons beside ratings"),
)


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_are_those_of_finite_differences(case: str, tmp_path: Path) -> None:
    """Derivatives of `functions.hpp` are written by hand: CmdStan's own check of them."""
    spec, switches = CASES[case]
    table, _ = simulate(spec, 11)
    if switches.get("groups"):
        table["item_group"] = "g" + (table["item"].str[-1].astype(int) % 3).astype(str)
    if "category" in case:
        table.loc[(table["score"] == 2) & (table["judge"] == table["judge"].iloc[0]), "score"] = 1
    ratings = encode(table)
    problem = build(ratings, Options(**switches), guessed(ratings))
    rng = np.random.default_rng(0)
    start = {name: moved(name, value, rng) for name, value in starts(problem.blocks, problem.data["D"], rng).items()}
    if case == "scores far from what is expected":
        start["mu"] = [150.0, -150.0]
    model, differences = gradients(problem, start, tmp_path)
    assert len(model) == sum(len(variances) for _, _, variances in problem.blocks)
    assert np.abs(model).max() > 1
    assert model == pytest.approx(differences, rel=1e-4, abs=1e-4 * (1 + float(np.abs(model).max()) / 100))
