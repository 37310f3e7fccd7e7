"""What users share has the modes that the umask asks for, whatever library wrote it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from dpeer import files
from dpeer.eval.store.parts import write_part, write_table
from dpeer.heldout_file import Heldout, write_heldout
from dpeer.objective.heldout import HeldoutEdges
from dpeer.toyworld.model import tiny_model
from dpeer.training.reference import write_cache
from dpeer.training.run_dir import RunDir


def odd_modes(folder: Path, umask: int) -> dict[str, str]:
    """What lies in a folder with other modes than new files and folders have under this umask."""
    found = {p: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.rglob("*")) if not p.is_symlink()}
    wanted = {p: (0o777 if p.is_dir() else 0o666) & ~umask for p in found}
    return {str(p.relative_to(folder)): oct(mode) for p, mode in found.items() if mode != wanted[p]}


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_everything_that_is_shared_follows_the_umask(tmp_path: Path, umask: int) -> None:
    folder, schema = tmp_path / "all", pa.schema([("id", pa.string())])
    run = RunDir(folder / "run")
    tiny_model(folder / "model", "qwen3", 1, vocab=400, texts=["a text"])
    write_cache(folder / "reference_cache" / "c.safetensors", [[1.0]])
    files.write_json(run.manifest, {})
    run.append({"step": 1}, {"step": 1})
    run.append_samples(1, [{"reply": "r"}])
    run.keep("error.txt", "what happened")
    empty = torch.zeros(0, dtype=torch.long)
    edges = HeldoutEdges(torch.zeros(0), empty, empty, empty, ())
    write_heldout(run.heldout, Heldout(edges, ("A",), {"a": torch.ones(1)}))
    write_part(folder / "ratings", [{"id": "a"}], schema)
    write_table(folder / "ratings.parquet", pd.DataFrame({"id": ["a"]}), schema)
    assert len([p for p in folder.rglob("*") if p.is_file()]) > 10
    assert odd_modes(folder, umask) == {}


def test_a_folder_that_was_private_becomes_what_the_umask_says(tmp_path: Path, umask: int) -> None:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True, mode=0o700)
    (made / "deep" / "file").touch(mode=0o600)
    (made / "link").symlink_to("/etc/passwd")
    files.follow_umask(made)
    assert odd_modes(made, umask) == {}
