"""What an earlier fit hands on as anchors."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpeer.errors import ConfigError
from dpeer.eval.irt.anchors import anchors_from, check_anchors
from dpeer.eval.irt.drift import drift
from dpeer.eval.irt.types import Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]


@pytest.fixture
def earlier() -> Posterior:
    return replace(made_up(items=5, noise=0.2), facts={"response_effect": False})


def test_anchors_carry_mean_and_sd(earlier: Posterior) -> None:
    anchors = anchors_from(earlier, judges=["judge1"], items=["item0", "item4"], sd=0.05)
    assert list(anchors["judges"]) == ["judge1"] and list(anchors["items"]) == ["item0", "item4"]
    assert anchors["judges"]["judge1"]["A"] == [pytest.approx(earlier.flat("severity")[:, 1, 1].mean()), 0.05]
    free = anchors_from(earlier, judges=["judge1"])
    assert free["judges"]["judge1"]["T"][1] == pytest.approx(0.2, abs=0.03) and free["items"] == {}
    assert json.loads(json.dumps(anchors)) == anchors


def test_items_are_anchored_only_where_they_were_rated(earlier: Posterior) -> None:
    earlier.draws["beta"][:, :, 2, 1] = np.nan
    assert list(anchors_from(earlier, items=["item2"])["items"]["item2"]) == ["T"]


def test_judges_are_anchored_only_where_they_rated(earlier: Posterior) -> None:
    made = made_up(items=5, noise=0.2, keep=lambda c: (c["judge"] > 0) | (c["dimension"] == 0))
    anchors = anchors_from(replace(made, facts={"response_effect": False}), judges=["judge0", "judge1"], sd=0.0)
    assert list(anchors["judges"]["judge0"]) == ["T"] and list(anchors["judges"]["judge1"]) == ["T", "A"]
    assert {("judge0", "A"), ("judge1", "A")} & set(
        map(tuple, drift(made, made)[["name", "dimension"]].to_numpy())
    ) == {("judge1", "A")}


def test_unknown_anchors_are_refused(earlier: Posterior) -> None:
    with pytest.raises(ConfigError, match="nobody"):
        anchors_from(earlier, judges=["nobody"])


def test_anchors_find_their_place_in_other_ratings(earlier: Posterior) -> None:
    anchors = anchors_from(earlier, judges=["judge2"], items=["item3"], sd=0.0)
    later = replace(earlier.ratings, judges=("new", "judge2", "judge0"))
    found = check_anchors(later, Options(anchors=anchors), alpha=True, response_effect=False)
    assert found.judges[1, :, 0] == pytest.approx(earlier.flat("severity")[:, 2].mean(axis=0))
    assert np.isnan(found.judges[[0, 2]]).all() and np.isfinite(found.items[3]).all()
    with pytest.raises(ConfigError, match="response_effect off and on"):
        check_anchors(later, Options(anchors=anchors), alpha=True, response_effect=True)


@pytest.mark.parametrize("other", [{"thresholds": "common"}, {"judge_model": True}, {"severity_prior": "wide"}])
def test_anchors_of_a_fit_with_other_terms_are_refused(earlier: Posterior, other: dict[str, object]) -> None:
    anchors = anchors_from(earlier, earlier.ratings.judges)
    check_anchors(earlier.ratings, Options(anchors=anchors, seed=7, chains=2), True, False)
    with pytest.raises(ConfigError, match=f"different models .{next(iter(other))} "):
        check_anchors(earlier.ratings, Options(anchors=anchors, **other), True, False)


def test_abilities_have_the_earlier_origin_only_where_judges_and_items_link(earlier: Posterior) -> None:
    now, names = earlier.ratings, {"judges": earlier.ratings.judges[:2], "items": earlier.ratings.items[:3]}
    found = check_anchors(now, Options(anchors=anchors_from(earlier, **names)), True, False)
    assert np.isfinite(found.mu).all() and found.notes == ()
    found = check_anchors(now, Options(anchors=anchors_from(earlier, judges=names["judges"])), True, False)
    assert np.isnan(found.mu).all() and "T: none of its items is anchored" in found.notes[0]
    found = check_anchors(now, Options(anchors=anchors_from(earlier, items=names["items"])), True, False)
    assert np.isnan(found.mu).all() and "none of its judges is anchored" in found.notes[1]

    anchors = anchors_from(earlier, **names)
    for judge in anchors["judges"].values():
        del judge["A"]
    with pytest.raises(ConfigError, match="judges are anchored in T but none in A"):
        check_anchors(now, Options(anchors=anchors), True, False)


def test_fits_of_other_scores_have_another_origin(earlier: Posterior) -> None:
    anchors = anchors_from(earlier, earlier.ratings.judges, earlier.ratings.items)
    later = replace(earlier.ratings, category=np.maximum(earlier.ratings.category, earlier.ratings.dimension == 1))
    found = check_anchors(later, Options(anchors=anchors), True, False)
    assert np.isfinite(found.mu[0]) and np.isnan(found.mu[1])
    assert "A: its scores run from 2 to 5, then from 1 to 5" in found.notes[0]
    with pytest.raises(ConfigError, match="the earlier fit has the scale 1 to 5, this one 0 to 4"):
        check_anchors(replace(earlier.ratings, scale=(0, 1, 2, 3, 4)), Options(anchors=anchors), True, False)
