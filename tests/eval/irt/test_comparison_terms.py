"""Comparisons without ratings under the model's other terms, and what needs ratings refuses them by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpeer.errors import ConfigError
from dpeer.eval.config import Judging
from dpeer.eval.irt.anchors import anchors_from
from dpeer.eval.irt.comparison_fit import outcome_probabilities
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.equating import link
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.fit_statistics import thin
from dpeer.eval.irt.precision import components_of
from dpeer.eval.irt.restart import earlier
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Options, Posterior

SPEC = Spec(models=4, items=12, dimensions=1, judges=3, samples=2, compared=1, rated=False, position=0.4, s_v=0.8)
TABLE, _ = simulate(SPEC, 5)
TABLE["item_group"] = np.where(TABLE["item"].str[-1].astype(int) < 4, "hard", "easy")
OLD = TABLE[TABLE["item"] != sorted(TABLE["item"].unique())[-1]]
OPTIONS = Options(judge_model=True, groups=True, chains=2, warmup=150, draws=100)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Posterior:
    folder = tmp_path_factory.mktemp("fit")
    save(fit(encode(OLD), OPTIONS), folder)
    return load(folder)


@pytest.mark.slow
def test_differences_hold_model_by_item_groups_and_tastes_of_judges(before: Posterior) -> None:
    r, c = before.ratings, before.ratings.comparisons
    index, place = thin(before, 3)
    found = outcome_probabilities(before, index, place)
    for s, (draw, kept) in enumerate(zip(index, place, strict=True)):
        flat = {n: before.flat(n)[draw] for n in ("theta", "group", "judge_model", "position", "log_alpha", "tie")}
        v, u = (before.flat(n)[kept] for n in ("v", "u"))
        for k in range(0, len(c), 37):
            j, worth = c.judge[k], []
            for response in (c.response[k], c.other[k]):
                m, q = r.response_model[response], r.response_item[response]
                terms = flat["theta"][m, 0], flat["group"][m, r.item_group[q], 0], flat["judge_model"][j, m]
                worth.append(sum(terms) + v[m, q, 0] + u[response, 0])
            x = np.exp(flat["log_alpha"][j]) * (worth[0] - worth[1] + flat["position"][j] * c.place[k])
            weights = np.exp([-x, flat["tie"][j], x])
            assert found[:, k, s] == pytest.approx(weights / weights.sum(), abs=1e-5)


@pytest.mark.slow
def test_a_fit_goes_on_from_one_of_fewer_comparisons(before: Posterior) -> None:
    warm = fit(encode(TABLE), replace(OPTIONS, draws=200), start=before)
    assert len(warm.ratings.comparisons) > len(before.ratings.comparisons)
    gap = warm.flat("theta").mean(axis=0) - before.flat("theta").mean(axis=0)
    assert (np.abs(gap) < 3 * before.flat("theta").std(axis=0)).all()
    only_two = TABLE[TABLE["judge"] != TABLE["judge"].iloc[0]]
    with pytest.raises(IrtError, match="other judges"):
        earlier(before, encode(only_two), OPTIONS)


@pytest.mark.slow
def test_tables_are_made_and_what_needs_ratings_refuses(before: Posterior, tmp_path: Path) -> None:
    result = tabulate(before)
    assert result.tables["biases"].empty and result.tables["misfit"].empty
    assert {"groups", "judge_model", "comparisons"} <= set(result.tables)
    assert "contrast_these" in result.contrasts and result.contrasts["family_low"].notna().all()
    assert not any("Severities" in note or "Score steps" in note for note in result.notes)
    tabulate(before, before=before)
    for call, error in (
        (lambda: components_of(before), IrtError),
        (lambda: anchors_from(before, before.ratings.judges, ()), ConfigError),
        (lambda: link(before, before, before.ratings.models), ConfigError),
    ):
        with pytest.raises(error, match="comparisons only"):
            call()


def test_rounds_are_of_ratings() -> None:
    with pytest.raises(ValueError, match="rounds choose ratings, not comparisons"):
        Judging(mode="pairwise", until={"contrast": 0.3})  # type: ignore[arg-type]
