"""The recovery study: its figures for a posterior of known calibration, its resumption, and a small real study."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dpeer.eval.irt.design import TooFewJudges
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.recover import RecoveryReport, elements, recover, recovery_table
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options, Posterior

SMALL = Spec(models=3, items=15, dimensions=1, judges=3, categories=3)
SHORT = Options(chains=2, warmup=150, draws=150)


def made_up_study(replications: int, claimed: float, gain: float = 1.0) -> RecoveryReport:
    """Posteriors of sd `claimed` around estimates that lie 0.3 (sd) around `gain` times the truth."""
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(replications):
        table, truth = simulate(Spec(models=10, items=4, dimensions=2), seed)
        centre = {"theta": gain * truth["theta"], "severity": truth["severity"]}
        centre = {name: value + 0.3 * rng.standard_normal(value.shape) for name, value in centre.items()}
        draws = {name: value + claimed * rng.standard_normal((2, 200, *value.shape)) for name, value in centre.items()}
        posterior = Posterior(ratings=encode(table), options=Options(), draws=draws, sampler={}, facts={})
        frames.append(pd.DataFrame(elements(posterior, truth)).assign(seed=seed))
    runs = pd.DataFrame({"seed": range(replications), "green": True, "seconds": 1.0})
    return RecoveryReport(spec=Spec(), options=Options(), elements=pd.concat(frames), runs=runs)


@pytest.mark.parametrize(("claimed", "coverage", "coverage50"), [(0.3, 0.95, 0.5), (0.15, 0.673, 0.264)])
def test_coverage_of_known_posteriors(claimed: float, coverage: float, coverage50: float) -> None:
    found = made_up_study(60, claimed).summary().set_index("parameter").loc["theta"]
    assert found["n"] == 60 * 20
    assert found["coverage"] == pytest.approx(coverage, abs=0.03)
    assert found["coverage50"] == pytest.approx(coverage50, abs=0.05)
    assert found["rmse"] == pytest.approx(0.3, rel=0.1)
    assert found["width"] == pytest.approx(2 * 1.96 * claimed, rel=0.05)
    assert found["slope"] == pytest.approx(1, abs=0.03)
    assert 0 < found["coverage_se"] < 0.02
    assert (found["rank_gap"] < 0.05) == (claimed == 0.3)


def test_slope_shows_a_scale_that_is_too_small_and_contrasts_are_to_the_first_model() -> None:
    found = made_up_study(30, 0.3, gain=0.7).summary().set_index("parameter")
    assert found.loc["theta", "slope"] == pytest.approx(0.7, abs=0.03)
    assert found.loc["contrast", "n"] == 30 * 18
    assert found.loc["contrast", "rmse"] > 1.3 * found.loc["severity", "rmse"]


def test_table_for_the_terminal() -> None:
    output = io.StringIO()
    Console(width=140, file=output).print(recovery_table(made_up_study(3, 0.3)))
    text = output.getvalue()
    assert "3 replications, 3 with a green gate" in text and "ability contrast" in text


def test_a_stopped_study_goes_on_and_a_longer_one_reuses_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = recover(SMALL, SHORT, 2, 5, tmp_path, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)] and list(first.runs["seed"]) == [5, 6]
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(text[: text.index("\n") + 40])  # killed while the second line was written
    again = recover(SMALL, SHORT, 2, 5, tmp_path)
    assert file.read_text().startswith(text[: text.index("\n") + 1])
    pd.testing.assert_frame_equal(first.elements, again.elements)
    stamp = file.stat().st_mtime_ns
    pd.testing.assert_frame_equal(
        recover(SMALL, SHORT, 1, 6, tmp_path).elements, again.elements.query("seed == 6").reset_index(drop=True)
    )
    assert file.stat().st_mtime_ns == stamp, "nothing was fitted again"


def test_a_spec_that_is_not_identified_is_refused_before_it_is_fitted(tmp_path: Path) -> None:
    with pytest.raises(TooFewJudges):
        recover(Spec(judges=1), SHORT, 1, 0, tmp_path)


@pytest.mark.slow
def test_abilities_are_covered_and_leaving_out_the_response_effect_is_caught(tmp_path: Path) -> None:
    spec = Spec(models=6, items=40, dimensions=1, judges=3, s_u=1.2)
    options = Options(chains=2, warmup=300, draws=300)
    with_u = recover(spec, options, 4, 1, tmp_path).summary().set_index("parameter")
    without = Options(chains=2, warmup=300, draws=300, response_effect=False)
    plain = recover(spec, without, 4, 1, tmp_path).summary().set_index("parameter")
    assert with_u.loc["theta", "coverage"] >= 0.85 and with_u.loc["severity", "coverage"] >= 0.7
    assert plain.loc["theta", "coverage"] < 0.6
    assert plain.loc["theta", "slope"] < with_u.loc["theta", "slope"] - 0.2
