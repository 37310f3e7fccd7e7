"""The last fit of adaptive judging goes on from the one before it, and is the same after a kill."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dpeer.eval.adaptive.confirm import _earlier, _read, posterior
from dpeer.eval.adaptive.task import task
from dpeer.eval.config import Until
from dpeer.eval.irt.fit_folder import load
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from tests.eval.evaluations import no_ray, write_responses
from tests.eval.planted import ABILITY, planted, registered


@pytest.mark.slow  # three fits with the shipped defaults
def test_a_last_fit_goes_on_from_the_one_before_and_is_the_same_after_a_kill(tmp_path: Path) -> None:
    registered()
    cfg = planted(
        tmp_path,
        write_responses(tmp_path / "responses.jsonl", 40, tuple(ABILITY)),
        judging={"rubric": "toyworld", "dimensions": ["A"]},
    )
    ratings = pd.read_parquet(judge(cfg, no_ray, console=Console(file=StringIO())))
    what, scale = task(cfg, plan(cfg), Until(contrast=0.5)), (1, 2, 3, 4, 5)
    items = sorted(set(ratings["item"]))
    few, more = (ratings[ratings["item"].isin(items[:n])] for n in (32, 40))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    posterior(what, few, scale, whole, 3)
    shutil.copytree(whole, cut)
    last = posterior(what, more, scale, whole, 5)
    assert last.sampled
    facts = {n: load(whole / f"fit-{n:03d}").facts for n in (3, 5)}
    assert facts[5]["started_from_earlier"] and not facts[3]["started_from_earlier"]
    assert last.mean[0, what.models.index("better")] > 1 and last.mean[0, what.design.base] == 0
    (cut / "fit-005").mkdir()
    (cut / "fit-005" / "draws.npz").write_bytes(b"half of it")  # killed while the fit was kept
    again = posterior(what, more, scale, cut, 5)
    assert np.array_equal(again.mean, last.mean) and np.array_equal(again.sd, last.sd)
    assert [path.name for path in _earlier(cut, 6)] == ["fit-003", "fit-005"], (
        "this round may have to be done once more"
    )
    assert [path.name for path in _earlier(cut, 5)] == ["fit-003"]
    (cut / "fit-003" / "draws.npz").write_bytes(b"damaged")
    assert _read(cut / "fit-003") is None
