"""People beside models as judges: abilities on the people's scale, what models have in common, what more people add."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import fair_averages, raw_means, reversal_table
from dpeer.eval.irt.drift import require_same_model
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.fit_statistics import predictor, thin
from dpeer.eval.irt.leniency import _filled, told
from dpeer.eval.irt.people import LEAST, judgements, leniency, on_their_scale, scaled, tastes
from dpeer.eval.irt.result import Result
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.scope import shrinkage
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Options, Posterior, Ratings
from dpeer.eval.irt.variant import variant_of
from dpeer.eval.report.page import write_report

made_by = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/human_calibration.py"))["ratings"]
SHORT = Options(chains=2, warmup=200, draws=200)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    frame: pd.DataFrame = made_by(3, 100)[0]
    return frame


@pytest.fixture(scope="module")
def result(table: pd.DataFrame) -> Result:
    return tabulate(fit(encode(table), SHORT))


def two_dimensions(table: pd.DataFrame, people_in_second: int) -> Ratings:
    human = table["judge_family"] == "human"
    second = pd.concat([table[~human], table[human].head(people_in_second)])
    return encode(pd.concat([table, second.assign(dimension="second")]))


def test_what_every_judge_sees_is_the_same_on_either_scale(table: pd.DataFrame) -> None:
    r, rng = two_dimensions(table, 0), np.random.default_rng(0)
    where = scaled(r, Options())
    assert where.tolist() == [True, False]
    M, J, D = len(r.models), len(r.judges), 2
    raw = {n: rng.normal(size=(1, 5, *s)) for n, s in (("theta", (M, D)), ("mu", (D,)), ("severity", (J, D)))}
    effects = rng.normal(size=(1, 5, len(tastes(r, where))))
    made = on_their_scale(raw, effects, r, where)
    person = np.isin(r.judges, r.people)
    for j in range(J):
        for d in range(D):
            kind = int(person[j] and where[d])
            seen = effects[..., (kind * D + d) * M : (kind * D + d + 1) * M] + raw["theta"][..., d]
            seen = seen + (raw["mu"] - raw["severity"][..., j, :])[..., [d]]
            found = made["theta"][..., d] + (made["mu"] - made["severity"][..., j, :])[..., [d]]
            if not person[j]:
                found = found + np.nan_to_num(made["favour"][..., d])
            assert np.allclose(seen, found)
    assert np.allclose(made["favour"][..., 0].sum(axis=-1), 0) and np.isnan(made["favour"][..., 1]).all()
    assert np.allclose(made["severity"][..., person, 0].mean(axis=-1), 0)  # severities count from the people
    assert np.allclose(made["severity"][..., 1], raw["severity"][..., 1])


def test_a_common_taste_of_models_is_found_and_abilities_are_what_people_see(result: Result) -> None:
    posterior, (_, truth) = result.posterior, made_by(3, 100)
    assert posterior is not None
    favours = result.tables["favours"].set_index("model")
    assert favours["favour"].idxmax() == "model1" and favours["favour"].sum() == pytest.approx(0, abs=1e-9)
    row = result.tables["leniency"].iloc[0]
    assert row["leniency_low"] < truth["leniency"] < row["leniency_high"] and row["scaled"]
    assert (row["people"], row["ratings"], row["responses"], row["shared"]) == (2, 100, 50, 50)
    both = result.tables["ability"].set_index("model").join(favours[["favour", "ability_judges"]])
    assert np.allclose(both["ability"] + both["favour"], both["ability_judges"])
    c = result.contrasts
    assert ((c["contrast_low"] < truth["contrast"]) & (truth["contrast"] < c["contrast_high"])).all()
    assert any("people's scale" in note for note in result.notes) and "the people" in " ".join(result.notes)


def test_model_judges_are_expected_to_favour_whom_they_favour_and_people_are_not(result: Result) -> None:
    posterior = result.posterior
    assert posterior is not None
    r = posterior.ratings
    index, place = thin(posterior, 20)
    eta, favour = predictor(posterior, index, place), posterior.flat("favour")[index][..., 0]
    severity = posterior.flat("severity")[index][..., 0]
    level = eta + severity[:, r.judge].T
    for response in np.unique(r.response[np.isin(np.array(r.judges)[r.judge], r.people)])[:5]:
        rows = np.flatnonzero(r.response == response)
        person = np.isin(np.array(r.judges)[r.judge[rows]], r.people)
        gap = level[rows[~person]].mean(axis=0) - level[rows[person]].mean(axis=0)
        assert np.allclose(gap, favour[:, r.response_model[response]], atol=1e-9)
    assert np.allclose(leniency(posterior)[:, 0], -posterior.flat("severity")[:, :3, 0].mean(axis=1), atol=1e-9)


def test_fair_averages_are_those_of_people(result: Result) -> None:
    """Model judges are more lenient by more than a logit: their mean score is no average that people would give."""
    posterior = result.posterior
    assert posterior is not None
    r = posterior.ratings
    person = np.isin(np.array(r.judges)[r.judge], r.people)
    given = np.array(r.scale)[r.category]
    fair = result.tables["ability"]["fair"].mean()
    assert abs(fair - given[person].mean()) < abs(fair - given[~person].mean())


def test_more_people_make_contrasts_sharper_by_the_forecast(result: Result) -> None:
    frame = result.tables["human_ratings"]
    measured = (result.contrasts["contrast_high"] - result.contrasts["contrast_low"]).mean() / 2
    assert frame["half_width"].iloc[0] == pytest.approx(measured, rel=0.1)
    assert frame["ratings"].tolist() == [100, 200, 400, 800]
    assert frame["half_width"].is_monotonic_decreasing and (frame["half_width"] > frame["least"]).all()
    counts = np.array([0, 0, 1, 4])
    assert _filled(counts, 0.0).sum() == 0 and np.allclose(counts + _filled(counts, 2.0), [1, 1, 1, 4])
    assert np.allclose(counts + _filled(counts, 11.0), 4)


def test_the_page_has_a_chapter_and_the_tables_are_kept(result: Result, tmp_path: Path) -> None:
    page = write_report(result, tmp_path, "calibrated").read_text()
    assert "People and models as judges" in page and "they are the yardstick" in page
    assert {"leniency.csv", "favours.csv", "human_ratings.csv"} <= {p.name for p in (tmp_path / "tables").iterdir()}


def test_what_judges_favour_turns_orders_and_the_reader_is_told_so(result: Result) -> None:
    posterior = result.posterior
    assert posterior is not None
    best = int(raw_means(posterior.ratings)[0][:, 0].argmax())
    taste = 4.0 * (np.eye(4)[best] - 0.25)[:, None]  # beneath all others to the people, though models' scores are high
    moved = {"theta": posterior.draws["theta"] - taste, "favour": posterior.draws["favour"] + taste}
    low = replace(posterior, draws=posterior.draws | moved)
    rows = reversal_table(low, fair_averages(low))
    assert (rows["model"] == posterior.ratings.models[best]).sum() == 3
    assert rows["why"].str.contains("favoured more by judges that are models").all()
    assert shrinkage(posterior) is None  # severities count from the people: no ratio to their prior


def test_one_person_is_said_to_be_one(result: Result) -> None:
    assert result.posterior is not None
    alone = {n: t.assign(people=1) if n == "leniency" else t for n, t in result.tables.items()}
    words = " ".join(told(result.posterior, alone))
    assert "One person alone sets the scale" in words and "by one person of" in words
    assert "One person" not in " ".join(result.notes)


def test_fits_on_two_scales_in_a_dimension_are_not_compared(result: Result) -> None:
    p = result.posterior
    assert p is not None
    off = replace(p, draws={n: v for n, v in p.draws.items() if n != "favour"})
    for one, other in ((p, off), (off, p)):
        with pytest.raises(ConfigError, match="--no-people-scale"):
            require_same_model(one, other)
    require_same_model(p, p)
    renamed = replace(off, ratings=replace(off.ratings, dimensions=("elsewhere",)))
    require_same_model(p, renamed)  # no dimension in common, which others refuse


def test_without_people_nothing_is_known_of_what_all_judges_share(posterior: Posterior) -> None:
    found = tabulate(posterior)
    assert "is not identified by these ratings" in found.notes[0] and "leniency" not in found.tables
    assert not variant_of(posterior)["people_scale"]


def test_few_ratings_by_people_do_not_move_the_scale_and_the_reader_is_told(table: pd.DataFrame) -> None:
    few = two_dimensions(table, LEAST - 2)
    assert scaled(few, Options()).tolist() == [True, False]
    assert scaled(few, Options(people_scale=True)).all() and not scaled(few, Options(people_scale=False)).any()
    assert not scaled(few, Options(judge_model=True)).any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(people_scale=True, judge_model=True), "beside judge-model"),
        (Options(people_scale=True, halo=True), "beside halo"),
        (Options(people_scale=True, anchors={"judges": {}}), "with anchors"),
    ],
)
def test_a_scale_that_cannot_be_had_is_refused_by_name(table: pd.DataFrame, options: Options, told: str) -> None:
    with pytest.raises(IrtError, match=told):
        scaled(two_dimensions(table, 50), options)
    machines = encode(table[table["judge_family"] != "human"])
    with pytest.raises(IrtError, match="name the people with --human"):
        scaled(machines, replace(options, judge_model=False, halo=False, anchors=None))


def test_stan_is_given_a_taste_per_kind_of_judge_model_and_dimension(table: pd.DataFrame) -> None:
    r = two_dimensions(table, 60)
    data = build(r, Options(), guessed(r)).data
    M, D = len(r.models), len(r.dimensions)
    assert data["X"] == 2 * M * D and data["P"] == len(
        np.unique(np.stack([r.judge, r.response, r.dimension]), axis=1).T
    )
    person = np.isin(r.judges, r.people)
    order = np.lexsort((r.response, r.criterion, r.dimension, r.judge))
    expected = (person[r.judge] * D + r.dimension) * M + r.model + 1
    got = np.array(data["pair_model"])[np.array(data["pair"]) - 1]
    assert sorted(got.tolist()) == sorted(expected.tolist())
    assert np.array_equal(got, expected[order])


def test_comparisons_count_as_judgements_and_name_the_same_tastes() -> None:
    from dpeer.eval.irt.simulate import Spec, simulate

    spec = Spec(models=3, items=8, dimensions=1, judges=3, compared=1, rated=False)
    table = simulate(spec, 1)[0].assign(judge_family=lambda f: f["judge"].map({"rater2": "human"}).fillna("model"))
    r = encode(table)
    data, c = build(r, Options(), guessed(r)).data, r.comparisons
    assert scaled(r, Options()).all() and data["X"] == 6
    expected = {
        (int(j == 2) * 3 + r.response_model[a] + 1, int(j == 2) * 3 + r.response_model[b] + 1)
        for j, a, b in zip(c.judge, c.response, c.other, strict=True)
    }
    assert set(zip(data["judge_model_this"], data["judge_model_other"], strict=True)) == expected
    assert judgements(r).tolist() == [(c.judge == 2).sum()]  # one each, not one per model
    rows = table[(table["judge_family"] != "human") | (table.groupby("judge").cumcount() < LEAST - 1)]
    assert judgements(encode(rows)).tolist() == [LEAST - 1] and not scaled(encode(rows), Options()).any()
    judges = np.array(data["comparer"])[np.array(data["compared_by"]) - 1] - 1
    assert ((np.array(data["judge_model_this"]) > 3) == (judges == 2)).all()
