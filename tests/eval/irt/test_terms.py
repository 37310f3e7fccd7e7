"""One fit with every interaction: its blocks fit together, are kept, and reach the tables; what intervals are about."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpeer.errors import DataError
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.fit_statistics import thin
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.scope import scope, shrinkage
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.stan_terms import item_shares, on_this_mix
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import THINNED, Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]
SPEC = Spec(models=3, items=9, dimensions=2, judges=3, samples=2, s_v=1.0, s_u=0.6)


@pytest.fixture(scope="module")
def everything() -> Posterior:
    table, _ = simulate(SPEC, 2)
    table["item_group"] = np.where(table["item"].str[-1].astype(int) < 4, "hard", "easy")
    options = Options(
        judge_model=True, judge_item=True, groups=True, thresholds="item", chains=2, warmup=150, draws=150
    )
    return fit(encode(table), options)


@pytest.mark.slow
def test_what_a_model_does_on_its_items_is_its_ability_and_the_mean_of_v(everything: Posterior) -> None:
    index, place = thin(everything, 1000)
    gap = (everything.flat("theta_these") - everything.flat("theta"))[index]
    assert np.allclose(gap, everything.flat("v")[place].mean(axis=2), atol=1e-6)
    assert np.abs(gap).max() > 0.05


@pytest.mark.slow
def test_thinned_effects_have_the_spread_that_was_drawn_with_them(everything: Posterior) -> None:
    index, place = thin(everything, 1000)
    for name, axes in (("u", 1), ("v", (1, 2))):
        ratio = everything.flat(name)[place].std(axis=axes) / everything.flat(f"s_{name}")[index]
        assert np.median(ratio) == pytest.approx(1, abs=0.2), name
    steps = everything.flat("item_step")[place]
    assert np.allclose(steps.sum(axis=-1), 0, atol=1e-6) and steps.std() > 0
    group = everything.flat("group")
    assert group.shape[1:] == (3, 2, 2) and np.allclose(group.sum(axis=1), 0, atol=1e-6)
    assert np.allclose(5 * group[:, :, 0] + 4 * group[:, :, 1], 0, atol=1e-6)  # 5 easy items, 4 hard ones
    assert np.isfinite(everything.draws["judge_model"]).all()


@pytest.mark.slow
def test_a_fit_with_every_term_is_kept_and_tabulated(everything: Posterior, tmp_path: Path) -> None:
    save(everything, tmp_path)
    found = load(tmp_path)
    assert (
        found.ratings.groups == ("easy", "hard") and (found.ratings.item_group == everything.ratings.item_group).all()
    )
    assert {name for name in THINNED if name in found.draws} == set(THINNED)
    result = tabulate(found, "model0")
    widths = [
        (result.contrasts[f"{c}_high"] - result.contrasts[f"{c}_low"]).mean() for c in ("contrast", "contrast_these")
    ]
    assert widths[1] < 0.9 * widths[0]
    assert set(result.tables["thresholds"]["judge"]) == {"all judges"}
    assert len(result.tables["item_thresholds"]) == 9 * 2 * 4 and len(result.tables["groups"]) == 3 * 2 * 2
    assert len(result.tables["judge_model"]) == 9
    text = " ".join(result.notes)
    assert "new prompts" in text and "partial credit" in text and "drawn towards their mean" in text
    assert result.tables["judges"]["infit"].to_numpy() == pytest.approx(1, abs=0.2)


def test_what_intervals_are_about_is_said() -> None:
    once = made_up(items=12, noise=0.1, s_u=0.5)
    assert "answered every prompt once" in scope(once) and "new prompts" in scope(once)
    r = once.ratings
    twice = replace(r, response_item=r.response_item // 2)
    assert "these prompts only" in scope(replace(once, ratings=twice))
    both = once.draws | {"theta_these": once.draws["theta"]}
    assert "Contrasts on these prompts leave that out" in scope(replace(once, ratings=twice, draws=both))
    assert scope(once) in tabulate(once).notes
    few = replace(r, response_item=np.where(r.response_item < 2, 0, r.response_item))  # 4 pairs of 44
    assert "Hardly any prompt was answered more than once" in scope(replace(once, ratings=few))


def test_how_far_severities_were_drawn_to_their_mean_is_said() -> None:
    """Of independent normal draws: posterior variance over prior variance, both less the mean over judges."""
    p = made_up(items=3, judges=50, draws=400)
    severity = 0.3 * np.random.default_rng(0).normal(size=(4, 400, 50))
    severity -= severity.mean(axis=-1, keepdims=True)
    p = replace(p, draws=p.draws | {"severity_judge": severity, "s_severity": np.full((4, 400), 0.6)})
    assert "25 %" in (shrinkage(p) or "")
    assert shrinkage(replace(p, options=Options(severity_prior="wide"))) is None


def test_groups_of_items_are_read_and_checked() -> None:
    table, _ = simulate(Spec(models=2, items=4, dimensions=1, judges=2), 1)
    assert encode(table).groups == () and len(encode(table).item_group) == 0
    table["item_group"] = table["item"].map({"item0": "a", "item1": "b", "item2": "a", "item3": "b"})
    assert encode(table).item_group.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"item_group.*differs between rows of one item"):
        encode(table.assign(item_group=["c", *table["item_group"][1:]]))
    with pytest.raises(DataError, match=r"item_group.*is empty"):
        encode(table.assign(item_group=["", *table["item_group"][1:]]))


def test_ability_is_that_on_the_mix_of_the_items() -> None:
    """Of 36 items of one kind and 4 of another, equal on average over the 40: an equal mix would tell models apart."""
    rng = np.random.default_rng(0)
    table, _ = simulate(Spec(models=3, items=40, dimensions=2, judges=2), 1)
    table["item_group"] = np.where(table["item"].isin([f"item{i:02d}" for i in range(4)]), "b", "a")
    table = table[~((table["model"] == "model2") & (table["item_group"] == "b") & (table["dimension"] == "dimension1"))]
    ratings = encode(table)
    share, answered = item_shares(ratings)
    assert np.allclose(share, [[0.9, 0.9], [0.1, 0.1]])
    assert np.allclose(answered, [share, share, [[0.9, 1.0], [0.1, 0.0]]])
    theta, group = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2, 2))
    theta -= theta.mean(axis=1, keepdims=True)
    group -= group.mean(axis=1, keepdims=True)
    group -= group.mean(axis=2, keepdims=True)
    ability, gain = on_this_mix(theta, group, share)
    on_items = theta[:, :, None] + group[:, :, ratings.item_group]  # [S, M, Q, D]
    assert np.allclose(ability, on_items.mean(axis=2)) and np.allclose(ability.sum(axis=1), 0)
    assert np.allclose(ability[:, :, None] + gain[:, :, ratings.item_group], on_items)

    warnings = {w.kind: str(w) for w in check(ratings, Options(groups=True)).warnings}
    assert warnings["one_group"].startswith("in dimension1: model2 answered items of one group only")
    assert "one_group" not in {w.kind for w in check(ratings, Options()).warnings}
    p = made_up(models=3, items=40, judges=2, draws=20, noise=0.1)
    named = replace(ratings, dimensions=p.ratings.dimensions, criteria=p.ratings.criteria)
    draws = p.draws | {"group": rng.normal(size=(4, 20, 3, 2, 2)), "s_group": np.ones((4, 20, 2))}
    found = tabulate(replace(p, ratings=named, draws=draws))
    table = found.tables["groups"].set_index(["model", "group", "dimension"])
    assert table["effect_low"].isna().sum() == 1 and np.isnan(table.loc[("model2", "b", "A"), "effect"])
    text = " ".join(found.notes)
    assert "90 % a, 10 % b" in text and "on the mix of groups that these items have" in text


@pytest.mark.parametrize(("pairs", "twice", "on"), [(40, 20, True), (40, 19, False), (300, 29, False), (300, 30, True)])
def test_model_x_item_needs_pairs_that_were_repeated(pairs: int, twice: int, on: bool) -> None:
    table, _ = simulate(Spec(models=2, items=pairs // 2, dimensions=2, judges=2, samples=2), 1)
    pair = table["model"].str[-1].astype(int) * (pairs // 2) + table["item"].str.removeprefix("item").astype(int)
    ratings = encode(table[(table["sample"] == 0) | (pair < twice)])
    scales = guessed(ratings)
    assert (build(ratings, Options(), scales).data["V"] > 0) is on
    assert build(ratings, Options(model_item=True), scales).data["V"] == 2 * pairs
    kinds = {w.kind for w in check(ratings, Options(model_item=True)).warnings}
    assert ("few_repeats" in kinds) is not on
    one_dimension = table[(table["sample"] == 0) | ((table["dimension"] == "dimension0") & (pair < pairs))]
    assert build(partly := encode(one_dimension), Options(), guessed(partly)).data["V"] == 0


def test_judges_may_be_left_out() -> None:
    table, _ = simulate(Spec(models=2, items=4, dimensions=1, judges=3), 1)
    assert encode(table, without=["rater1"]).judges == ("rater0", "rater2")
    with pytest.raises(DataError, match="no row has the judge nobody"):
        encode(table, without=["nobody"])
