"""RaschPy, an independent many-facet Rasch program (composite conditional likelihood), finds the same severities."""

from __future__ import annotations

import numpy as np
import pytest

from eval.irt.encode import encode
from eval.irt.fit import fit
from eval.irt.simulate import Spec, simulate
from eval.irt.types import Options


def test_severities_agree_with_raschpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    raschpy = pytest.importorskip("raschpy")
    spec = Spec(
        models=6, items=100, dimensions=1, judges=8, categories=4, s_u=0, s_alpha=0, s_tau=0, s_dev=0, s_severity=0.8
    )
    table, truth = simulate(spec, seed=3)
    options = Options(model="rasch", response_effect=False, chains=2, warmup=300, draws=300)
    posterior = fit(encode(table), options)
    ours = posterior.flat("severity")[:, :, 0].mean(axis=0)

    # RaschPy conditions persons out; abilities and difficulties enter alike, so items take the part of the persons.
    scores = table.assign(score=table["score"].astype(float) - 1)
    wide = scores.pivot(index=["judge", "item"], columns="model", values="score")
    theirs = raschpy.MFRM(wide, max_score=3)
    theirs.calibrate(model="global")
    severity = theirs.raters_global.astype(float)[list(posterior.ratings.judges)].to_numpy()
    ability = -theirs.items_global.astype(float)[list(posterior.ratings.models)].to_numpy()

    assert np.corrcoef(ours, severity)[0, 1] >= 0.99
    assert np.polyfit(severity, ours, 1)[0] == pytest.approx(1, abs=0.1)
    assert np.corrcoef(posterior.flat("theta")[:, :, 0].mean(axis=0), ability)[0, 1] >= 0.99
    assert np.corrcoef(truth["severity"][:, 0], severity)[0, 1] >= 0.98
