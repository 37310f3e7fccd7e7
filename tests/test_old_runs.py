"""Run folders of earlier versions: pages are written, and training there does not go on under another objective."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.objective.dual import DualState
from dpeer.report.card import model_card
from dpeer.report.page import write_report
from dpeer.training.prepare import METHOD
from dpeer.training.run_dir import RunDir

RUNS = sorted((Path(__file__).parent / "old_runs").glob("*/*"))


@pytest.fixture(params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.param, tmp_path / request.param.name)
    return tmp_path / request.param.name


def test_page_and_card_are_written(run: Path) -> None:
    page = write_report(run).read_text()
    assert "An earlier version of dpeer made this certificate" in page and "counted up to" not in page
    for constraint in json.loads((run / "certificate.json").read_text())["constraints"]:
        assert constraint["name"] in page and constraint["verdict"] in page
    assert run.name in model_card(run)


def test_its_dual_state_is_refused_with_what_to_do(run: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-0000006" / "state.json").read_text())
    with pytest.raises(CheckpointError, match="resume with the dpeer version that wrote the checkpoint"):
        DualState.from_dict(state["dual"])


def test_it_may_not_go_on_under_another_objective(run: Path) -> None:
    """Version 0.1 had the anchor outside the normaliser: half a run of each would be neither."""
    manifest = json.loads((run / "manifest.json").read_text())
    changes = {"dual": {"evidence": "batch"}}
    old = manifest["config"] | {"objective": manifest["config"]["objective"] | changes}
    config = Config.model_validate(old)
    facts = {k: manifest[k] for k in ("data", "model", "reference", "chat_template")} | {"method": METHOD}
    with pytest.raises(CheckpointError, match=r"began under version 1 of the method.*computes version 2.*Finish it"):
        RunDir(run).check_resumable(config, facts)
