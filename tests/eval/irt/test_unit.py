"""The unit that informative judges set: the same posterior in other coordinates, and the same draws in logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpeer.eval.irt.draws import in_logits
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.stan_start import starts
from dpeer.eval.irt.types import Options
from tests.eval.irt.stan_at import at_start
from tests.eval.irt.test_stan_model import CASES, moved

STRETCHED = ("mu", "tau_raw", "delta_raw", "length", "order", "own_family_effect", "own_model_effect", "position_mean")
SCALES = (
    *("s_theta", "s_beta", "s_severity", "s_dev", "s_v", "s_u", "s_judge_model", "s_judge_item", "s_group"),
    *("s_item_step", "s_halo", "s_position"),
)
CENTRED = ("beta_raw", "severity_raw", "dev_raw", "judge_model_raw", "judge_item_raw")
WANTED = (
    *("theta", "severity", "log_alpha", "beta", "delta", "tau", "kappa", "group", "judge_model", "position", "tie"),
    *(name for name in (*STRETCHED, *SCALES) if not name.endswith("_raw")),
)


FLAT = ("centre_u", "centre_v", "centre_position", "centre_theta")
"""Blocks whose centred form holds the places of others: their change of coordinates is not of one power."""
NAMES = (
    *("gmfrm, 5 categories", "everything", "model x item", "groups of items", "judges and models, items", "graded"),
    *("thresholds of items", "comparisons beside ratings", "graded, everything"),
)


@pytest.mark.parametrize("case", NAMES)
def test_a_unit_changes_coordinates_and_nothing_else(case: str, tmp_path: Path) -> None:
    """With the volume of the change, which is linear, densities are equal; and so is all that is reported."""
    spec, switches = CASES[case]
    table, _ = simulate(spec, 11)
    if switches.get("groups"):
        table["item_group"] = "g" + (table["item"].str[-1].astype(int) % 3).astype(str)
    ratings = encode(table)
    options = Options(**switches)
    rng = np.random.default_rng(4)
    problem = build(ratings, options, guessed(ratings))
    flat = {name: np.zeros_like(problem.data[name]).tolist() for name in FLAT}
    share = rng.dirichlet(np.ones(len(ratings.judges)))
    other = replace(problem, data=problem.data | flat | {"centre_unit": share.tolist()})
    problem = replace(problem, data=problem.data | flat)
    start = {name: moved(name, value, rng) for name, value in starts(problem.blocks, problem.data["D"], rng).items()}
    before = at_start(problem, start, options, tmp_path / "equal")
    log_unit = float(before["log_alpha"][0] @ share)
    assert abs(log_unit) > 0.01
    there, volume = dict(start), 0.0
    for name in start:
        values = np.asarray(start[name], dtype=float)
        if name in STRETCHED or name in SCALES:
            there[name] = (values * np.exp(log_unit)).tolist()
            volume += log_unit * values.size * (name in STRETCHED)
        elif name in CENTRED:
            power = np.asarray(problem.data[f"centre_{name.removesuffix('_raw')}"], dtype=float)
            if name == "beta_raw":
                items = np.subtract(problem.data["item_last"], problem.data["item_first"])
                power = np.repeat(power, items)
            there[name] = (values * np.exp(power * log_unit)).tolist()
            volume += float((power * np.ones_like(values)).sum()) * log_unit
    after = at_start(other, there, options, tmp_path / "other")
    assert after["log_unit"][0, 0] == pytest.approx(log_unit, abs=1e-9) and abs(before["log_unit"][0, 0]) < 1e-9
    assert after["lp__"][0, 0] == pytest.approx(before["lp__"][0, 0] - volume, abs=1e-5)
    found = in_logits({name: after[name] for name in WANTED if name in after}, after["log_unit"][:, 0])
    assert len(found) > 10
    for name, values in found.items():
        assert np.allclose(values, before[name], atol=1e-8), name
