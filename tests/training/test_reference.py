"""The reference cache on disk, and putting the ranks' shares together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import CheckpointError
from dpeer.model import probe
from dpeer.model.probe import Exactness
from dpeer.training.reference import cache_path, read_cache, reference_hash, write_cache
from dpeer.training.scoring import merge

LOGPROBS = [[-1.5, -math.pi], [-300.123456789012345]]


def tokens(*responses: tuple[tuple[int, ...], ...]) -> TokenizedSet:
    return TokenizedSet(("A",), tuple(TokenTree(i, (1,), r, (), 0, ()) for i, r in enumerate(responses)), 0, 0)


DATA = tokens(((2,), (3, 4)), ((5,),))


def recipe(folder: Path, **changes: Any) -> Config:
    model = {"path": str(folder / "model")} | changes.pop("model", {})
    base = {"name": "x", "output_dir": folder, "model": model, "data": {"train": "d"}, "training": {"steps": 1}}
    return Config.model_validate(base | changes)


def adapted(folder: Path, alpha: int) -> Config:
    """A run that starts from an adapter on `model`."""
    path = folder / f"adapter-{alpha}"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"a")
    (path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    return recipe(folder, model={"lora": {"path": str(path)}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, weight in (("model", b"w0"), ("twin", b"w0"), ("other", b"w1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weight)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.safetensors"
    assert read_cache(path, DATA) is None
    write_cache(path, LOGPROBS)
    assert list(read_cache(path, DATA) or []) == LOGPROBS
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]
    write_cache(path, [[0.0, 1.0], [2.0]])
    assert list(read_cache(path, DATA) or []) == [[0.0, 1.0], [2.0]]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_cache(path, LOGPROBS)
    whole = path.read_bytes()
    for damaged in (b"", b"garbage", whole[:-3], whole[: len(whole) // 2], b"\0" * len(whole), whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"c\.safetensors: (is not readable|does not match) .*Delete it"):
            read_cache(path, DATA)
    save_file({"something_else": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not readable"):
        read_cache(path, DATA)


def test_values_that_are_no_log_probs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for bad in (math.nan, math.inf, -math.inf):
        write_cache(path, [[-1.0, bad], [-2.0]])
        with pytest.raises(CheckpointError, match="1 of its 3 values are not finite"):
            read_cache(path, DATA)


def test_wrong_count_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for rows in ([[-1.0], [-2.0]], [[-1.0, -2.0], [-3.0, -4.0]], []):
        write_cache(path, rows)
        with pytest.raises(CheckpointError, match=f"holds {sum(map(len, rows))} values, the data has 3 responses"):
            read_cache(path, DATA)


def test_key_changes_with_everything_that_changes_the_values(folder: Path) -> None:
    base = cache_path(recipe(folder), DATA)
    assert base.parent == folder / "reference_cache"
    different = {
        "dtype": cache_path(recipe(folder, model={"dtype": "fp32"}), DATA),
        "model": cache_path(recipe(folder, model={"path": str(folder / "other")}), DATA),
        "kernel": cache_path(recipe(folder, cluster={"gpus_per_worker": 1}), DATA),
        "token": cache_path(recipe(folder), tokens(((2,), (3, 9)), ((5,),))),
        "order": cache_path(recipe(folder), tokens(((3, 4), (2,)), ((5,),))),
        "adapter": cache_path(adapted(folder, 8), DATA),
        "its scale": cache_path(adapted(folder, 16), DATA),
        "boundary": cache_path(recipe(folder), tokens(((2, 3), (4,)), ((5,),))),
    }
    assert len({base, *different.values()}) == 1 + len(different)
    reference = recipe(folder, model={"reference_path": str(folder / "other")})
    assert cache_path(reference, DATA) == different["model"]


def test_key_says_what_auto_means_where_that_may_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that becomes exact as trees leaves its old cache behind; a named family keeps it."""

    def paths(kind: str) -> set[Path]:
        (folder / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
        found = set()
        for tree in (True, False):
            exact = {"tree": Exactness(0.0, 0.0, "", "" if tree else "fails"), "sequences": Exactness(0.0, 0.0, "")}
            monkeypatch.setattr(probe, "exactness", lambda _, layout, exact=exact: exact[layout])
            found.add(cache_path(recipe(folder), DATA))
        return found

    assert len(paths("llama")) == 1 and len(paths("gpt_oss")) == 2
    assert not paths("gpt_oss") & {cache_path(recipe(folder, model={"layout": "sequences"}), DATA)}


def test_key_ignores_what_does_not_matter(folder: Path) -> None:
    base = cache_path(recipe(folder), DATA)
    same = [
        recipe(folder, model={"path": str(folder / "twin")}),
        recipe(folder, model={"path": str(folder / "other"), "reference_path": str(folder / "model")}),
        recipe(folder, objective={"beta": 0.9, "length_normalised": True}),
        recipe(folder, model={"lora": {"rank": 2}}, seed=5),
        recipe(folder, model={"lora": {"path": "adapter"}, "reference_path": str(folder / "model")}),
        recipe(folder, cluster={"policy_workers": 3, "reference_workers": 2}),
    ]
    assert {cache_path(c, DATA) for c in same} == {base}


def test_changed_weights_change_the_hash(folder: Path) -> None:
    before = reference_hash(recipe(folder))
    (folder / "model" / "model.safetensors").write_bytes(b"w2")
    assert reference_hash(recipe(folder)) != before


def test_merge() -> None:
    assert merge([{0: [1.0], 2: [3.0, 4.0]}, {}, {1: [2.0]}], 3) == [[1.0], [2.0], [3.0, 4.0]]
    assert merge([{}], 0) == []


@pytest.mark.parametrize(
    "shares",
    [
        [{0: [1.0]}, {}],
        [{0: [1.0], 1: [2.0]}, {1: [2.0]}],
        [{0: [1.0]}, {0: [1.0]}],
        [{0: [1.0], 1: [2.0]}, {2: [3.0]}],
    ],
    ids=["missing", "double", "double and missing", "too many"],
)
def test_merge_wants_every_record_once(shares: list[dict[int, list[float]]]) -> None:
    with pytest.raises(AssertionError, match="scores for 2 records"):
        merge(shares, 2)
