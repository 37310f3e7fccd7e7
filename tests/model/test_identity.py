"""The model hash sees any trained file, large or small, and does not depend on the folder's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dpeer.model.identity import BLOCK, BLOCKS, model_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(BLOCK * BLOCKS * 2 + 17))
    (path / "notes.txt").write_text("not part of the identity")
    return path


def test_same_content_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    before = model_hash(str(folder))
    (folder / "notes.txt").write_text("changed")
    shutil.copytree(folder, tmp_path / "copy")
    assert model_hash(str(tmp_path / "copy")) == before


@pytest.mark.parametrize("place", [0, BLOCK * BLOCKS * 2 + 16])
def test_first_and_last_byte_count(folder: Path, place: int) -> None:
    before, weights = model_hash(str(folder)), folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[place] ^= 1
    weights.write_bytes(data)
    assert model_hash(str(folder)) != before


def test_any_trained_weight_file_is_another_model(folder: Path) -> None:
    """Training moves nearly all weights: changing one byte in every 4 KiB is far less than that."""
    before, weights = model_hash(str(folder)), folder / "model.safetensors"
    data = np.frombuffer(weights.read_bytes(), dtype=np.uint8).copy()
    data[::4096] ^= 1
    weights.write_bytes(data.tobytes())
    assert model_hash(str(folder)) != before


def test_size_and_config_count(folder: Path) -> None:
    before = model_hash(str(folder))
    (folder / "config.json").write_text('{"rope_theta": 1}')
    changed = model_hash(str(folder))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    assert len({before, changed, model_hash(str(folder))}) == 3


def test_hub_snapshot_counts_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before its weights are downloaded: the first rank to ask must get the same hash as the last."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("dpeer.model.identity.cached_file", lambda *a, **k: str(snapshot / "config.json"))
    before = model_hash("org/name")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert model_hash("org/name") == before
    snapshot.rename(snapshot.with_name("decaf0"))
    monkeypatch.setattr(
        "dpeer.model.identity.cached_file", lambda *a, **k: str(snapshot.with_name("decaf0") / "config.json")
    )
    assert model_hash("org/name") != before
