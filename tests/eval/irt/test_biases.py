"""Each kind of bias is named where it was planted, by judge and with the option that helps, and nowhere else."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt.biases import biases
from dpeer.eval.irt.fit_statistics import fit_statistics
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Floats, Options, Posterior, Ratings

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


def clean(seed: int = 0, **settings: object) -> Posterior:
    posterior: Posterior = made_up(items=60, judges=3, dimensions=2, draws=40, noise=0.03, seed=seed, **settings)
    return posterior


def found(posterior: Posterior) -> pd.DataFrame:
    return biases(posterior, fit_statistics(posterior, 60))


def with_ratings(posterior: Posterior, kept: np.ndarray | None = None, **values: np.ndarray) -> Posterior:
    """Other ratings under the same posterior; only rows `kept`."""
    r: Ratings = replace(posterior.ratings, **values)
    if kept is not None:
        each = ("response", "dimension", "criterion", "judge", "category", "reversed", "own_family", "own_model")
        r = replace(r, **{name: getattr(r, name)[kept] for name in each})
    return replace(posterior, ratings=r)


def shifted(posterior: Posterior, by: Floats) -> Posterior:
    """Scores that are `by` [N] higher, on the scale."""
    return with_ratings(posterior, category=np.clip(posterior.ratings.category + by, 0, 4).astype(np.int64))


def favours(p: Posterior) -> Posterior:
    rng, r = np.random.default_rng(1), p.ratings
    return shifted(p, (r.judge == 1) & (r.model == 2) & (rng.random(len(r)) < 0.5))


def halo(p: Posterior) -> Posterior:
    mood = np.random.default_rng(1).choice([-1, 0, 1], size=len(p.ratings.response_model))
    return shifted(p, np.where(p.ratings.judge == 1, mood[p.ratings.response], 0))


def items(p: Posterior) -> Posterior:
    taste = np.random.default_rng(1).choice([-1, 0, 1], size=len(p.ratings.items))
    return shifted(p, np.where(p.ratings.judge == 1, taste[p.ratings.item], 0))


def missing(p: Posterior) -> Posterior:
    r, rng = p.ratings, np.random.default_rng(1)
    quality = np.bincount(r.response, r.category)
    poor = (quality < np.quantile(quality, 0.3))[r.response]
    return with_ratings(p, ~((r.judge == 1) & poor & (rng.random(len(quality)) < 0.6)[r.response]))


def middle(p: Posterior) -> Posterior:
    tau = p.draws["tau"].copy()
    tau[:, :, 1] *= 1.8
    return replace(p, draws=p.draws | {"tau": tau})


PLANTED: dict[str, tuple[Callable[[Posterior], Posterior], str]] = {
    "favours": (favours, "--with judge-model"),
    "halo": (halo, "--with halo"),
    "items": (items, "--with judge-item"),
    "missing": (missing, "--without judge1"),
    "middle": (middle, "--model rasch"),
}


def test_ratings_without_a_bias_name_hardly_anybody() -> None:
    """At the true values, that is, where no effect has followed its ratings and residuals are largest."""
    named = pd.concat([found(clean(seed)) for seed in range(1, 9)])
    assert len(named) <= 1, named["finding"].tolist()


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_bias_is_named_with_the_option_that_helps(kind: str) -> None:
    plant, advice = PLANTED[kind]
    table = found(plant(clean()))
    row = table[table["kind"] == kind].iloc[0]
    assert row["judge"] == "judge1" and "judge1" in row["finding"] and advice in row["advice"]
    assert (table["kind"] == kind).sum() == 1
    assert kind != "favours" or (row["model"] == "model2" and row["size"] > 0 and "higher" in row["finding"])
    assert kind != "missing" or row["z"] < 0


@pytest.mark.parametrize(("kind", "option"), [("favours", "judge_model"), ("halo", "halo"), ("items", "judge_item")])
def test_a_bias_that_the_model_holds_is_not_suggested_again(kind: str, option: str) -> None:
    planted = PLANTED[kind][0](clean())
    assert kind not in set(found(replace(planted, options=Options(**{option: True})))["kind"])


def test_under_common_thresholds_the_middle_shows_in_the_end_scores() -> None:
    p = clean(options=Options(thresholds="common"))
    r = p.ratings
    drawn_in = np.where(r.judge == 1, np.clip(r.category, 1, 3), r.category)
    table = found(with_ratings(p, category=drawn_in))
    row = table[table["kind"] == "middle"].iloc[0]
    assert row["judge"] == "judge1" and "--thresholds judge" in row["advice"]
    assert "middle" not in set(found(p)["kind"])


def test_judges_of_other_models_and_items_have_left_nothing_out() -> None:
    """A judge that rates only poor models, and a third of the items."""
    p = clean()
    r, theta = p.ratings, p.flat("theta").mean(axis=(0, 2))
    asked = (theta < np.median(theta))[r.model] & (r.item % 3 == 0)
    assert "missing" not in set(found(with_ratings(p, (r.judge != 1) | asked))["kind"])


def test_central_tendency_is_named_before_discrimination() -> None:
    p = middle(clean())
    alpha = p.draws["log_alpha"] + np.log([1.0, 2.0, 1.0])
    p = replace(p, draws=p.draws | {"log_alpha": alpha})
    result = tabulate(p)
    note = result.tables["judges"].set_index("judge").loc["judge1", "note"]
    assert "keeps to the middle" in note and "consensus" not in note
    assert any("judge1 keeps to the middle" in text for text in (*result.notes, *result.gate["biases"]))
