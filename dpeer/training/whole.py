"""The export of a text part becomes a whole checkpoint again: towers, names, config and processor of the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpeer.errors import CheckpointError
from dpeer.model.adapters import BELOW, NAMED, renamed
from dpeer.model.towers import Parts
from dpeer.training.weights_file import Weights

PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
CONFIG, ADAPTER = "config.json", ("adapter_model.safetensors", "adapter_config.json")


def complete(weights: Weights, folder: Path, parts: Parts, dtype: str) -> None:
    """Add to the weights of a text model what the base has beside it: tensors, bit by bit and under their names; to
    `folder` the base's config with the `dtype` of the text, and its processor.

    CheckpointError: the text model has names that the base does not have."""
    if strange := sorted(weights.where.keys() - parts.files.keys()):
        raise CheckpointError(
            f"export: {len(strange)} weights of the text part have no place in {parts.path}, among them "
            f"{', '.join(strange[:3])}. Nothing was written."
        )
    rest = [name for name in parts.files if name not in weights.where and name != parts.head]  # no head: it is tied
    for source in sorted({parts.files[name] for name in rest}):
        if (path := parts.file(source)) is None:
            raise CheckpointError(f"export: {source} of {parts.path} is gone, which holds its towers. Restore it.")
        with safe_open(path, "pt") as tensors:
            for name in rest:
                if parts.files[name] == source:
                    weights.add(name, tensors.get_tensor(name))
    _config(folder, parts, dtype)
    for name in PROCESSOR:
        if file := parts.file(name):
            shutil.copyfile(file, folder / name)


def _config(folder: Path, parts: Parts, dtype: str) -> None:
    source = parts.file(CONFIG)
    assert source is not None  # it was loaded
    fields: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    for part in (fields, fields["text_config"]):
        part.pop("torch_dtype", None)
        part["dtype"] = dtype
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def locate_adapter(folder: Path, parts: Parts) -> None:
    """Name the modules of an adapter of the text model as they are in the whole model, where towers have such names
    as well."""
    weights, config = (folder / name for name in ADAPTER)
    theirs = {BELOW + parts.outer(k.removeprefix(BELOW)): v for k, v in load_file(weights).items()}
    save_file(theirs, weights, {"format": "pt"})
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields |= {name: renamed(fields.get(name), parts.outer) for name in NAMED}
    experts = tuple(name.rpartition(".")[0] for name in fields.get("target_parameters") or ())  # are found by their end
    modules = {k.removeprefix(BELOW).partition(".lora_")[0].partition(".base_layer")[0] for k in theirs}
    named = sorted(m for m in modules if not (experts and m.endswith(experts)))
    fields |= {"target_modules": named, "exclude_modules": None}
    config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
