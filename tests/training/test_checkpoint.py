"""Guards around checkpoints that need no process group; saving and loading for real is tested under Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpeer.errors import CheckpointError
from dpeer.training import checkpoint


def test_folder_that_others_cannot_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank 3 does not see .* must lie on a file system"):
        checkpoint.refuse_unshared(tmp_path, "rank 3")
    (tmp_path / "state.json").write_text("{}")
    checkpoint.refuse_unshared(tmp_path, "rank 3")


def test_commit_makes_a_whole_folder_appear(tmp_path: Path) -> None:
    temporary, final = tmp_path / ".writing-1", tmp_path / "step-1"
    temporary.mkdir()
    (temporary / "state.json").write_text("{}")
    checkpoint.commit(temporary, final)
    assert (final / "state.json").exists() and not temporary.exists()


def test_no_conversion_at_the_same_number_of_ranks(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"world_size": 2}))
    checkpoint.convert(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_failed_conversion_names_the_folder_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"world_size": 2}))
    (tmp_path / "deepspeed").mkdir()
    with pytest.raises(CheckpointError, match="cannot be converted to 1 ranks"):
        checkpoint.convert(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deepspeed", "state.json"]
