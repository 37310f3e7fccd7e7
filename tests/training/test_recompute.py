"""Tiles of MLPs and activations on the host in whole steps: the same step, no more gathers, one gradient per weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.integrity import read_state
from dpeer.training import checkpoint
from dpeer.training.engine import deepspeed_config
from dpeer.training.policy import IDENTITY, Policy
from tests.training.conftest import gradients, recipe, sft

SPARED = {"mlp_tile": 8, "offload_activations": True}
LORA, DORA = {"lora": {"rank": 4}}, {"lora": {"rank": 4, "dora": True}}


def three_steps(policy: Policy) -> tuple[list[Any], dict[str, Tensor], Counter[str]]:
    """Ledger entries, gradients of the first step, and how often each weight got a gradient in the last one."""
    first: list[dict[str, Tensor]] = []
    step, arrived = policy.engine.step, Counter[str]()
    policy.engine.step = lambda lr: (first.append(gradients(policy)), step(lr))[1]  # type: ignore[method-assign]
    entries = [policy.train_step(None) for _ in range(2)]
    for name, weight in policy.engine.module.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, name=name: arrived.update([name]))
    return [*entries, policy.train_step(None)], first[0], arrived


@pytest.mark.parametrize(
    ("engine", "model"),
    [("deepspeed", {}), ("deepspeed", LORA), ("deepspeed", DORA), ("plain", {}), ("plain", LORA)],
    ids=["deepspeed", "deepspeed-lora", "deepspeed-dora", "plain", "plain-lora"],
)
def test_a_step_is_the_same(
    make: Callable[[Config], Policy],
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    model: dict[str, Any],
) -> None:
    """Of two packs, of which the longer has several tiles. Weights that ZeRO-3 gathers are counted."""
    gathers: list[int] = []
    if engine == "deepspeed":
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

        inner = "_PartitionedParameterCoordinator__all_gather_params_"
        gather = getattr(Coordinator, inner)
        monkeypatch.setattr(
            Coordinator,
            inner,
            lambda self, params, *rest, **options: (
                gathers.append(sum(p.ds_numel for p in params)),
                gather(self, params, *rest, **options),
            )[1],
        )
    found, counts = [], []
    for spared in ({}, SPARED):
        gathers.clear()
        policy = make(sft(models["plain"], engine, gradient_checkpointing=True, **model, **spared))
        found.append(three_steps(policy))
        counts.append(list(gathers))
    (entries, expected, arrived), (others, gradient, again) = found
    assert counts[0] == counts[1] and bool(counts[0]) == (engine == "deepspeed")
    assert arrived == again and set(arrived.values()) == {entries[0]["packs"]} and entries[0]["packs"] == 2
    scale = max(float(g.abs().max()) for g in expected.values())
    assert gradient.keys() == expected.keys()
    for name, g in expected.items():
        assert torch.allclose(gradient[name], g, rtol=0, atol=1e-6 * scale), name
    for ours, theirs in zip(others, entries, strict=True):
        for key in ("objective", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_a_file_that_would_gather_once_per_tile_is_refused(tmp_path: Path, trained: bool) -> None:
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 3, "leaf_module": {"classes": []}}}')
    config = recipe(gradient_checkpointing=True, mlp_tile=8)
    with pytest.raises(ConfigError, match=r"mlp_tile = 8 .*deepspeed = .*own.json sets leaf_module itself"):
        deepspeed_config(str(tmp_path / "own.json"), config, trained=trained)


def test_a_checkpoint_is_sound_whatever_the_tiles(
    make: Callable[[Config], Policy], models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tiles may round otherwise; with the same ones, or none, a forward pass repeats to the last digits."""
    allowed: list[float] = []
    check = checkpoint._check_probe
    monkeypatch.setattr(checkpoint, "_check_probe", lambda *given: (allowed.append(given[-1]), check(*given))[1])
    for saved in (None, 8):
        policy = make(sft(models["plain"], "plain", dtype="bf16", gradient_checkpointing=True, mlp_tile=saved))
        checkpoint.save(policy, tmp_path / f"{saved}", {})
    for tile in (None, 8, 1):
        policy = make(sft(models["plain"], "plain", dtype="bf16", gradient_checkpointing=True, mlp_tile=tile))
        for saved in (None, 8):
            checkpoint.load(policy, tmp_path / f"{saved}", {})
    same, other = 1e-6, IDENTITY["bf16"]
    assert allowed == [same, other, other, same, other, other]
    numerics = read_state(tmp_path / "None" / "state.json", "")["numerics"]
    assert not any("tile" in words for words in numerics)  # as in checkpoints of versions that knew of none
