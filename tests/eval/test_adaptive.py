"""Adaptive judging: the choice of ratings, the looks, and rounds that are killed and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from dpeer.errors import CheckpointError, ClusterError, ConfigError
from dpeer.eval.adaptive.choose import Design, Worth, next_batch, opening, turns, variances
from dpeer.eval.adaptive.decide import chance, confirmed, judged, look, open_contrasts, worth_of
from dpeer.eval.adaptive.looks import boundary
from dpeer.eval.adaptive.quick_fit import Observed, QuickFit, quick_fit
from dpeer.eval.adaptive.record import Record
from dpeer.eval.adaptive.rounds import first_round
from dpeer.eval.adaptive.task import task
from dpeer.eval.config import Until
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.store.parts import read_table
from tests.eval.evaluations import no_ray, write_responses
from tests.eval.planted import ABILITY, planted, registered

ROOT = Path(__file__).parents[2]


def crossed(models: int, items: int, judges: int, dimensions: int = 1, samples: int = 1) -> Design:
    m, q, s, j, d = (a.ravel() for a in np.indices((models, items, samples, judges, dimensions)))
    return Design(m, q, s, j, d, np.ones(len(m), np.int64), (models, items, judges, dimensions), 0)


# Looks


def test_one_look_at_the_whole_design_is_the_usual_interval() -> None:
    assert boundary([1.0]) == pytest.approx(1.95996, abs=1e-4)
    assert boundary([0.4, 0.4]) == boundary([0.4]), "looking twice at the same ratings costs nothing"


@pytest.mark.parametrize("times", [(0.1, 0.3, 0.6, 1.0), (0.25, 0.5, 0.5004, 0.9, 1.0)])
def test_paths_without_drift_cross_the_boundaries_in_one_of_twenty(times: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    steps = np.diff(times, prepend=0.0)
    paths = np.cumsum(rng.standard_normal((200_000, len(times))) * np.sqrt(steps), axis=1)
    limits = np.array([boundary(times[: k + 1]) for k in range(len(times))]) * np.sqrt(times)
    crossed_ = np.abs(paths[:, :]) > limits
    assert crossed_.any(axis=1).mean() == pytest.approx(0.05, abs=0.002)


# The quick fit and what it foretells


@pytest.mark.parametrize("criteria", [1, 2])
def test_the_quick_fit_finds_a_known_truth(criteria: int) -> None:
    """Two seeds of the simulation that `model.stan` is tested with; the band is of 10 contrasts of unit variance."""
    z = []
    for seed in (1, 2):
        spec = Spec(models=6, items=40, dimensions=1, judges=3, criteria=criteria)
        table, truth = simulate(spec, seed)
        r = encode(table)
        fit = quick_fit(Observed(r.model, r.item, r.judge, r.criterion, r.category, (6, 40, 3, criteria)))
        assert fit.converged
        true = truth["theta"][1:, 0] - truth["theta"][0, 0]
        sd = np.sqrt(np.diag(fit.covariance) + fit.covariance[0, 0] - 2 * fit.covariance[0])[1:]
        z.extend((fit.ability[1:] - fit.ability[0] - true) / sd)
        assert np.corrcoef(fit.ability[1:] - fit.ability[0], true)[0, 1] > 0.9
    assert 0.4 < np.sqrt(np.mean(np.square(z))) < 1.7


def test_foretold_variances_are_those_of_the_linear_model() -> None:
    """Oracle: the posterior of abilities given all observations, by their joint normal distribution."""
    rng = np.random.default_rng(3)
    M, Q = 3, 5
    n = rng.integers(0, 4, (1, M, Q)).astype(float)
    known = Worth(s_effect=0.7, s_item=0.9, s_ability=1.2, information=0.8)
    m, q = np.repeat(np.indices((M, Q)).reshape(2, -1), n[0].ravel().astype(int), axis=1)
    ability, item, cell = np.eye(M)[m], np.eye(Q)[q], np.eye(M * Q)[m * Q + q]
    noise = 0.81 * item @ item.T + 0.49 * cell @ cell.T + np.eye(len(m)) / 0.8
    posterior = np.linalg.inv(ability.T @ np.linalg.inv(noise) @ ability + np.eye(M) / 1.44)
    contrasts = np.eye(M) - np.eye(M)[0]
    expected = np.diag(contrasts @ posterior @ contrasts.T)
    assert variances(crossed(M, Q, 1), n, [known])[0] == pytest.approx(expected)


def test_fewer_than_two_categories_leave_everything_open() -> None:
    design, few = crossed(3, 20, 2), np.arange(6)
    asked = np.ones(len(few), np.int64)
    alike = Observed(few % 3, few, few % 2, 0 * few, 4 * asked, (3, 20, 2, 1))
    none = Observed(*[few[:0]] * 5, (3, 20, 2, 1))
    for observed in (alike, none):
        fit = quick_fit(observed)
        assert not fit.converged and not fit.ability.any()
        seen = look([fit], design, opening(design, 20, 0), [], 0.3)
        assert open_contrasts(seen)[0].tolist() == [False, True, True]
        assert next_batch(design, opening(design, 20, 0), open_contrasts(seen), [worth_of(fit)], 20, 0).any()


@pytest.fixture(scope="module")
def equal() -> list[tuple[float, Design, Any, QuickFit]]:
    """Shares of a crossed design, whole items first, and the fits to two equal models' ratings of five."""
    rng = np.random.default_rng(7)
    design = crossed(2, 60, 3)
    cell = (0.8 * rng.standard_normal((2, 60)) - 0.8 * rng.standard_normal(60))[design.model, design.item]
    logits = np.cumsum(cell[:, None] - np.array([-1.5, -0.5, 0.5, 1.5]), axis=1)
    score = (np.c_[np.zeros(len(cell)), logits] + rng.gumbel(size=(len(cell), 5))).argmax(axis=1)
    found = []
    for share in (0.2, 0.5, 0.8):
        asked = opening(design, round(share * len(cell)) - 1, 0)
        rated = [a[asked] for a in (design.model, design.item, design.judge)]
        fit = quick_fit(Observed(*rated, 0 * rated[0], score[asked], (2, 60, 3, 1)))
        found.append((asked.mean(), design, asked, fit))
    return found


def test_time_is_the_share_of_a_crossed_design_where_all_models_are_equal(equal: Any) -> None:
    looks: list[Any] = []
    for share, design, asked, fit in equal:
        assert fit.converged
        looks.append(look([fit], design, asked, looks, 0.0))
        assert looks[-1].time[0, 1] == pytest.approx(share, abs=0.1)
    assert looks[0].limit[0, 1] > 2.6, "a fifth of the ratings spends little of the error"


@pytest.mark.parametrize("s_effect", [0.3, 0.8, 1.5])
def test_rounds_make_no_more_false_claims_than_one_look_whatever_the_spread_of_effects(s_effect: float) -> None:
    """Paths of a contrast that is 0, whose increments have the variances that the linear model gives the batches."""
    design, open_ = crossed(2, 100, 3), np.array([[False, True]])
    known, flat = Worth(s_effect), Worth(s_effect, s_ability=100.0)
    asked, looks, variance, new = opening(design, 30, 0), [], [], np.ones(1, bool)
    while new.any():
        looks.append(look([fitted(0.0, sd=1.0)], design, asked, looks, 0.0))
        variance.append(variances(design, design.counts(asked), [flat])[0, 1])
        new = next_batch(design, asked, open_, [known], 60, 0)
        asked = asked | new
    true = variance[-1] / np.array(variance)
    steps = np.random.default_rng(0).standard_normal((100_000, len(true))) * np.sqrt(np.diff(true, prepend=0.0))
    crossed_ = np.abs(np.cumsum(steps, axis=1)) > np.sqrt(true) * [seen.limit[0, 1] for seen in looks]
    assert 0.02 < crossed_.any(axis=1).mean() < 0.053 and len(looks) > 8


def test_the_spread_of_equal_models_keeps_its_prior(equal: Any) -> None:
    """Oracle: where the likelihood says that there is none, (log s)^2 / 2 0.8^2 + log s is least at s = exp(-0.64)."""
    for _, _, _, fit in equal:
        assert fit.s_ability > 0.95 * np.exp(-0.64)


# The choice


def test_a_batch_asks_for_what_is_open_and_new_and_shares_it_between_judges() -> None:
    design, seed = crossed(4, 60, 3, dimensions=2), 5
    asked = opening(design, 72, seed)
    opened = np.unique(design.item[asked])
    assert len(opened) == 8 and asked.sum() == 8 * 4 * 3 * 2, "whole items, eight at least"
    open_ = np.zeros((2, 4), bool)
    open_[0, 2] = True  # of six contrasts one is left
    chosen = next_batch(design, asked, open_, [Worth(), Worth()], 60, seed)
    assert not (chosen & asked).any() and chosen.sum() == pytest.approx(60, abs=2)
    assert set(design.model[chosen]) == {0, 2} and set(design.dimension[chosen]) == {0}
    assert not np.isin(design.item[chosen], opened).any(), "new responses before second judges"
    cells = Counter(zip(design.model[chosen], design.item[chosen], strict=True))
    assert set(cells.values()) == {1}
    assert np.ptp(np.bincount(design.judge[chosen], minlength=3)) <= 4
    pairs = {(design.item[u], design.judge[u]): set() for u in np.flatnonzero(chosen)}
    for u in np.flatnonzero(chosen):
        pairs[design.item[u], design.judge[u]].add(int(design.model[u]))
    assert all(models == {0, 2} for models in pairs.values()), "one judge for all models of a new item"
    again = next_batch(design, asked, open_, [Worth(), Worth()], 60, seed)
    assert (again == chosen).all()
    assert not next_batch(design, asked, np.zeros_like(open_), [Worth(), Worth()], 60, seed).any()


def test_a_batch_narrows_more_than_a_random_one() -> None:
    design = crossed(5, 40, 3)
    asked = opening(design, 60, 1)
    open_ = np.array([[False, True, True, False, False]])
    chosen = next_batch(design, asked, open_, [Worth()], 100, 1)

    def left(more: Any) -> float:
        return float(variances(design, design.counts(asked | more), [Worth()])[open_].sum())

    rng = np.random.default_rng(0)
    for _ in range(5):
        other = np.zeros_like(asked)
        other[rng.choice(np.flatnonzero(~asked), int(chosen.sum()), replace=False)] = True
        assert left(chosen) < 0.85 * left(other)


def test_new_samples_come_before_second_judges() -> None:
    design = crossed(2, 3, 2, samples=2)
    turn = turns(design, 0)
    for cell in range(6):
        mine = np.flatnonzero(design.cell == cell)[np.argsort(turn[design.cell == cell])]
        assert len(set(design.sample[mine[:2]])) == 2


# Decisions


def fitted(*contrasts: float, sd: float) -> QuickFit:
    M = 1 + len(contrasts)
    covariance = np.eye(M) * sd**2 / 2
    return QuickFit(np.array([0.0, *contrasts]), covariance, 0.8, 0.8, 1.0, 0.9, True)


def test_decisions_and_what_stays_decided() -> None:
    assert [judged(mean, 0.1, 2.0, 0.3) for mean in (0.25, -0.25, 0.05, 0.15)] == [
        "higher",
        "lower",
        "equivalent",
        "open",
    ]
    design = crossed(4, 50, 3)
    asked = opening(design, 150, 0)
    first = look([fitted(2.0, 0.2, 0.0, sd=0.3)], design, asked, [], 0.3)
    assert first.verdict[0, 1:].tolist() == ["higher", "open", "open"] and not open_contrasts(first)[0, 0]
    second = look([fitted(0.1, 0.2, 0.0, sd=0.3)], design, asked, [first], 0.3)
    assert second.verdict[0, 1] == "higher" and second.limit[0, 1] == first.limit[0, 1]
    other = confirmed(second, np.array([[0.0, 0.1, 0.2, 0.0]]), np.full((1, 4), 0.3), design, asked, [first], 0.3)
    assert other.verdict[0, 1] == "open", "the shipped model has the last word"
    doubtful = replace(fitted(2.0, 0.2, 0.0, sd=0.3), converged=False)
    unclear = look([doubtful], design, asked, [], 0.3)
    assert set(unclear.verdict[0]) == {"open"} and not unclear.time[0, 1:].any(), "no look, and nothing spent"
    late = look([doubtful], design, np.ones_like(asked), [first], 0.3)
    assert late.time[0, 1:].tolist() == first.time[0, 1:].tolist()
    final = (np.array([[0.0, 2.0, 0.7, 0.0]]), np.full((1, 4), 0.3), design, np.ones_like(asked))
    whole = confirmed(unclear, *final, [], 0.3)
    assert whole.verdict[0, 1:].tolist() == ["higher", "higher", "open"], "the last fit is a look of its own"
    assert whole.limit[0, 2] == pytest.approx(1.96, abs=0.001)


def test_the_chance_of_a_decision_is_that_of_simulated_ends() -> None:
    rng = np.random.default_rng(1)
    mean, sd, times, contrast = 0.15, 0.12, [0.3, 0.7], 0.3
    ends = mean + sd * np.sqrt(0.3) * rng.standard_normal(100_000)
    half = boundary([*times, 1.0]) * sd * np.sqrt(0.7)
    decided = (np.abs(ends) > half) | (np.abs(ends) + half < contrast)
    assert chance(mean, sd, times, contrast, 0.7) == pytest.approx(decided.mean(), abs=0.005)
    assert chance(0.0, 2.0, [0.9], contrast, 0.9) < 0.1, "ratings that run out before anything is known"


# Rounds


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    return write_responses(tmp_path / "responses.jsonl", 70, tuple(ABILITY))


def test_a_base_without_responses_is_refused(tmp_path: Path, responses: Path) -> None:
    registered()
    cfg = planted(tmp_path, responses, base="bse")
    with pytest.raises(ConfigError, match=r"judging\.until: base bse has no response.*base, better, same"):
        first_round(cfg, plan(cfg), Until())


def test_a_spent_budget_names_what_is_left_and_a_damaged_round_is_refused(tmp_path: Path, responses: Path) -> None:
    backend = registered()
    prices = tmp_path / "prices.yaml"
    prices.write_text(yaml.safe_dump({"models": {"planted": {"input": 1e4, "output": 0.0}}}))
    cfg = planted(tmp_path, responses, prices=str(prices), budget=20.0)
    quiet = Console(file=StringIO())
    with pytest.raises(
        ClusterError, match=r"raise `budget`.*Cannot be decided at this budget: better - base on A, same"
    ):
        judge(cfg, no_ray, console=quiet)
    made = set(read_table(cfg.folder / "ratings")["rating_id"])
    (first,) = (cfg.folder / "rounds").rglob("round-001.json")
    assert len(made) > 0 and made < set(json.loads(first.read_text())["rating_ids"])
    assert set(pd.read_parquet(cfg.folder / "ratings.parquet")["rating_id"]) == made, "a table of what was answered"
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["ratings"] == len(made) and facts["currency"] == "USD" and facts["contrasts"] == []
    assert facts["provisional"] == "the budget ended"
    before = len(backend.asked)
    with pytest.raises(ClusterError, match="Cannot be decided"):
        judge(cfg, no_ray, console=quiet)
    assert set(read_table(cfg.folder / "ratings")["rating_id"]) >= made
    assert not set(backend.asked[before:]) & made, "nothing is paid for twice"
    first.write_bytes(first.read_bytes().replace(b'"looks"', b'"loots"'))
    with pytest.raises(
        CheckpointError, match=r"round-001\.json does not match its checksum.*the rounds then begin anew"
    ):
        judge(cfg, no_ray, console=quiet)


def test_an_end_holds_for_the_ratings_that_led_to_it(tmp_path: Path, responses: Path) -> None:
    """A round, an end, a failed rating asked for again, and another contrast; each read back as after a kill."""
    registered()
    cfg = planted(tmp_path, responses)
    full, until = plan(cfg), Until(contrast=0.3)
    what = task(cfg, full, until)

    def read(until: Until = until) -> Record:
        return Record(tmp_path / "rounds", what, full, until)

    ratings = full.rows.head(8).assign(status=["ok"] * 7 + ["engine_error"], score=3)
    late = ratings.assign(status="ok")
    design, asked = crossed(3, 50, 2), opening(crossed(3, 50, 2), 60, 0)
    first = look([fitted(2.0, 0.0, sd=0.05)], design, asked, [], 0.3)
    assert first.verdict[0, 1:].tolist() == ["higher", "equivalent"]
    record = read()
    record.begin(ratings["rating_id"])
    record.add(first)
    assert not read().ended(ratings), "killed during the last fit"
    record.finish(ratings)
    assert read().ended(ratings) and not read().ended(late)
    assert not read(Until(contrast=0.2)).ended(ratings)
    assert read(Until(contrast=0.2)).looks[0].verdict[0, 1:].tolist() == ["higher", "open"]
    assert read(Until(contrast=0.2)).looks[0].time.tolist() == first.time.tolist(), "the error is spent once"
    again = read()
    again.add(first)
    again.begin(full.rows["rating_id"].iloc[8:20])
    assert not read().ended(ratings) and len(read().looks) == 2, "the look at the end was one, too"
    assert read().rounds == [1, 1]
    other = Record(tmp_path / "rounds", what, replace(full, rows=full.rows.head(20)), until)
    assert not other.looks and other.others == [record.folder]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_with_the_same_ratings_and_saves_what_it_says(tmp_path: Path, responses: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    backend, said = registered(), StringIO()
    cfg = planted(whole, responses)
    table = pd.read_parquet(judge(cfg, no_ray, console=Console(file=said, width=300)))
    full = plan(cfg)
    assert cfg.judging.until
    first = set(first_round(cfg, full, cfg.judging.until).rows["rating_id"])
    assert len(backend.asked) == len(set(backend.asked)) == len(table) < 0.8 * len(full.rows)
    assert first < set(table["rating_id"]) < set(full.rows["rating_id"])
    per_model = table["model"].value_counts()
    assert per_model["better"] <= per_model["same"] <= per_model["base"]
    facts = json.loads((cfg.folder / "ratings" / "manifest.json").read_text())["rounds"]
    assert facts["ratings"] == len(table) and facts["of"] == len(full.rows) and len(facts["rounds"]) > 1
    verdicts = {c["model"]: c["verdict"] for c in facts["contrasts"]}
    assert verdicts["better"] == "higher" and verdicts["same"] != "higher"
    share = f"asked for {len(table)} of {len(full.rows)} planned ratings ({100 * len(table) / len(full.rows):.0f} %)"
    assert share in said.getvalue()

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.eval.planted", str(cut), str(responses), str(len(first) + 30)]
    died = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    made = read_table(cut / "test" / "ratings")
    assert len(first) < len(made) < len(table) and not (cut / "test" / "rounds" / "end.json").exists()
    backend = registered()
    again = pd.read_parquet(judge(planted(cut, responses), no_ray, console=Console(file=StringIO())))
    assert not set(backend.asked) & set(made["rating_id"]) and len(backend.asked) == len(table) - len(made)
    keys = ["rating_id", "score"]
    assert again[keys].sort_values("rating_id").equals(table[keys].sort_values("rating_id"))
    rounds = [p for p in sorted((whole / "test" / "rounds").rglob("*.json")) if p.name != "manifest.json"]  # of a fit
    names = [p.relative_to(whole) for p in rounds]
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in names) and len(names) > 2
    asked = len(backend.asked)
    judge(planted(cut, responses), no_ray, console=Console(file=StringIO()))
    assert len(backend.asked) == asked
