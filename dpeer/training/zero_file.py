"""DeepSpeed's settings as the user's file and the recipe give them, without a look at the model; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.files import PACKAGE

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
