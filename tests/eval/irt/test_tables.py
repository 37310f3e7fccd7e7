"""Tables against analytic values, explanations of reversals, and claims that wait for the gate."""

from __future__ import annotations

import io
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.special import expit

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import fair_averages, rank_table, raw_means, reliability_table, reversal_table
from dpeer.eval.irt.claims import claims
from dpeer.eval.irt.fit_statistics import category_offsets
from dpeer.eval.irt.link import probabilities
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.tables import tabulate, write_tables
from dpeer.eval.irt.terminal import terminal
from dpeer.eval.irt.types import Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]

TABLES = {
    "ability": "model dimension ability ability_sd ability_low ability_high fair fair_low fair_high raw_mean n "
    "contrast contrast_low contrast_high p_better",
    "contrasts": "model dimension contrast contrast_low contrast_high family_low family_high p_better p_better_by "
    "p_worse_by p_equivalent verdict",
    "rank_sets": "model dimension best_rank worst_rank",
    "ranks": "model dimension rank probability",
    "reliability": "dimension separation reliability sd",
    "judges": "judge severity severity_low severity_high alpha alpha_low alpha_high infit infit_p outfit outfit_p n "
    "mean_score note",
    "severity": "judge dimension severity severity_low severity_high",
    "criteria": "dimension criterion difficulty difficulty_low difficulty_high n",
    "items": "item dimension difficulty difficulty_low difficulty_high n infit outfit",
    "thresholds": "judge dimension step threshold threshold_low threshold_high disordered",
    "models_fit": "model dimension infit infit_p outfit outfit_p",
    "misfit": "judge model dimension observed expected expected_low expected_high p",
    "ppc": "judge dimension score observed expected expected_low expected_high p",
    "biases": "kind judge model size z finding advice",
    "effects": "term dimension estimate estimate_low estimate_high note",
    "scales": "parameter dimension estimate estimate_low estimate_high",
    "correlation": "dimension other correlation correlation_low correlation_high",
    "reversals": "dimension model other raw_difference fair_difference contrast contrast_low contrast_high p why",
    "statuses": "judge status count",
    "diagnostics": "parameter rhat ess_bulk ess_tail",
    "connectivity": "judge model dimension n",
    "alpha": "dimension who alpha alpha_low alpha_high units",
    "kappa": "dimension judge other people kappa kappa_low kappa_high exact units",
    "confusion": "dimension judge score other_score n",
    "cards": "judge person n severity alpha infit kappa_people kappa_models own_family position length tokens price",
}


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    return made_up(items=25, draws=400, noise=0.1, s_u=0.5)


@pytest.fixture(scope="module")
def found(fitted: Posterior) -> Result:
    return tabulate(fitted, base="model1")


def shown(found: Result) -> str:
    console = Console(file=io.StringIO(), width=160)
    for part in terminal(found):
        console.print(part)
    return console.file.getvalue()


def test_every_table_has_its_columns(found: Result) -> None:
    assert found.tables.keys() == TABLES.keys()
    for name, columns in TABLES.items():
        assert set(columns.split()) <= set(found.tables[name].columns), name


def test_intervals_hold_their_estimates(found: Result) -> None:
    for name, table in found.tables.items():
        for low in (c for c in table if c.endswith("_low")):
            name_of = low.removesuffix("_low")
            middle, high = (
                table["contrast" if name_of == "family" else name_of],
                table[low.removesuffix("_low") + "_high"],
            )
            inside = (table[low] <= middle + 1e-9) & (middle <= high + 1e-9)
            assert (inside | middle.isna()).all(), f"{name}.{low}"


def test_contrasts_are_to_the_base(found: Result, fitted: Posterior) -> None:
    ability = found.tables["ability"].set_index(["model", "dimension"])
    theta = fitted.flat("theta")
    assert ability.loc[("model1", "T"), ["contrast", "contrast_low", "p_better"]].isna().all()
    assert ability.loc[("model3", "A"), "contrast"] == pytest.approx((theta[:, 3, 1] - theta[:, 1, 1]).mean())
    assert ability.loc[("model3", "A"), "p_better"] == (theta[:, 3, 1] > theta[:, 1, 1]).mean()
    with pytest.raises(ConfigError, match="base nobody"):
        tabulate(fitted, base="nobody")


def test_fair_averages_of_two_scores_are_probabilities() -> None:
    p = made_up(items=6, scores=2, beta=np.zeros((6, 2)))
    assert fair_averages(p)[0] == pytest.approx(expit(p.draws["theta"][0, 0] + 0.2), abs=1e-12)


def test_fair_averages_run_over_items_and_responses() -> None:
    """Against brute force over normal items and response effects."""
    p = made_up(items=4000, judges=1, models=3, dimensions=1, scores=2, s_u=0.9, draws=1, chains=2)
    beta, u = p.flat("beta")[0, :, 0], np.random.default_rng(0).normal(0, 0.9, 4000)
    expected = expit(p.flat("theta")[0] + 0.2 - beta + u).mean(axis=1)
    assert fair_averages(p)[0, :, 0] == pytest.approx(expected, abs=0.01)


def test_fair_averages_grow_with_ability_and_stay_on_the_scale(found: Result) -> None:
    for _, part in found.tables["ability"].groupby("dimension"):
        assert (part.sort_values("ability")["fair"].diff().dropna() > 0).all()
    assert found.tables["ability"]["fair"].between(1, 5).all()


def test_fair_averages_leave_unused_scores_out() -> None:
    p = made_up(items=6)
    tau = np.broadcast_to(np.array([0.3, np.nan, np.nan, np.nan]), p.draws["tau"].shape)
    p = replace(
        p,
        draws=p.draws | {"tau": tau, "tau_average": tau[:, :, 0]},
        ratings=replace(p.ratings, category=p.ratings.category % 2),
    )
    assert ((fair_averages(p) > 1) & (fair_averages(p) < 2)).all()


def test_ranks_are_probabilities() -> None:
    p = made_up(items=3, noise=0.8)
    ranks = rank_table(p)
    assert ranks.groupby(["model", "dimension"])["probability"].sum().to_numpy() == pytest.approx(1)
    assert ranks.groupby(["rank", "dimension"])["probability"].sum().to_numpy() == pytest.approx(1)
    theta = p.flat("theta")[:, :, 0]
    first = ranks.query("model == 'model2' and dimension == 'T' and rank == 1")["probability"].item()
    assert first == (theta.argmax(axis=1) == 2).mean()


def test_reliability_and_separation() -> None:
    theta = np.array([[-1.0], [0.0], [1.0]])
    p = made_up(models=3, items=3, dimensions=1, theta=theta, noise=0.5, draws=5000)
    row = reliability_table(p).iloc[0]
    error = 0.25 * 2 / 3  # a third of the noise moves all three alike, which tells none of them from another
    assert row["reliability"] == pytest.approx(1 / (1 + error), abs=0.01)
    assert row["separation"] == pytest.approx(1 / np.sqrt(error), abs=0.05)
    assert row["sd"] == pytest.approx(np.sqrt(1 + error), abs=0.02)
    p.draws["theta"] += np.random.default_rng(1).normal(0, 3, (*p.draws["theta"].shape[:2], 1, 1))  # a loose anchor
    assert reliability_table(p).iloc[0].to_dict() == pytest.approx(row.to_dict())


def test_no_reversal_where_orders_agree() -> None:
    p = made_up(models=3, items=60, theta=np.array([[-1.5, 1.5], [0, 0], [1.5, -1.5]]))
    assert len(reversal_table(p, fair_averages(p))) == 0


def lenient_judge(columns: dict[str, np.ndarray]) -> np.ndarray:
    """model0 is rated mostly by judge 0, model1 mostly by judge 1; both by judge 2."""
    m, q, j = columns["model"], columns["item"], columns["judge"]
    return (j == 2) | ((m == 0) & ((j == 0) | (q < 3))) | ((m == 1) & ((j == 1) | (q < 3)))


def test_a_reversal_by_lenient_judges_is_explained() -> None:
    severity = np.array([[-1.5], [1.5], [0.0]])
    p = made_up(
        models=2,
        items=80,
        dimensions=1,
        severity=severity,
        theta=np.array([[-0.3], [0.3]]),
        noise=0.05,
        keep=lenient_judge,
    )
    row = reversal_table(p, fair_averages(p)).iloc[0]
    assert (row["model"], row["other"]) == ("model0", "model1")
    assert row["raw_difference"] > 0 > row["fair_difference"] and row["contrast_high"] < 0 and row["p"] > 0.975
    assert "model0 was rated more often by lenient judges (+1." in row["why"] and "not certain" not in row["why"]


def test_a_reversal_by_easy_items_is_explained() -> None:
    beta = np.r_[np.full(40, -1.5), np.full(40, 1.5)][:, None]
    p = made_up(
        models=2,
        items=80,
        dimensions=1,
        beta=beta,
        theta=np.array([[-0.3], [0.3]]),
        keep=lambda c: (c["item"] < 44) == (c["model"] == 0),
    )
    why = reversal_table(p, fair_averages(p))["why"].item()
    assert "model0 was rated on easier items" in why and "lenient" not in why


def test_an_uncertain_reversal_says_so() -> None:
    p = made_up(models=2, items=40, dimensions=1, theta=np.array([[0.4], [-0.4]]))
    # Draws that put the order the other way round, by little and with much noise.
    theta = np.random.default_rng(0).normal([[-0.02], [0.02]], 0.5, (4, 150, 2, 1))
    unsure = replace(p, draws=p.draws | {"theta": theta})
    row = reversal_table(unsure, fair_averages(p)).iloc[0]
    assert "not certain (P = 0.5" in row["why"]
    assert "met the same judges and items" in row["why"]
    (why,) = tabulate(replace(unsure, facts={"no_intervals": True})).tables["reversals"]["why"]
    assert why == row["why"].split(" (P")[0] + "."


def test_raw_means_use_the_scores_of_the_scale() -> None:
    p = made_up(items=6)
    mean, n = raw_means(p.ratings)
    here = (p.ratings.model == 2) & (p.ratings.dimension == 1)
    assert mean[2, 1] == pytest.approx((p.ratings.category[here] + 1).mean()) and n[2, 1] == here.sum()


def test_total_ability_adds_the_effect_of_mean_length() -> None:
    p = made_up(items=6, length=np.array([0.5, 0.0]))
    ability = tabulate(p).tables["ability"].set_index(["model", "dimension"])
    mean_length = p.ratings.response_length[p.ratings.response_model == 1].mean()
    gain = ability["total"] - ability["ability"]
    assert gain["model1", "T"] == pytest.approx(0.5 * mean_length) and gain["model1", "A"] == 0
    assert set(tabulate(p).tables["effects"]["term"]) == {"length"}


def test_disordered_thresholds_are_marked() -> None:
    tau = np.tile([-1.0, 1.0, 0.2, 1.5], (3, 2, 1))
    table = tabulate(made_up(items=6, tau=tau)).tables["thresholds"]
    assert (table["disordered"] == (table["step"] == 4)).all()


def test_unused_thresholds_are_left_out() -> None:
    tau = np.tile([-1.0, np.nan, 0.2, 1.5], (3, 2, 1))
    p = made_up(items=6)
    p = replace(p, draws=p.draws | {"tau": np.broadcast_to(tau, p.draws["tau"].shape)})
    table = tabulate(p).tables["thresholds"]
    assert set(table["step"]) == {2, 4, 5} and not table["disordered"].any()


def test_judges_get_notes_in_words() -> None:
    p = made_up(judges=4, items=60, noise=0.05, log_alpha=np.array([0.6, -0.9, 0.3, 0.0]))
    r = p.ratings
    category = np.where((r.judge == 0) & (r.model == 2), np.minimum(4, r.category + 1), r.category)
    category[r.judge == 3] = 2
    notes = tabulate(replace(p, ratings=replace(r, category=category))).tables["judges"].set_index("judge")["note"]
    assert "misfits: scores model2 higher in" in notes["judge0"]
    assert "agrees less with the others (alpha 0.4)" in notes["judge1"]
    assert notes["judge3"] == "constant: gives the score 3 only"
    assert "misfits" not in notes["judge2"]


def test_claims_are_made_only_behind_a_green_gate(found: Result, fitted: Posterior) -> None:
    assert found.gate["green"], found.gate["reasons"]
    sentences = claims(found)
    contrasts = found.tables["contrasts"]
    decided = contrasts[(contrasts["family_low"] > 0) | (contrasts["family_high"] < 0)]
    assert len(sentences) == len(decided) > 0
    row = decided.iloc[0]
    word = "better" if row["contrast"] > 0 else "worse"
    assert sentences[0].startswith(
        f"{row['model']} is {word} than model1 in {row['dimension']}: {row['contrast']:+.2f} logits ["
    )
    assert "Diagnostics: green" in shown(found)

    divergent = np.zeros((4, 400))
    divergent[0, 0] = 1
    red = tabulate(replace(fitted, sampler=fitted.sampler | {"divergent": divergent}))
    assert claims(red) == []
    assert "no claim" in shown(red) and "1 of 1600 transitions diverged" in shown(red)


def test_without_support_no_interval_is_shown(fitted: Posterior) -> None:
    alone = tabulate(replace(fitted, facts=fitted.facts | {"no_intervals": "one judge"}))
    ability = alone.tables["ability"]
    assert ability[["ability_low", "ability_sd", "fair_high", "contrast_low", "p_better"]].isna().all().all()
    assert set(alone.tables["contrasts"]["verdict"]) == {"undecided"}
    assert ability["ability"].notna().all() and not {"ranks", "reliability"} & alone.tables.keys()
    assert claims(alone) == [] and " to " not in shown(alone).split("Diagnostics")[0]


def test_terminal_shows_abilities_and_severities(found: Result) -> None:
    text = shown(found)
    row = found.tables["ability"].iloc[0]
    assert f"{row['ability']:+.2f} ({row['ability_low']:.2f} to {row['ability_high']:.2f})" in text
    assert all(name in text for name in ("model3", "judge2", "severity"))


def test_judges_who_only_rate_have_no_share_of_ties(found: Result) -> None:
    unknown = dict.fromkeys(("tie_share", "position", "position_low", "position_high"), np.nan)
    judges = found.tables["judges"].assign(comparisons=0, **unknown)
    judges.loc[0, ["comparisons", "tie_share"]] = [8, 0.25]
    text = shown(replace(found, tables=found.tables | {"judges": judges}))
    assert "25%" in text and "nan" not in text


def test_names_are_not_markup(fitted: Posterior) -> None:
    named = replace(fitted, ratings=replace(fitted.ratings, models=("[red]x[/]", "model1", "a[/b]", "model3")))
    assert "[red]x[/]" in shown(tabulate(named))


def test_files_hold_every_table(found: Result, tmp_path: Path) -> None:
    write_tables(found, tmp_path / "tables")
    for name, table in found.tables.items():
        assert len(pd.read_csv(tmp_path / "tables" / f"{name}.csv")) == len(table)
        assert len(json.loads((tmp_path / "tables" / f"{name}.json").read_text())) == len(table)
    ability = json.loads((tmp_path / "tables" / "ability.json").read_text())
    assert ability[0]["ability"] == pytest.approx(found.tables["ability"]["ability"][0], abs=1e-9)
    assert next(row for row in ability if row["model"] == "model1")["contrast"] is None
    assert json.loads((tmp_path / "tables" / "gate.json").read_text())["green"] is True
    assert not list((tmp_path / "tables").glob(".*"))


def test_counts_add_up(found: Result, fitted: Posterior) -> None:
    n = len(fitted.ratings)
    for name in ("ability", "judges", "criteria", "items", "connectivity"):
        assert found.tables[name]["n"].sum() == n, name
    assert found.tables["statuses"]["count"].sum() == n and found.facts["ratings"] == n
    assert "u_draws" not in found.facts


def test_notes_tell_what_was_left_out(fitted: Posterior) -> None:
    plain = made_up(items=6)
    notes = " ".join(tabulate(replace(plain, facts={"notes": ["centred items"]})).notes)
    assert "centred items" in notes and "No response effect" in notes and "Fair averages" in notes
    assert "No response effect" not in " ".join(tabulate(fitted).notes)


def test_drift_stands_beside_the_other_tables(fitted: Posterior) -> None:
    assert set(tabulate(fitted, before=fitted).tables["drift"]["kind"]) == {"judges", "items"}


def test_a_claim_carries_the_misfit_of_its_model(found: Result) -> None:
    misfit = found.tables["misfit"].copy()
    assert not any("; but" in sentence for sentence in claims(found))
    decided = found.tables["contrasts"].query("family_low > 0 or family_high < 0").iloc[0]
    cell = (misfit["judge"] == "judge2") & (misfit["model"] == decided["model"])
    cell &= misfit["dimension"] == decided["dimension"]
    misfit.loc[cell, ["notable", "observed"]] = [True, misfit.loc[cell, "expected"].item() + 0.4]
    sentences = claims(replace(found, tables=found.tables | {"misfit": misfit}))
    assert sentences[0].endswith("; but judge2 scores it 0.40 higher than the model of judging expects")


def test_one_dimension_and_one_judge_have_their_tables_too() -> None:
    found = tabulate(made_up(items=6, dimensions=1, judges=1, noise=0.1))
    assert len(found.tables["correlation"]) == 0 and len(found.tables["judges"]) == 1
    assert len(found.tables["ability"]) == 4 and "T" in shown(found)


@pytest.mark.slow
def test_a_real_fit_has_every_table_and_its_model_describes_its_data(tmp_path: Path) -> None:
    from dpeer.eval.irt.encode import encode
    from dpeer.eval.irt.fit import fit
    from dpeer.eval.irt.simulate import Spec, simulate

    table, _ = simulate(Spec(models=4, items=20, dimensions=2, judges=3, criteria=2), seed=1)
    found = tabulate(fit(encode(table), Options(warmup=250, draws=250)))
    assert found.tables.keys() == TABLES.keys()
    assert found.tables["judges"]["infit"].to_numpy() == pytest.approx(1, abs=0.15)
    assert not found.tables["misfit"]["notable"].any()
    assert found.tables["diagnostics"]["rhat"].max() < 1.1
    write_tables(found, tmp_path)
    assert len(pd.read_csv(tmp_path / "ability.csv")) == 8


def test_a_threshold_across_an_unused_score_is_where_the_two_are_even() -> None:
    tau = np.tile([-1.0, np.nan, 3.0, 1.8], (3, 2, 1))
    p = made_up(items=6)
    category = np.where(p.ratings.category == 2, 3, p.ratings.category)
    p = replace(
        p,
        draws=p.draws | {"tau": np.broadcast_to(tau, p.draws["tau"].shape)},
        ratings=replace(p.ratings, category=category),
    )
    table = tabulate(p).tables["thresholds"]
    assert list(table["threshold"][:3]) == pytest.approx([-1.0, 1.5, 1.8]) and not table["disordered"].any()
    offsets = category_offsets(p, np.array([0]))[:, :, :, 0]
    even = probabilities(np.full(offsets.shape[:2], 1.5), np.moveaxis(offsets, -1, 0))
    assert even[3] == pytest.approx(even[1])


def test_what_a_judge_never_rated_is_not_shown_as_measured() -> None:
    found = tabulate(made_up(items=6, noise=0.1, keep=lambda c: (c["judge"] > 0) | (c["dimension"] == 0)))
    for name in ("severity", "thresholds"):
        pairs = found.tables[name][["judge", "dimension"]].drop_duplicates().to_numpy().tolist()
        assert ["judge0", "T"] in pairs and ["judge0", "A"] not in pairs and ["judge1", "A"] in pairs


def test_a_fit_that_was_told_to_ignore_responses_makes_no_claim(fitted: Posterior) -> None:
    draws = {name: values for name, values in fitted.draws.items() if name not in ("u", "s_u")}
    told = replace(fitted, draws=draws, options=Options(response_effect=False))
    assert claims(tabulate(told)) == []
    reasons = tabulate(told).gate["reasons"]
    assert any("no response effect" in reason for reason in reasons)
    assert "(no claim" in shown(tabulate(told))
