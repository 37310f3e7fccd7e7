"""Drift is found, and only in a free fit of the same model."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpeer.errors import ConfigError
from dpeer.eval.irt.drift import drift
from dpeer.eval.irt.types import Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


def moved(posterior: Posterior, shift: np.ndarray, seed: int = 9) -> Posterior:
    """The same judges in a later fit: shifted, with fresh scatter."""
    severity = posterior.draws["severity"]
    scatter = 0.1 * np.random.default_rng(seed).normal(size=severity.shape)
    return replace(posterior, draws=posterior.draws | {"severity": severity + shift[:, None] + scatter})


def test_drift_of_one_judge_is_found_and_the_others_stay() -> None:
    before = made_up(items=5, judges=5, noise=0.1)
    table = drift(before, moved(before, np.array([0, 0, 1.2, 0, 0]) + 0.4))
    judges = table[table["kind"] == "judges"]
    assert set(judges.loc[judges["drifted"], "name"]) == {"judge2"}
    found = judges[judges["name"] == "judge2"]
    assert found["difference"].to_numpy() == pytest.approx(1.2, abs=0.05)  # the common shift of 0.4 is the new zero
    assert found["difference_low"].to_numpy() == pytest.approx(1.2 - 1.96 * 0.1 * np.sqrt(3), abs=0.08)
    assert not table.loc[table["kind"] == "items", "drifted"].any()


def test_only_shared_elements_are_compared_where_both_fits_rated_them() -> None:
    before, now = made_up(items=5, noise=0.1), made_up(items=8, judges=4, dimensions=1, noise=0.1)
    before.draws["beta"][:, :, 2] = np.nan
    table = drift(before, now)
    assert set(table["name"]) == {f"judge{i}" for i in range(3)} | {f"item{i}" for i in (0, 1, 3, 4)}
    assert set(table["dimension"]) == {"T"}


def test_drift_is_refused_between_different_models_and_in_anchored_fits() -> None:
    before = made_up(items=5)
    with pytest.raises(ConfigError, match="different models"):
        drift(before, replace(before, options=Options(model="rasch")))
    others = (
        {"judge_model": True}, {"judge_item": True}, {"groups": True}, {"thresholds": "common"}, {"halo": True},
        {"severity_prior": "wide"}, {"self_family": True},
    )  # fmt: skip
    for other in others:
        with pytest.raises(ConfigError, match=f"different models .{next(iter(other))} "):
            drift(before, replace(before, options=Options(**other)))
    effects = {name: np.ones((4, 150, 2)) for name in ("s_u", "s_v")}
    with pytest.raises(ConfigError, match="response_effect off and on, model_item off and on"):
        drift(before, replace(before, draws=before.draws | effects))
    with_sampling = Options(response_effect=False, chains=2, seed=5, threads=2)
    assert len(drift(before, replace(before, options=with_sampling)))  # off by wish as it was for want of ratings
    with pytest.raises(ConfigError, match="free fit"):
        drift(before, replace(before, options=Options(anchors={"judges": {"judge0": {"T": [0.0, 0.0]}}})))
