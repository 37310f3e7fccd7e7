"""Checkpoints of ZeRO-3 at other numbers of ranks: every element once, and what DeepSpeed's own conversion loads."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from deepspeed.checkpoint import ds_to_universal

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet
from dpeer.errors import CheckpointError, DamagedCheckpoint
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, reshard, world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared
from dpeer.training.reshard import MASTER, MOMENTS, Layout
from dpeer.training.zero3 import SHARDS
from dpeer.training.zero_file import DS_CONFIGS
from tests.training.conftest import recipe, records


def grouped(shapes: dict[str, int], ranks: int, limit: int) -> Layout:
    """As DeepSpeed's `_create_fp16_sub_groups` does it: a group ends once it has `limit` elements on a rank."""
    groups: list[dict[str, int]] = [{}]
    for name, numel in shapes.items():
        groups[-1][name] = numel
        if sum(-(-n // ranks) for n in groups[-1].values()) >= limit:
            groups.append({})
    return Layout([group for group in groups if group], ranks)


def flat_groups(layout: Layout, values: dict[str, torch.Tensor], rank: int, padding: float) -> list[torch.Tensor]:
    """One rank's groups by DeepSpeed's definition: each parameter padded to a multiple of the ranks, then cut."""
    found = []
    for group in layout.groups:
        parts = []
        for name in group:
            whole = values[name]
            whole = torch.cat([whole, torch.full((-len(whole) % layout.ranks,), padding)])
            parts.append(whole.chunk(layout.ranks)[rank] if len(whole) else whole)
        found.append(torch.cat(parts))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_element_is_read_once_and_lands_in_its_place(seed: int) -> None:
    rng = random.Random(seed)
    shapes = {f"p{i}": rng.choice([1, 2, 7, rng.randint(1, 400)]) for i in range(rng.randint(1, 9))}
    total = sum(shapes.values())
    values = dict(zip(shapes, torch.arange(1.0, total + 1).split(list(shapes.values())), strict=True))
    old, new = (grouped(shapes, rng.choice([1, 2, 3, 4, 5, 8, 64]), rng.choice([10, 100, 10**6])) for _ in range(2))
    theirs = [flat_groups(old, values, rank, padding=-1.0) for rank in range(old.ranks)]
    read: Counter[float] = Counter()
    for rank in range(new.ranks):
        mine = [torch.zeros(size) for size in new.sizes]
        for other, taken in reshard.copies(old, new, rank).items():
            for copy in taken:
                piece = theirs[other][copy.source][copy.start :][: copy.numel]
                mine[copy.target][copy.into :][: copy.numel] = piece
                read.update(piece.tolist())
        for ours, expected in zip(mine, flat_groups(new, values, rank, padding=0.0), strict=True):
            assert torch.equal(ours, expected)
    assert read == Counter(torch.arange(1.0, total + 1).tolist())


def test_other_parameters_and_cut_files_are_refused(tmp_path: Path) -> None:
    old, new = Layout([{"a": 4, "b": 2}], 2), Layout([{"a": 4, "c": 2}], 1)
    with pytest.raises(CheckpointError, match=r"other trained parameters.*\(2 differ, among them b, c\)"):
        reshard.refuse_other(tmp_path, old, new)
    with pytest.raises(DamagedCheckpoint, match="0 optimizer files of rank 3"):
        reshard.shard_of(tmp_path, 3)
    flat = torch.arange(6.0)
    state = {"state": {0: {"exp_avg": flat, "exp_avg_sq": flat.to(torch.bfloat16)}}, "param_groups": [{"lr": 1.0}]}
    path = tmp_path / f"zero_pp_rank_0{reshard.OPTIMIZER}"
    torch.save({"optimizer_state_dict": {"optimizer_state_dict": state, "fp32_flat_groups": [flat[2:]]}}, path)
    with reshard.Shard(reshard.shard_of(tmp_path, 0)) as shard:
        assert shard.step is None and shard.options == {"lr": 1.0}
        out = torch.empty(2)
        shard.read("fp32", 0, 1, out)
        assert out.tolist() == [3.0, 4.0]
        for kind, start in (("fp32", 3), ("exp_avg_sq", 0)):
            with pytest.raises(CheckpointError, match="Go on at the number of ranks that saved it"):
                shard.read(kind, 0, start, out)
        os.truncate(path, 200)
        with pytest.raises(DamagedCheckpoint, match="ends before its numbers do"):
            shard.read("fp32", 0, 0, out)


# Against DeepSpeed's conversion

KINDS: dict[str, dict[str, Any]] = {"full": {"dtype": "bf16"}, "lora": {"dtype": "bf16", "lora": {"rank": 3}}}
MOVES = ((4, 3), (2, 1), (1, 2))
SUB_GROUP = {"full": 3000, "lora": 500}  # elements of a flat group on a rank


def small(kind: str, folder: Path) -> Config:
    path = tiny_model(folder / "model", "qwen3", 1, vocab=300, num_hidden_layers=1)
    base = recipe(str(path), **KINDS[kind])
    cluster = {"engine": "deepspeed", "deepspeed": str(folder / "zero3.json")}
    training = {"tokens_per_pack": 10, "optimizer": {"lr": 1e-3, "warmup": 0, "weight_decay": 0.1}}
    return Config.model_validate(
        base.model_dump()
        | {"output_dir": folder / "runs", "objective": {"kind": "sft"}}
        | {"training": base.training.model_dump() | training, "cluster": base.cluster.model_dump() | cluster}
    )


def converted(policy: Policy, folder: Path) -> None:
    """Load as DeepSpeed does it from its universal form."""
    engine = policy.engine._engine  # type: ignore[attr-defined]
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(folder), tag="universal")
    engine._config.load_universal_checkpoint = False


def held(policy: Policy) -> dict[str, list[Any]]:
    parts = [p.ds_tensor for p in policy.engine.module.parameters() if p.requires_grad]  # type: ignore[attr-defined]
    state = policy.engine._engine.optimizer.optimizer.state  # type: ignore[attr-defined]
    tensors = policy.engine.held() | {"computing": parts}
    steps = [float(s["step"]) for s in state.values()]
    return {k: [t.detach().clone() for t in v] for k, v in tensors.items()} | {"steps": steps}


def saved(number: int, size: int, port: int, config: Config, folder: Path) -> None:
    """One rank of a group that trains two steps and saves."""
    torch.set_num_threads(1)
    here = world.start(number, size, "127.0.0.1", port, 60, gpu=False)
    policy = Policy(config, Prepared(TokenizedSet(("A",), records(), 0, 0), None, None, {}), here)
    for _ in range(2):
        policy.train_step(None)
    checkpoint.save(policy, folder, {})
    policy.close()
    world.stop()


def universal(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and moments by kind and name, as DeepSpeed converts a checkpoint."""
    options = Namespace(
        input_folder=str(folder / SHARDS), output_folder=str(folder / "universal"), num_extract_workers=1,
        num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=False,
    )  # fmt: skip
    ds_to_universal.main(options)
    names = [p.parent.name for p in (folder / "universal").rglob("fp32.pt")]
    return {
        kind: {n: torch.load(folder / "universal" / "zero" / n / f"{kind}.pt").flatten() for n in names}
        for kind in (MASTER, *MOMENTS)
    }


def refuse_difference(
    folder: Path, before: int, after: int, limit: int, whole: dict[str, dict[str, torch.Tensor]]
) -> None:
    """What every rank of `after` reads, against DeepSpeed's whole tensors, cut by definition."""
    old = reshard.layout_of(reshard.about(folder / SHARDS), before)
    new = grouped({name: numel for group in old.groups for name, numel in group.items()}, after, limit)
    assert len(old.groups) > 1
    for rank in range(after):
        targets = {kind: [torch.full((size,), 7.0) for size in new.sizes] for kind in whole}
        reshard.fill(folder / SHARDS, old, new, rank, targets)
        for kind, values in whole.items():
            for found, expected in zip(targets[kind], flat_groups(new, values, rank, padding=0.0), strict=True):
                assert torch.equal(found, expected), (kind, rank)
                assert expected.any()


def refuse_other_run(policy: Policy, folder: Path) -> None:
    """Load into a live engine by its own door and by DeepSpeed's, and take the same step from both."""
    config, prepared, here = policy.config, policy.prepared, policy.world
    checkpoint.load(policy, folder, {})
    ours, after = held(policy), policy.train_step(None)
    policy.close()
    other = Policy(config, prepared, here)
    converted(other, folder)
    other.step = 2
    theirs = held(other)
    assert ours.keys() == theirs.keys() and len(ours["master weights"]) > 1
    for key in ours:
        for a, b in zip(ours[key], theirs[key], strict=True):
            assert a == b if key == "steps" else torch.equal(a, b), key
    assert ours["steps"] == [2.0] * len(ours["master weights"]) and after["step"] == 3
    assert other.train_step(None)["objective"] == after["objective"]
    other.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resharded_checkpoint_is_bit_by_bit_what_deepspeed_converts_it_to(
    here: world.World, tmp_path: Path, kind: str
) -> None:
    """4 ranks to 3, 2 to 1, 1 to 2; all weights and adapters; several flat groups, which end elsewhere for each."""
    multiprocessing.set_forkserver_preload(["deepspeed", __name__])
    zero = json.loads((DS_CONFIGS / "cpu.json").read_text())
    zero["zero_optimization"]["sub_group_size"] = SUB_GROUP[kind]
    (tmp_path / "zero3.json").write_text(json.dumps(zero))
    config = small(kind, tmp_path)
    for before, after in MOVES:
        folder = tmp_path / f"{before}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(saved, (before, port, config, folder), nprocs=before, start_method="forkserver")  # type: ignore
        whole = universal(folder)
        refuse_difference(folder, before, after, SUB_GROUP[kind], whole)
        if after == 1:
            prepared = Prepared(TokenizedSet(("A",), records(), 0, 0), None, None, {})
            refuse_other_run(Policy(config, prepared, here), folder)


def test_shapes_may_be_tuples() -> None:
    """As in checkpoints that were copied and written beside the steps."""
    shapes = {"a": (2, 3), "b": torch.Size([4])}
    assert reshard.layout_of({"param_shapes": [shapes]}, 2).groups == [{"a": 6, "b": 4}]
