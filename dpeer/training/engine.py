"""What a step needs of an engine, and the settings that an engine takes from the recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from dpeer.config import Config, Optimizer
from dpeer.data.packing import Pack
from dpeer.errors import ConfigError
from dpeer.files import PACKAGE
from dpeer.model.lm import LayerShape, layer_shape
from dpeer.model.tree_lm import TreeLM
from dpeer.training.extensions import cpu_adam
from dpeer.training.snapshot import Snapshot

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
SIZES = ("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")
WINDOW, AHEAD = (10**8, 4 * 10**9), (10**7, 10**9)
"""Bounds of what `sized` derives from the model."""


class Engine(Protocol):
    """A TreeLM on the ranks of a group. Methods are collective: all ranks call them with the same arguments."""

    @property
    def name(self) -> str: ...
    @property
    def sharded(self) -> bool:
        """Each rank holds a share of what is trained; otherwise all of it."""
        ...

    @property
    def module(self) -> TreeLM: ...
    def __call__(self, pack: Pack, greedy: bool = False) -> Tensor: ...
    def train(self) -> Any: ...
    def eval(self) -> Any: ...
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add this rank's gradient to the step's; `last` of the step's packs."""
        ...

    def step(self, lr: float) -> float:
        """Update with the sum of all ranks' gradients; returns its norm, before clipping."""
        ...

    def held(self) -> dict[str, list[Tensor]]:
        """Master weights, first and second moments, as far as this rank holds them."""
        ...

    def snapshot(self, folder: Path) -> Snapshot:
        """What this rank keeps, to be written below `folder`; a file of one rank's has `rank_N` in its name."""
        ...

    def load(self, folder: Path, world_size: int) -> None:
        """What `snapshot` had written at `world_size` ranks."""
        ...

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        """Within, every rank has these parameters whole. Changes of them are lost."""
        ...

    def blank(self) -> None:
        """Zero the trained weights, so that a load that does nothing cannot pass for one."""
        ...

    def close(self) -> None:
        """Free every tensor that the engine holds; it is of no further use."""
        ...


def deepspeed_config(name: str, config: Config, *, trained: bool) -> dict[str, Any]:
    """The user's JSON (a name in ds_configs/ or a path) plus the parts that follow from the recipe."""
    field = "cluster.deepspeed" if trained else "cluster.reference_deepspeed"
    settings = deepspeed_file(name, field)
    if config.model.mlp_tile and "leaf_module" in settings["zero_optimization"]:
        raise ConfigError(
            f"model.mlp_tile = {config.model.mlp_tile} needs decoder layers that are gathered as one, else weights "
            f"would be gathered once per tile; but {field} = {name} sets leaf_module itself: take that key out of "
            "the file, or leave mlp_tile out."
        )
    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10**9}
    if config.model.dtype == "bf16":
        settings["bf16"] = {"enabled": True}
        if trained:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
            if config.model.lora:  # few bytes; sums over many ranks in bf16 would depend on their number
                settings.setdefault("communication_data_type", "fp32")
    if trained:
        _refuse_optimizer_place(name, settings["zero_optimization"], config)
        settings["gradient_clipping"] = config.training.optimizer.grad_clip
        settings["zero_allow_untested_optimizer"] = True
    return settings


def deepspeed_file(name: str, field: str) -> dict[str, Any]:
    """The user's JSON as it is. ConfigError, by the recipe's field, for what is none of ZeRO-3's."""
    path = Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"
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
    return settings


def model_settings(config: Config, shape: PretrainedConfig, *, trained: bool) -> dict[str, Any]:
    """`deepspeed_config` of the policy or the reference, with what follows from the model's shape."""
    name = config.cluster.deepspeed if trained else config.cluster.reference_deepspeed
    spec = config.model
    # Gradients of a whole layer are taken when that of its input is there. Below LoRA the first layer's input has none,
    # unless recomputation asks for it.
    whole = not trained or spec.lora is None or spec.gradient_checkpointing
    return sized(deepspeed_config(name, config, trained=trained), layer_shape(shape), whole=whole)


def sized(settings: dict[str, Any], layer: LayerShape, *, whole: bool) -> dict[str, Any]:
    """DeepSpeed's settings with those keys that the file leaves away, or sets to "auto".

    `whole`: each layer is gathered as one, which spares hooks around all its modules. The window of gathered weights
    holds three layers, so that one is fetched while another computes and a recomputed one stays for its backward pass;
    what is fetched ahead is the next layer, or half of one where modules are fetched one by one. Both within bounds,
    and with room for a layer beside the head.
    """
    zero, size = settings["zero_optimization"], layer.parameters
    whole = whole and "leaf_module" not in zero
    window = max(WINDOW[0], size + layer.head, min(3 * size, WINDOW[1]))
    ahead = max(AHEAD[0], min(size if whole else size // 2, AHEAD[1]))
    sizes = dict(zip(SIZES, (window, window, ahead), strict=True))
    for key in SIZES:
        given = zero.get(key, zero.get(key.removeprefix("stage3_"), "auto"))  # DeepSpeed takes both names
        sizes[key] = sizes[key] if given == "auto" else given
    leaves = {"leaf_module": {"classes": list(layer.classes)}} if whole else {}
    return settings | {"zero_optimization": zero | sizes | leaves}


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


def build_optimizer(parameters: Sequence[nn.Parameter], spec: Optimizer) -> torch.optim.Optimizer:
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
