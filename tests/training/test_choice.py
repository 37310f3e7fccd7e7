"""Which engine trains a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpeer.integrity import write_state
from dpeer.training import world
from dpeer.training.choice import Choice, policy_choice
from dpeer.training.run_dir import RunDir
from tests.training.conftest import recipe


@pytest.mark.parametrize(("recorded", "engine"), [({}, "deepspeed"), ({"engine": "plain"}, "plain"), (None, "plain")])
def test_auto_stays_with_the_engine_that_a_run_began_with(
    here: world.World, tmp_path: Path, recorded: dict[str, str] | None, engine: str
) -> None:
    """A manifest without an engine is from before there was a choice."""
    config = recipe().model_copy(update={"output_dir": tmp_path})
    if recorded is not None:
        config.run_dir.mkdir()
        (config.run_dir / "manifest.json").write_text(json.dumps(recorded))
    assert policy_choice(config, here).name == engine
    files = RunDir(config.run_dir)
    files.checkpoint(3).mkdir(parents=True)
    write_state(files.checkpoint(3) / "state.json", {"engine": "deepspeed"})
    assert policy_choice(config, here).name == "deepspeed"  # whatever a refused attempt may have left in the manifest
    given = config.model_copy(update={"cluster": config.cluster.model_copy(update={"engine": "deepspeed"})})
    assert policy_choice(given, here) == Choice("deepspeed", "as cluster.engine says")
