"""The export of a text part becomes a whole checkpoint again: towers, names, config and processor of the base."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpeer.errors import CheckpointError
from dpeer.model.adapters import BELOW, NAMED, renamed
from dpeer.model.towers import INDEX, Parts

PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
CONFIG, ADAPTER = "config.json", ("adapter_model.safetensors", "adapter_config.json")


def complete(folder: Path, parts: Parts, dtype: str) -> None:
    """Add to a text model that was saved in `folder` what the base has beside it: tensors, bit by bit and under their
    names, in shards of their own; its config with the `dtype` of the text, its processor.

    CheckpointError: the text model was saved under names that the base does not have."""
    where = {name: file for file in sorted(folder.glob("model*.safetensors")) for name in _names(file)}
    if strange := sorted(where.keys() - parts.files.keys()):
        raise CheckpointError(
            f"export: {len(strange)} weights of the text part have no place in {parts.path}, among them "
            f"{', '.join(strange[:3])}. Nothing was written."
        )
    rest = [name for name in parts.files if name not in where and name != parts.head]  # a head not written is tied
    _shards(folder, where, {name: parts.files[name] for name in rest}, parts)
    _config(folder, parts, dtype)
    for name in PROCESSOR:
        if file := parts.file(name):
            shutil.copyfile(file, folder / name)


def _shards(folder: Path, text: dict[str, Path], rest: dict[str, str], parts: Parts) -> None:
    """Number the text's files and the rest's, which holds what one file of the base did, under one index."""
    saved, sources = sorted(set(text.values())), sorted(set(rest.values()))
    names = [f"model-{i + 1:05d}-of-{len(saved) + len(sources):05d}.safetensors" for i in range(len(saved + sources))]
    renamed = dict(zip(saved, names, strict=False))
    for file, name in renamed.items():
        os.replace(file, folder / name)
    index = {tensor: renamed[file] for tensor, file in text.items()}
    for source, name in zip(sources, names[len(saved) :], strict=True):
        own = [tensor for tensor, file in rest.items() if file == source]
        if (path := parts.file(source)) is None:
            raise CheckpointError(f"export: {source} of {parts.path} is gone, which holds its towers. Restore it.")
        with safe_open(path, "pt") as tensors:
            save_file({tensor: tensors.get_tensor(tensor) for tensor in own}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(own, name)
    total = sum(_content(folder / name) for name in names)
    written = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (folder / INDEX).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


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


def _content(file: Path) -> int:
    """Bytes of its tensors."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def _names(file: Path) -> Iterable[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())
