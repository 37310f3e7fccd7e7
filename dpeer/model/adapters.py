"""Low-rank adapters as PEFT is asked for them, and the trained adapter that training may start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from dpeer.config import Lora, Model
from dpeer.errors import ConfigError
from dpeer.model.finite import refuse_not_finite
from dpeer.model.identity import ADAPTER

if TYPE_CHECKING:
    from peft import LoraConfig

    from dpeer.model.towers import Parts

OWN = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "dora": "use_dora", "rslora": "use_rslora"}
"""Keys of `model.lora` that a trained adapter decides, and PEFT's names for them."""
KEPT = {
    *OWN.values(), "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "inference_mode", "lora_dropout", "exclude_modules", "target_parameters", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core", "runtime_config",
}  # fmt: skip
"""Fields of PEFT's config under which an adapter is a low-rank update of its targets, and nothing else."""
NAMED = ("target_modules", "exclude_modules", "target_parameters", "rank_pattern", "alpha_pattern")
"""Those that name modules, alone or as keys."""
BELOW = "base_model.model."
"""Before the names of the model's modules in an adapter's file."""
INITIAL = (True, False, "gaussian")
"""Ways to begin that leave the weights below the adapter as they are."""


def refuse_adapter_folder(path: str) -> None:
    """ConfigError for an adapter where a model is asked for: transformers would take the base that it names."""
    file = Path(path) / ADAPTER
    if not file.is_file():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ConfigError(
        f"model {path}: holds an adapter ({ADAPTER}), not a model. To start from it: model.path={base or 'ITS BASE'} "
        f"and model.lora.path={path}."
    )


def start_of(lora: Lora, part: Parts | None = None) -> LoraConfig:
    """What PEFT is asked for to train the adapter of `lora.path` on; of a text model that is the part of a checkpoint,
    under the text model's names. ConfigError: it cannot be read, does more than low-rank updates, or contradicts the
    recipe."""
    adapter = _read(lora)
    where = f"model.lora.path {lora.path}"
    for key, name in OWN.items():
        given, own = getattr(lora, key), getattr(adapter, name)
        if given is not None and not _same(given, own):
            shown = ", ".join(sorted(own)) if isinstance(own, set | list) else own
            raise ConfigError(
                f"model.lora.{key} = {given} contradicts {where}, whose {key} is {shown}. Leave the key out (null): "
                "the adapter's own is taken. For another one start afresh, without model.lora.path."
            )
    odd = [f"{f.name} = {getattr(adapter, f.name)!r}" for f in fields(adapter) if not _plain(adapter, f.name)]
    if odd:
        raise ConfigError(
            f"{where}: its {ADAPTER} says {', '.join(odd)}, which is more than low-rank updates and would be lost "
            "here. Merge it into its base with PEFT (merge_and_unload) and train from that: model.path=MERGED."
        )
    adapter.inference_mode, adapter.lora_dropout, adapter.init_lora_weights = False, 0.0, True
    if part:
        for field in NAMED:
            setattr(adapter, field, renamed(getattr(adapter, field), part.inner))
    adapter.base_model_name_or_path = None  # PEFT writes the name of the model that it finds below
    return adapter


def renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """A field of `NAMED` with its names renamed; a regular expression, or nothing, as it is."""
    if isinstance(value, dict):
        return {rename(name): number for name, number in value.items()}
    return value if value is None or isinstance(value, str) else type(value)(map(rename, value))


def _read(lora: Lora) -> Any:
    from peft import LoraConfig, PeftConfig

    try:
        adapter = PeftConfig.from_pretrained(str(lora.path), revision=lora.revision)
    except Exception as error:  # whatever a file of unknown make, or the hub, brings about
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"model.lora.path {lora.path}: no PEFT adapter can be read there ({first[:200]}). Give a folder with "
            f"{ADAPTER} and adapter_model.safetensors, or a hub id that this machine can reach."
        ) from error
    if type(adapter) is not LoraConfig:
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        raise ConfigError(f"model.lora.path {lora.path}: is an adapter of kind {kind}; only LoRA can be trained on.")
    return adapter


def _same(given: Any, own: Any) -> bool:
    return set(given) == set(own) if isinstance(given, tuple) and isinstance(own, set | list) else bool(given == own)


def _plain(adapter: Any, name: str) -> bool:
    value = getattr(adapter, name)
    if name == "init_lora_weights":
        return value in INITIAL
    return name in KEPT or value in (None, False, "none", {}, []) or value == getattr(type(adapter)(), name)


def other_base(spec: Model) -> tuple[str, ...]:
    """A line where the adapter to start from names another base than `model.path`."""
    base = _read(spec.start).base_model_name_or_path if spec.start else None
    if not spec.start or not base or Path(base).name.lower() == Path(spec.path).name.lower():
        return ()
    return (
        f"model.lora.path {spec.start.path}: was trained on {base}, and model.path is {spec.path}; on other weights of "
        "the same shape it would mean nothing",
    )


def load_start(adapted: Any, lora: Lora, part: Parts | None = None) -> None:
    """Put the trained weights into adapters that `start_of` has described. ConfigError: not exactly these, or not
    finite."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        weights = load_peft_weights(str(lora.path), device="cpu", revision=lora.revision)
        if part:
            weights = {BELOW + part.inner(k.removeprefix(BELOW)): v for k, v in weights.items()}
        result = set_peft_model_state_dict(adapted, weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = next((line for line in lines if "size mismatch" in line), (lines or [type(error).__name__])[0])
        raise ConfigError(
            f"model.lora.path {lora.path}: its weights do not fit model.path ({first[:300]}). Give the base that it "
            "was trained on."
        ) from error
    refuse_not_finite(weights.items(), f"model.lora.path {lora.path}")
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    if odd := sorted(trained & set(result.missing_keys)) or sorted(result.unexpected_keys):
        what = "lacks" if odd[0] in trained else "has, with no place for them in this model,"
        raise ConfigError(
            f"model.lora.path {lora.path}: {what} the weights of {len(odd)} adapters, among them "
            f"{', '.join(odd[:3])}. Give the base that it was trained on, and the adapter's whole folder."
        )


def dora_reads(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Modules of DoRA, and weights of others that they read: where weights are shared they must be gathered there."""
    layers: Iterator[Any] = (m for m in model.modules() if getattr(m, "lora_magnitude_vector", None))
    for layer in layers:
        for name, module in layer.lora_magnitude_vector.items():
            yield module, layer.get_base_layer().weight
            yield module, layer.lora_A[name].weight
