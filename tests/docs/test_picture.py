"""The picture of README says what ledgers and certificates hold, and README repeats it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.readme.worst_dimension import ARMS, curve, finding, paint, worst_loss
from dpeer.errors import DpeerError
from dpeer.report.plot import render
from dpeer.report.run import read_run
from tests.docs.pages import ROOT


def write_arm(folder: Path, losses: dict[str, list[float]], heldout: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    steps = range(len(next(iter(losses.values()))))
    rows = [{"step": s + 1, "dimensions": {d: {"loss": values[s]} for d, values in losses.items()}} for s in steps]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bounds = [
        {"name": d, "estimate": x, "lower": x - 0.1, "upper": x + 0.1, "tolerance": 0.25, "verdict": "violated"}
        for d, x in heldout.items()
    ]
    (folder / "certificate.json").write_text(json.dumps({"constraints": bounds}))
    return folder


def test_the_worst_dimension_may_change_from_step_to_step(tmp_path: Path) -> None:
    run = read_run(write_arm(tmp_path / "run", {"A": [0.7, 0.2, 0.6], "T": [0.6, 0.9, 0.1]}, {"A": 1.0}))
    assert worst_loss(run, span=1).tolist() == [0.7, 0.9, 0.6]
    smoothed = worst_loss(run, span=3)  # each step counts half: A 0.7, 0.45, 0.525; T 0.6, 0.75, 0.425
    assert np.allclose(smoothed, [0.7, 0.75, 0.525])


def test_title_and_bytes_follow_from_the_runs(tmp_path: Path) -> None:
    write_arm(tmp_path / "pooled", {"A": [0.7, 0.1], "T": [0.7, 1.5]}, {"A": 0.1, "T": 1.25})
    write_arm(tmp_path / "lagrangian", {"A": [0.7, 0.3], "T": [0.7, 0.3]}, {"A": 0.5, "T": 0.375})
    curves = [curve(tmp_path, *arm) for arm in ARMS]
    assert finding(curves).replace("\n", " ") == (
        "Held-out loss of the worst dimension (T and A): 1.25 with pooled DPO, 0.50 with Lagrangian DPO"
    )
    first, second = (render(lambda figure: paint(figure, curves), 2.9, "svg") for _ in range(2))
    assert first == second and b"1.25 with pooled DPO" in first[0]


def test_a_run_without_a_certificate_is_refused(tmp_path: Path) -> None:
    (write_arm(tmp_path / "pooled", {"A": [0.7]}, {"A": 1.0}) / "certificate.json").unlink()
    with pytest.raises(DpeerError, match=r"pooled has no certificate.*dpeer demo"):
        curve(tmp_path, *ARMS[0])


def test_readme_repeats_the_numbers_of_its_picture() -> None:
    picture = (ROOT / "docs" / "img" / "worst_dimension.svg").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"([\d.]+) with pooled DPO, ([\d.]+) with Lagrangian DPO", picture)
    assert shown and f"falls from {shown[1]} to {shown[2]}" in readme
    assert len(picture) < 40_000 and "fill: #ffffff" in picture  # on white, so legible on dark pages
