"""RaschPy, an independent many-facet Rasch program (composite conditional likelihood), finds the same severities.

Both hold the same model, in logits: log P(k) / P(k - 1) = ability - severity - threshold. RaschPy conditions persons
out and estimates item locations (positive = harder) and raters (positive = stricter), each centred on zero. Abilities
and difficulties enter alike, so that our items take the part of its persons and our models that of its items: an
ability is a location with the other sign.
"""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options

CATEGORIES = 4
SPEC = Spec(
    models=6,
    items=100,
    dimensions=1,
    judges=8,
    categories=CATEGORIES,
    s_u=0,
    s_alpha=0,
    s_tau=0,
    s_dev=0,
    s_severity=0.8,
)


def test_severities_agree_with_raschpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    absent = [package for package in ("sklearn", "seaborn") if importlib.util.find_spec(package) is None]
    stub = SimpleNamespace(PCA=None, HuberRegressor=None, set_style=lambda style: None)
    for name in ("sklearn", "sklearn.decomposition", "sklearn.linear_model", "seaborn"):  # imported, and not used here
        if name.partition(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, stub)
    import raschpy

    table, truth = simulate(SPEC, seed=3)
    posterior = fit(encode(table), Options(model="rasch", response_effect=False, chains=2, warmup=300, draws=300))
    scores = table.assign(score=table["score"].astype(float) - 1)
    wide = scores.pivot(index=["judge", "item"], columns="model", values="score")
    theirs = raschpy.MFRM(wide, max_score=CATEGORIES - 1)
    theirs.calibrate(model="global")
    judges, models = (list(names) for names in (posterior.ratings.judges, posterior.ratings.models))

    severity = theirs.raters_global.astype(float)[judges].to_numpy()
    _agree(posterior.flat("severity")[:, :, 0], severity)
    _agree(posterior.flat("theta")[:, :, 0], -theirs.items_global.astype(float)[models].to_numpy())
    _agree(posterior.flat("tau").mean(axis=1)[:, 0], np.asarray(theirs.thresholds_global, dtype=float))
    assert np.corrcoef(truth["severity"][:, 0], severity)[0, 1] >= 0.98


def _agree(draws: Floats, theirs: Floats) -> None:
    """Draws [S, n] and estimates [n]: the same order, sign, unit and, up to the constant that no data fix, values."""
    ours = draws.mean(axis=0) - draws.mean()
    theirs = theirs - theirs.mean()
    assert np.corrcoef(ours, theirs)[0, 1] >= 0.99
    assert np.polyfit(theirs, ours, 1)[0] == pytest.approx(1, abs=0.1)
    assert np.abs(ours - theirs).max() < 2 * draws.std(axis=0).max()
