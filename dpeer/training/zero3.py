"""The engine for models that one GPU does not hold: DeepSpeed ZeRO-3, weights and optimizer state over all ranks."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpeer.config import Config
from dpeer.data.packing import Pack
from dpeer.model.adapters import dora_reads
from dpeer.model.finite import refuse_not_finite
from dpeer.model.lm import build_lm, load_shape
from dpeer.model.tree_lm import TreeLM
from dpeer.training import reshard
from dpeer.training.engine import Engine, build_optimizer, model_settings
from dpeer.training.snapshot import Snapshot
from dpeer.training.world import World

SHARDS = "deepspeed"


def _own_parts(lm: TreeLM, rank: int) -> Iterator[tuple[str, Tensor]]:
    """This rank's part of each partitioned weight, less padding at its end, which nothing has written. Whole weights
    were looked at when they were loaded."""
    for name, weight in lm.named_parameters():
        if not hasattr(weight, "ds_tensor"):
            continue
        part = weight.ds_tensor.detach().flatten()
        own = min(part.numel(), weight.ds_numel - rank * part.numel())  # type: ignore[attr-defined]
        if own > 0:
            yield name, part[:own]


class Zero3:
    """One rank of a ZeRO-3 group around the policy, or around the frozen reference."""

    name, sharded = "deepspeed", True

    def __init__(self, config: Config, world: World, *, reference: bool = False) -> None:
        spec = config.model
        path, revision = spec.reference if reference else (spec.path, spec.revision)
        settings = model_settings(config, load_shape(path, revision), trained=not reference)
        self.world = world
        lm = _partitioned(config, settings, reference=reference)
        lm.team = world.team
        refuse_not_finite(_own_parts(lm, world.rank), f"model {path}")
        self.trained = [p for p in lm.parameters() if p.requires_grad]
        self._engine = _initialize(lm, settings, config, self.trained)
        self._engine.train(not reference)

    @property
    def module(self) -> TreeLM:
        lm: TreeLM = self._engine.module
        return lm

    def __call__(self, pack: Pack, greedy: bool = False) -> Tensor:
        values: Tensor = self._engine(pack, greedy=greedy)
        return values

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)  # DeepSpeed averages over ranks

    def step(self, lr: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def held(self) -> dict[str, list[Tensor]]:
        optimizer = self._engine.optimizer
        states = list(optimizer.optimizer.state.values())
        return {
            "master weights": list(optimizer.fp32_partitioned_groups_flat),
            "first moments": [state["exp_avg"] for state in states if "exp_avg" in state],
            "second moments": [state["exp_avg_sq"] for state in states if "exp_avg_sq" in state],
        }

    def snapshot(self, folder: Path) -> Snapshot:
        """DeepSpeed gathers the state and agrees with the other ranks; its writer is kept from writing meanwhile."""
        writer, state = self._engine.checkpoint_engine, {"torch_rng": torch.get_rng_state()}
        parts: list[tuple[Any, Path]] = []

        def keep(state_dict: Any, path: str) -> None:
            parts.append((state_dict, Path(path)))

        writer.save, dump = keep, writer.save
        try:
            self._engine.save_checkpoint(str(folder), tag=SHARDS, client_state=state, save_latest=False)
        finally:
            del writer.save  # of the instance; its class has the other one
        return Snapshot(tuple(parts), lambda tree, path: dump(tree, str(path)))

    def load(self, folder: Path, world_size: int) -> None:
        if world_size == self.world.size:
            _, client = self._engine.load_checkpoint(str(folder), tag=SHARDS)
            torch.set_rng_state(client["torch_rng"])
            return
        optimizer = self._engine.optimizer
        optimizer.checkpoint_event_prologue()
        saved = reshard.load(optimizer, folder / SHARDS, world_size, self.world.size, self.world.rank)
        optimizer.checkpoint_event_epilogue()
        for counted in ("global_steps", "global_samples", "skipped_steps"):
            setattr(self._engine, counted, saved[counted])

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        gather = _import_deepspeed().zero.GatheredParameters
        return cast(AbstractContextManager[Any], gather(list(parameters)))

    def blank(self) -> None:
        for parameter in self.trained:
            parameter.ds_tensor.data.zero_()  # type: ignore[attr-defined]

    def close(self) -> None:
        """`destroy` leaves weights, masters and moments alive: closures of hooks on C++ nodes hold the engine, where
        Python's collector does not see it. So everything is taken out of it."""
        from deepspeed.runtime.zero import parameter_offload

        engine, lm, optimizer = self._engine, self.module, self._engine.optimizer
        engine.destroy()
        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module is not lm]
        if self.trained:
            optimizer.optimizer.state.clear()
            optimizer.optimizer.param_groups.clear()
            vars(optimizer.parameter_offload).clear()
        for parameter in lm.parameters():
            vars(parameter).clear()
            parameter.data, parameter.grad = torch.empty(0), None
        for emptied in (optimizer, *lm.modules(), engine):
            vars(emptied).clear()
        self.trained.clear()
        del self._engine, engine, lm, optimizer
        release(self.world)


def release(world: World) -> None:
    """Give memory that nobody holds any more back to the device."""
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


def _partitioned(config: Config, settings: dict[str, Any], *, reference: bool) -> TreeLM:
    """Load under an HfDeepSpeedConfig, so that each rank only ever holds its shard of the weights."""
    _import_deepspeed()
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(settings)  # must outlive from_pretrained
    try:
        return build_lm(config.model, config.seed, reference=reference)
    finally:
        del alive
        unset_hf_deepspeed_config()


def _initialize(lm: TreeLM, settings: dict[str, Any], config: Config, trained: list[torch.nn.Parameter]) -> Any:
    deepspeed = _import_deepspeed()
    optimizer = build_optimizer(trained, config.training.optimizer) if trained else None
    _load_muon()
    engine, *_ = deepspeed.initialize(
        model=lm, config=settings, optimizer=optimizer, model_parameters=trained if optimizer else None
    )
    deepspeed.zero.register_external_parameter(lm.head, lm.head.weight)
    for module, weight in dora_reads(lm):
        deepspeed.zero.register_external_parameter(module, weight)
    return engine


def _load_muon() -> None:
    """DeepSpeed looks whether an optimizer is its Muon, whose module compiles functions when it is loaded. That loads
    torch's compiler, a second or two of each rank's start, for what is never called here."""
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with suppress(ImportError):
            import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _import_deepspeed() -> Any:
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # The CPU shared-memory op compiles for a minute at first use, and gloo does not need it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


_engine: type[Engine] = Zero3
