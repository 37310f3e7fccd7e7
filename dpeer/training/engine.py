"""DeepSpeed ZeRO-3 engines for the policy (trained) and the reference (frozen)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpeer.config import Config, Optimizer
from dpeer.errors import ConfigError
from dpeer.files import PACKAGE
from dpeer.model.lm import TreeLM, build_lm
from dpeer.training.extensions import cpu_adam
from dpeer.training.world import World

FROM_RECIPE = {
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
}
DS_CONFIGS = PACKAGE / "ds_configs"


def deepspeed_config(name: str, config: Config, *, trained: bool) -> dict[str, Any]:
    """The user's JSON (a name in ds_configs/ or a path) plus the parts that follow from the recipe."""
    path = Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"
    field = "cluster.deepspeed" if trained else "cluster.reference_deepspeed"
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in DS_CONFIGS.glob("*.json")))
        raise ConfigError(f"{field} = {name}: no such file ({path}). Known names: {known}.") from None
    except OSError as error:
        raise ConfigError(f"{field} = {name}: {path} cannot be read ({error.strerror}). Give a JSON file.") from None
    except ValueError as error:
        raise ConfigError(f"{field} = {name}: {path} is not JSON ({error}).") from None
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        raise ConfigError(f"{field} = {name}: {path} must be an object that sets zero_optimization.stage to 3.")
    if owned := sorted(FROM_RECIPE & settings.keys()):
        raise ConfigError(
            f"{field} = {name}: {path} sets {', '.join(owned)}, which the recipe decides (model.dtype, "
            "training.optimizer, training.records_per_step, training.tokens_per_pack). Remove these keys."
        )
    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10**9}
    if config.model.dtype == "bf16":
        settings["bf16"] = {"enabled": True}
        if trained:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if trained:
        _refuse_optimizer_place(name, zero, config)
        settings["gradient_clipping"] = config.training.optimizer.grad_clip
        settings["zero_allow_untested_optimizer"] = True
    return settings


def _refuse_optimizer_place(name: str, zero: dict[str, Any], config: Config) -> None:
    """ConfigError for an optimizer that cannot work where its state lives; DeepSpeed finds out only after loading."""
    offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    on_cpu = config.training.optimizer.name == "cpu_adam"
    if offloaded and not on_cpu:
        raise ConfigError(
            f"cluster.deepspeed = {name} keeps the optimizer state in host memory, where "
            f"{config.training.optimizer.name} cannot update it: set training.optimizer.name to cpu_adam."
        )
    if on_cpu and not offloaded and config.cluster.on_gpus:
        raise ConfigError(
            f"training.optimizer.name = cpu_adam needs the optimizer state in host memory, but cluster.deepspeed = "
            f"{name} keeps it on the GPU: set cluster.deepspeed to zero3_offload, or use adamw."
        )


def learning_rate(step: int, total: int, spec: Optimizer) -> float:
    """Learning rate of optimizer step `step` (0-based): linear warm-up, then the schedule. Stateless, so resumable."""
    warmup = round(spec.warmup * total)
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[spec.schedule]
    return spec.lr * shape


def policy_engine(config: Config, world: World) -> Any:
    """A ZeRO-3 engine around a trainable TreeLM."""
    settings = deepspeed_config(config.cluster.deepspeed, config, trained=True)
    lm = _partitioned(lambda: build_lm(config.model, config.seed), settings, world)
    trainable = [p for p in lm.parameters() if p.requires_grad]
    return _initialize(lm, settings, _optimizer(trainable, config.training.optimizer))


def reference_engine(config: Config, world: World) -> Any:
    """A ZeRO-3 engine around the frozen reference: partitioned weights, no optimizer."""
    settings = deepspeed_config(config.cluster.reference_deepspeed, config, trained=False)
    lm = _partitioned(lambda: build_lm(config.model, config.seed, reference=True), settings, world)
    engine = _initialize(lm, settings, None)
    engine.eval()
    return engine


def _optimizer(parameters: list[nn.Parameter], spec: Optimizer) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": spec.lr,
        "betas": spec.betas,
        "eps": spec.eps,
        "weight_decay": spec.weight_decay,
    }
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    optimizer: torch.optim.Optimizer = cpu_adam()(parameters, adamw_mode=True, **options)
    return optimizer


def _partitioned(build: Callable[[], TreeLM], settings: dict[str, Any], world: World) -> TreeLM:
    """Load under an HfDeepSpeedConfig, so that each rank only ever holds its shard of the weights."""
    _import_deepspeed()
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(settings)  # must outlive from_pretrained
    try:
        lm = build()
    finally:
        del alive
        unset_hf_deepspeed_config()
    return lm


def _initialize(lm: TreeLM, settings: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> Any:
    deepspeed = _import_deepspeed()
    parameters = [p for p in lm.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=lm, config=settings, optimizer=optimizer, model_parameters=parameters if optimizer else None
    )
    deepspeed.zero.register_external_parameter(lm.head, lm.head.weight)
    return engine


def _import_deepspeed() -> Any:
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # The CPU shared-memory op compiles for a minute at first use, and gloo does not need it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
