"""Releases on one scale: what linking recovers, what it refuses, and what stops a pipeline."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dpeer.errors import ConfigError
from dpeer.eval.irt.conditions import decide, parse
from dpeer.eval.irt.fit import save
from dpeer.eval.irt.inference_data import write_netcdf
from dpeer.eval.irt.releases import Comparison, unsound
from dpeer.eval.irt.releases import compare as compare_fits
from dpeer.eval.irt.types import Options, Posterior
from dpeer.eval.report.releases import finding, write_page
from dpeer.launcher.cli import app

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]

CHANGE = np.array([-0.9, 0.5])
"""Of model3, between the releases, in T and A."""
compare = partial(compare_fits, reasons=())  # the diagnostics take long, and have tests of their own
RNG = np.random.default_rng(4)
ABILITY = RNG.normal(0, 0.8, (4, 2))
DIFFICULTY = RNG.normal(0, 0.6, (24, 2))
SEVERITY = RNG.normal(0, 0.5, (5, 2))
DISCRIMINATION = np.array([-0.3, 0.1, 0.2, 0.0, 0.4])


def release(
    ability: np.ndarray, items: slice, judges: slice, moved: np.ndarray, seed: int = 0, **more: object
) -> Posterior:
    """A fit as it would come out if it knew the truth: every block centred over its own elements."""
    difficulty, severity = DIFFICULTY[items], (SEVERITY + moved[:, None])[judges]
    alpha = DISCRIMINATION[judges]
    unit = np.exp(alpha.mean())  # logits are as long as the geometric mean of the discriminations is large
    zero = ability.mean(0) - difficulty.mean(0) - severity.mean(0)
    made = made_up(
        items=len(difficulty),
        judges=len(severity),
        draws=300,
        noise=0.08,
        seed=seed,
        theta=unit * (ability - ability.mean(0)),
        mu=unit * zero,
        beta=unit * (difficulty - difficulty.mean(0)),
        severity=unit * (severity - severity.mean(0)),
        log_alpha=alpha - alpha.mean(),
        s_alpha=np.array(0.25),
        **more,
    )
    ratings = replace(
        made.ratings,
        items=tuple(f"item{i}" for i in range(24))[items],
        judges=tuple(f"judge{i}" for i in range(5))[judges],
        status_by_judge={},
    )
    return replace(made, ratings=ratings)


STILL, STRICT = np.zeros(5), np.array([0, 0, 1.2, 0, 0])
LATER = ABILITY + np.array([[0, 0], [0, 0], [0, 0], CHANGE])


@pytest.fixture(scope="module")
def before() -> Posterior:
    return release(ABILITY, slice(0, 16), slice(0, 4), STILL)


@pytest.fixture(scope="module")
def now() -> Posterior:
    """Other items, another judge more, and judge2 has become strict."""
    return release(LATER, slice(8, 24), slice(0, 5), STRICT, seed=1)


def own(made: Comparison) -> tuple[np.ndarray, np.ndarray]:
    at = made.pairs.index(("model3", "model3"))
    return made.difference[:, at].mean(axis=0), made.difference[:, at].std(axis=0)


@pytest.mark.parametrize("same", [(), ("model0",), ("model0", "model1", "model2")])
def test_the_change_is_found_on_the_earlier_scale_whatever_links(
    before: Posterior, now: Posterior, same: tuple[str, ...]
) -> None:
    mean, sd = own(compare(before, now, same=same))
    unit = np.exp(DISCRIMINATION[:4].mean())
    assert np.abs(mean - unit * CHANGE).max() < 2.5 * sd.max() and sd.max() < 0.3
    was, is_ = ((p.flat("theta") + p.flat("mu")[:, None]).mean(axis=0)[3] for p in (before, now))
    assert np.abs(is_ - was - unit * CHANGE).max() > 0.3  # the strict judge and the harder items are in it


def test_a_judge_that_moved_is_named_and_left_out(before: Posterior, now: Posterior) -> None:
    made = compare(before, now)
    drift = made.tables["drift"]
    assert set(drift.loc[drift["drifted"], "name"]) == {"judge2"}
    assert drift.loc[drift["drifted"], "difference"].to_numpy() == pytest.approx(
        1.2 * np.exp(DISCRIMINATION[:4].mean()), abs=0.2
    )
    assert "judge2 (T, A)" in " ".join(made.notes)
    kept = made.tables["links"].query("by == 'judges'")
    assert kept["elements"].tolist() == [4, 4] and kept["dropped"].tolist() == [1, 1] and kept["used"].all()


def test_judges_who_all_moved_are_seen_through_a_model_that_stayed(before: Posterior) -> None:
    strict = release(LATER, slice(0, 16), slice(0, 4), np.full(5, 1.0), seed=2)
    blind, _ = own(compare(before, strict))
    seen, sd = own(made := compare(before, strict, same=("model0", "model1")))
    unit = np.exp(DISCRIMINATION[:4].mean())
    assert np.abs(seen - unit * CHANGE).max() < 2.5 * sd.max()
    assert np.abs(blind - unit * (CHANGE - 1.0)).max() < 0.3  # all models seem worse by what the judges became stricter
    assert "judges or items have moved together" in " ".join(made.notes)


def test_people_bridge_what_all_other_judges_took_on_alike(before: Posterior) -> None:
    strict = release(LATER, slice(0, 16), slice(0, 4), np.array([1.0, 1.0, 1.0, 0, 0]), seed=2)
    unit = np.exp(DISCRIMINATION[:4].mean())
    misled, _ = own(compare(before, strict))  # the majority has moved, and judge3 passes for the odd one out
    assert np.abs(misled - unit * CHANGE).max() > 0.5

    def with_people(fit: Posterior) -> Posterior:
        return replace(fit, ratings=replace(fit.ratings, people=("judge3",)))

    made = compare(with_people(before), with_people(strict))
    mean, sd = own(made)
    assert np.abs(mean - unit * CHANGE).max() < 2.5 * sd.max() and sd.max() < 0.4
    assert set(made.tables["drift"].query("drifted")["name"]) == {"judge0", "judge1", "judge2"}


def test_the_linking_error_widens_what_shared_elements_say(before: Posterior) -> None:
    still = release(LATER, slice(0, 16), slice(0, 4), STILL, seed=3)
    uneven = release(LATER, slice(0, 16), slice(0, 4), np.array([0.25, -0.25, 0.2, -0.2, 0]), seed=3)
    firm, loose = compare(before, still), compare(before, uneven)
    spread = [made.tables["links"].query("by == 'judges'")["spread"].iloc[0] for made in (firm, loose)]
    added = own(loose)[1] ** 2 - own(firm)[1] ** 2
    assert spread[0] < 0.1 and 0.15 < spread[1] < 0.35
    assert added == pytest.approx(spread[1] ** 2 / 4, rel=0.5)  # the variance of a mean of four


def test_fits_that_share_nothing_are_refused_with_the_repair(before: Posterior) -> None:
    apart = release(LATER, slice(16, 24), slice(0, 4), STILL, seed=5)
    with pytest.raises(ConfigError, match=r"no item in both.*--same"):
        compare(before, apart)
    assert compare(before, apart, same=("model1",)).dimensions == ("T", "A")
    two = np.array([0, 1.5, 0, 0, 0])
    torn = [release(ABILITY, slice(0, 16), slice(0, 2), moved, seed=6) for moved in (STILL, two)]
    with pytest.raises(ConfigError, match="the 2 shared judges contradict each other"):
        compare(*torn)


def test_fits_of_other_models_or_scales_are_refused(before: Posterior, now: Posterior) -> None:
    with pytest.raises(ConfigError, match=r"different models \(model gmfrm and rasch\)"):
        compare(before, replace(now, options=Options(model="rasch")))
    with pytest.raises(ConfigError, match=r"different models \(thresholds judge and item\)"):
        compare(before, replace(now, options=Options(thresholds="item")))
    listed = compare(before, replace(now, options=Options(seed=3, warmup=500))).tables["settings"].set_index("what")
    assert listed.loc[["option seed", "option warmup"], ["before", "now"]].to_numpy().tolist() == [
        ["1", "3"],
        ["1000", "500"],
    ]
    with pytest.raises(ConfigError, match="scales 1 to 5 and 0 to 4"):
        compare(before, replace(now, ratings=replace(now.ratings, scale=(0, 1, 2, 3, 4))))
    with pytest.raises(ConfigError, match="no such model"):
        compare(before, now, same=("nobody",))
    with pytest.raises(ConfigError, match="later fit has no model new"):
        compare(before, now, pairs=[("model3", "new")])


def test_equal_weights_link_and_other_weights_do_not(before: Posterior, now: Posterior) -> None:
    def hashed(fit: Posterior, *hashes: str) -> Posterior:
        sources = {"model": dict(zip(fit.ratings.models, hashes, strict=True))}
        return replace(fit, ratings=replace(fit.ratings, sources=sources))

    old, new = hashed(before, "a", "b", "c", "d"), hashed(now, "a", "b", "c", "e")
    made = compare(old, new)
    assert made.pairs == (("model3", "model3"),)
    assert set(made.tables["changes"].query("role == 'link'")["model"]) == {"model0", "model1", "model2"}
    assert "weights of model model3" in set(made.tables["settings"]["what"])
    with pytest.raises(ConfigError, match="another hash"):
        compare(old, new, same=("model3",))


def test_conditions_are_strict_and_mean_what_they_say(before: Posterior, now: Posterior) -> None:
    made = compare(before, now, same=("model0", "model1", "model2"))

    def met(text: str, probability: float = 0.95) -> bool:
        return decide(parse(text, made.dimensions), made, probability).met

    assert met("T down") and met("any  dimension down") and met("judges drifted")
    assert not met("A down") and not met("T down by 3") and not met("gate")
    worst = ABILITY[3] - ABILITY[:4].mean(0)
    assert met("worst dimension down") == bool((worst + CHANGE).min() < worst.min() - 0.3)
    for wrong in ("", "down", "E down", "worst dimension up", "T down by much", "T down by -1", "worst dimension"):
        with pytest.raises(ConfigError, match="--fail-if"):
            parse(wrong, made.dimensions)
    approximate = replace(now, options=replace(now.options, approx=True))
    red = replace(made, reasons=tuple(unsound(approximate, "v2")))
    assert red.reasons[0].startswith("v2: the fit is approximate")
    assert all(decide(parse(text, made.dimensions), red, 0.95).met for text in ("A down", "gate"))


def test_what_nothing_links_is_undecided_and_counts_as_met(before: Posterior, now: Posterior) -> None:
    raised = np.maximum(now.ratings.category, now.ratings.dimension)  # in A the lowest score is in use no more
    made = compare(before, replace(now, ratings=replace(now.ratings, category=raised)))
    assert made.dimensions == ("T",) and made.unlinked == ("A",)
    for text in ("worst dimension down by 9", "any dimension down by 9", "A down by 9"):
        verdict = decide(parse(text, ("T", "A")), made, 0.95)
        assert verdict.met and "undecided" in verdict.why and verdict.why.endswith("in A"), verdict
    assert not decide(parse("T down by 9", ("T", "A")), made, 0.95).met


@pytest.mark.parametrize("shared", [0, 1])
def test_drift_of_judges_is_undecided_where_none_can_be_held_against_another(before: Posterior, shared: int) -> None:
    later = release(LATER, slice(0, 16), slice(0, 4), STILL, seed=3)
    names = tuple(f"other{i}" if i >= shared else f"judge{i}" for i in range(4))
    made = compare(before, replace(later, ratings=replace(later.ratings, judges=names)), same=("model0",))
    verdict = decide(parse("judges drifted", made.dimensions), made, 0.95)
    assert verdict.met and "fewer than two judges" in verdict.why
    whole = compare(before, later, same=("model0",))
    assert not decide(parse("judges drifted", whole.dimensions), whole, 0.95).met


def test_a_model_that_alone_sets_the_zero_has_no_probability_of_a_fall(before: Posterior, now: Posterior) -> None:
    for same, known in ((("model0",), False), (("model0", "model1"), True)):
        rows = compare(before, now, same=same).tables["changes"].query("role == 'link'")
        assert rows["p_down"].notna().eq(known).all() and np.isfinite(rows["difference"]).all()


def test_many_looks_take_more_than_one(before: Posterior) -> None:
    """No change at all: of 40 pairs of fits hardly any fails, although 8 differences are looked at in each."""
    failed = 0
    for seed in range(40):
        later = release(ABILITY, slice(0, 16), slice(0, 4), STILL, seed=100 + seed)
        rng = np.random.default_rng(seed)
        later = replace(later, draws=later.draws | {"theta": later.draws["theta"] + 0.08 * rng.normal(size=(4, 2))})
        made = compare(before, later)
        failed += decide(parse("any dimension down", made.dimensions), made, 0.95).met
    assert failed <= 6


def test_the_command_writes_page_and_tables_and_its_exit_code_is_the_verdict(
    before: Posterior, now: Posterior, tmp_path: Path
) -> None:
    save(before, tmp_path / "v1")
    save(now, tmp_path / "v2")
    links = [x for name in ("model0", "model1", "model2") for x in ("--same", name)]
    given = ["compare", *map(str, (tmp_path / "v1", tmp_path / "v2")), *links, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*given, "--fail-if", "T down"])
    assert result.exit_code == 3 and "T down: model3, T: P = 1.000" in result.output, result.output
    assert CliRunner().invoke(app, [*given, "--fail-if", "A down"]).exit_code == 0
    written = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert written == {
        f"{t}.{k}" for t in ("changes", "drift", "links", "settings") for k in ("csv", "json", "md", "tex")
    }
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "v2: down in T; up in A" in page and "judge2" in page and "http" not in page.replace("http://www.w3.org", "")
    wrong = CliRunner().invoke(app, [*given, "--fail-if", "T worse"])
    assert wrong.exit_code == 1 and "no such condition" in " ".join(wrong.output.split())


def test_names_of_users_stay_text_and_a_red_fit_makes_no_claim(
    before: Posterior, now: Posterior, tmp_path: Path
) -> None:
    hostile = "<b>model3</b>&"
    later = replace(now, ratings=replace(now.ratings, models=(*now.ratings.models[:3], hostile)))
    made = compare(before, later, same=("model0", "model1", "model2"))
    assert made.pairs == (("model3", hostile),)
    page = write_page([made], "v1", tmp_path).read_text()
    assert "<b>model3" not in page and "&lt;b&gt;model3" in page
    assert finding([replace(made, reasons=("x",))]).startswith("No claim")
    assert "\\textless{}b\\textgreater{}" in (tmp_path / "tables" / "changes.tex").read_text()


def test_a_fit_is_exported_for_papers_and_for_arviz(before: Posterior, tmp_path: Path) -> None:
    save(before, tmp_path / "fit")
    given = ["irt", "export", str(tmp_path / "fit"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*given, "--format", "docx"]).exit_code == 1
    result = CliRunner().invoke(app, [*given, "--format", "tex", "--format", "md"])
    assert result.exit_code == 0, result.output
    rows = (tmp_path / "out" / "severity.md").read_text().splitlines()
    assert rows[0] == "| judge | dimension | severity |" and len(rows) == 2 + 4 * 2
    assert re.fullmatch(r"\| judge0 \| T \| -?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\] \|", rows[2])
    lines = (tmp_path / "out" / "severity.tex").read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{llr}" and lines[4].startswith("judge0 & T & ") and lines[4].endswith(r"\\")


def test_draws_come_back_from_netcdf(before: Posterior, tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf", reason="needs the extra arviz")
    import xarray

    with xarray.open_datatree(write_netcdf(before, tmp_path / "draws.nc"), engine="h5netcdf") as found:
        theta = found["posterior"]["theta"]
        assert theta.dims == ("chain", "draw", "model", "dimension")
        assert np.array_equal(theta.values, before.draws["theta"])
        assert list(theta.coords["model"].values) == list(before.ratings.models)
