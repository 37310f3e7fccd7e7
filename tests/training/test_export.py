"""An export that is written layer by layer has the tensors that transformers and PEFT save of the whole model."""

from __future__ import annotations

import errno
import json
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet
from dpeer.errors import CheckpointError
from dpeer.integrity import folder_faults
from dpeer.model.lm import DTYPES, add_lora, attention_kernel, load_lm
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, weights_file, world
from dpeer.training.export import export
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared
from dpeer.training.publish import BYTES, publish
from dpeer.training.weights_file import INDEX, Weights
from tests.training.conftest import TIMEOUT_S, recipe, records


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def sft(path: Path, engine: str, **model: Any) -> Config:
    base = recipe(str(path), **model)
    optimizer = {"lr": 0.01, "warmup": 0}
    return Config.model_validate(
        base.model_dump()
        | {"output_dir": path.parent / "runs", "objective": {"kind": "sft"}}
        | {"training": base.training.model_dump() | {"optimizer": optimizer}}
        | {"cluster": base.cluster.model_dump() | {"engine": engine}}
    )


@pytest.fixture
def make(here: world.World) -> Iterator[Callable[[Config], Policy]]:
    made: list[Policy] = []

    def build(config: Config) -> Policy:
        attention_kernel(config.model, here.device)  # tried before an engine changes how models are built
        made.append(trained(config, here, steps=1))
        return made[-1]

    yield build
    for policy in made:
        policy.close()


def each_of_two(number: int, port: int, config: Config, folder: Path) -> None:
    """One rank: load what one rank saved, export it in all ways, and none waits where rank 0 finds the disk full."""
    torch.set_num_threads(1)
    here = world.start(number, 2, "127.0.0.1", port, TIMEOUT_S, gpu=False)
    policy = trained(config, here)
    checkpoint.load(policy, folder / "saved", {})
    export(policy, folder / "reloaded")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dpeer.training.export.RELOADED", 0)
        for name in ("export", *(["alone"] if config.model.lora else [])):
            made = export(policy, folder / name, adapter=name == "alone")
            if number == 0:
                assert publish(folder / name, made) == BYTES
        patched.setattr(Weights, "add", full_disk)
        if number == 0:
            with pytest.raises(CheckpointError, match="make room there"):
                export(policy, folder / "lost")
            policy.score(policy.data.trees[:1])  # for which the other one waits: it has met nothing
        else:
            export(policy, folder / "lost")
    dist.barrier()
    policy.close()
    world.stop()


def full_disk(weights: Weights, name: str, tensor: torch.Tensor) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def trained(config: Config, here: world.World, steps: int = 0) -> Policy:
    data = TokenizedSet(("A",), records(), 0, 0)
    policy = Policy(config, Prepared(data, None, None, {"chat_template": {}}), here)
    for _ in range(steps):
        policy.train_step(None)
    return policy


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lora", [None, {"rank": 3}])
def test_two_ranks_export_what_one_does(here: world.World, tmp_path: Path, lora: dict[str, int] | None) -> None:
    """Of a checkpoint that one rank has saved, under ZeRO-3."""
    path = tiny_model(tmp_path / "model", "qwen3", 3, vocab=300, num_hidden_layers=1)
    config = sft(path, "deepspeed", dtype="bf16", lora=lora)
    policy = trained(config, here, steps=2)
    checkpoint.save(policy, tmp_path / "saved", {})
    export(policy, tmp_path / "one")
    policy.close()
    multiprocessing.set_forkserver_preload(["deepspeed", __name__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(each_of_two, (port, config, tmp_path), nprocs=2, start_method="forkserver")  # type: ignore
    assert not (tmp_path / "lost").exists()
    for below in (Path(), Path("adapter")) if lora else (Path(),):
        expected = tensors(tmp_path / "one" / below)
        exports = [tmp_path / name / below for name in ("reloaded", "export")]
        for folder in exports + ([tmp_path / "alone"] if below.name else []):
            found = tensors(folder)
            assert found.keys() == expected.keys() and folder_faults(folder) in ({}, None)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def saved_whole(policy: Policy, folder: Path) -> None:
    """Gather everything, load the base anew, put the weights in, merge, save: all of it in memory at once."""
    spec, lm = policy.config.model, policy.engine.module
    with policy.engine.whole(list(lm.parameters())):
        state = {k.removeprefix("model."): v.detach().clone() for k, v in lm.state_dict().items()}
    model: Any = load_lm(spec.path, spec.export_dtype, layout=spec.layout)[0]
    if spec.lora:
        model = add_lora(model, spec.lora, policy.config.seed)
    model.load_state_dict({k: v.to(DTYPES[spec.export_dtype]) for k, v in state.items()})
    if spec.lora:
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "engine", "options"),
    [
        ("qwen3", "plain", {}),
        ("qwen3", "deepspeed", {"dtype": "bf16"}),
        ("qwen3", "deepspeed", {"dtype": "bf16", "export_dtype": "fp32", "lora": {"rank": 4}}),
        ("llama", "plain", {"lora": {"rank": 4, "dora": True, "rslora": True}}),
        ("qwen3_moe", "plain", {"lora": {"rank": 4}}),
        ("qwen3_moe", "deepspeed", {}),
    ],
)
def test_an_export_is_to_the_bit_what_is_saved_of_the_whole_model(
    make: Callable[[Config], Policy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    engine: str,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr("dpeer.training.export.RELOADED", 0)
    monkeypatch.setattr(weights_file, "LIMIT", 40_000)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48} if "moe" in kind else {}
    tied = {"tie_word_embeddings": kind == "qwen3"}
    policy = make(sft(tiny_model(tmp_path / "model", kind, 3, vocab=300, **experts, **tied), engine, **options))
    before = policy.score(policy.data.trees)
    made = export(policy, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    assert publish(tmp_path / "export", made) == BYTES and not list(tmp_path.glob(".export*"))
    assert policy.score(policy.data.trees) == before
    saved_whole(policy, tmp_path / "whole")
    for folder in (Path(), Path("adapter")) if "lora" in options else (Path(),):
        ours, theirs = tensors(tmp_path / "export" / folder), tensors(tmp_path / "whole" / folder)
        assert ours.keys() == theirs.keys() and ours
        for name, expected in theirs.items():
            assert ours[name].dtype == expected.dtype and torch.equal(ours[name], expected), name
    shapes = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("export", "whole")]
    assert shapes[0] == shapes[1]
    index = json.loads((tmp_path / "export" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(tmp_path / "export").values())
    assert len(set(index["weight_map"].values())) > 2
    assert folder_faults(tmp_path / "export") == {}
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_what_the_disk_loses_is_found_and_no_half_of_an_export_is_left(
    make: Callable[[Config], Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpeer.training.export.RELOADED", 0)
    policy = make(sft(tiny_model(tmp_path / "model", "qwen3", 1, vocab=300), "plain", lora={"rank": 2}))
    made = export(policy, tmp_path / "export")
    file = tmp_path / ".export.tmp" / weights_file.SINGLE
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not hold the tensors that were written to it"):
        publish(tmp_path / "export", made)
    assert not (tmp_path / "export").exists()
    add = Weights.add

    def full(self: Weights, name: str, tensor: torch.Tensor) -> None:
        if len(self.where) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, name, tensor)

    with monkeypatch.context() as patched:
        patched.setattr(Weights, "add", full)
        with pytest.raises(CheckpointError, match=r"export cannot be written \(No space left on device\): make room"):
            export(policy, tmp_path / "export")
    assert not (tmp_path / "export").exists() and not list(tmp_path.glob(".export*"))
    publish(tmp_path / "alone", export(policy, tmp_path / "alone", adapter=True))
    publish(tmp_path / "export", export(policy, tmp_path / "export"))
    assert tensors(tmp_path / "alone").keys() == tensors(tmp_path / "export" / "adapter").keys()
    assert not (tmp_path / "alone" / "config.json").exists()


def test_files_written_tensor_by_tensor_are_read_by_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several dtypes, of odd sizes, empty, without dimensions, larger than a file may be; many with long names."""
    given = {
        "a": torch.randn(3, 5).bfloat16(), "b": torch.randn(7), "c": torch.tensor(True), "d": torch.empty(0, 4),
        "e": torch.arange(9), "f": torch.randn(900), "g": torch.randn(4, 6).T, "h": torch.randn(11).bfloat16(),
    }  # fmt: skip
    given |= {f"{'long' * 60}.{i}": torch.full((2,), float(i)) for i in range(400)}
    weights = Weights(tmp_path / "new", limit=1000)
    for name, tensor in given.items():
        weights.add(name, tensor)
        assert not list((tmp_path / "new").glob("*.safetensors"))
    with pytest.raises(CheckpointError, match="two weights are named b"):
        weights.add("b", torch.zeros(1))
    assert weights.bytes == sum(t.nbytes for t in given.values())
    written = weights.finish()
    assert sorted(written) == sorted(p.name for p in (tmp_path / "new").glob("*.safetensors")) and len(written) > 6
    found = tensors(tmp_path / "new")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    where = json.loads((tmp_path / "new" / INDEX).read_text())["weight_map"]
    for name in given:
        with safe_open(tmp_path / "new" / where[name], "pt") as file:
            assert torch.equal(file.get_tensor(name), given[name])
