"""Checkpoints that see or hear: their text part is trained, and the rest goes into the export as it is.

Only the text model is built, from those tensors of the checkpoint that are its own. So towers and projectors take no
rank's memory, no gathering and no optimizer state, no adapter can land in them, and no mask of an image can be
switched on. The export copies their tensors from the checkpoint's files, bit by bit, under the checkpoint's names.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoModelForImageTextToText,
    PretrainedConfig,
)
from transformers.utils import cached_file

from dpeer.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def text_part(shape: PretrainedConfig, path: str) -> PretrainedConfig:
    """The config of the causal language model in a model of this config; `shape` itself where that is all of it.

    ConfigError where transformers has no such model by itself."""
    text = shape.get_text_config()
    if text is shape:
        return shape
    if type(shape) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"model {path} (type '{shape.model_type}'): transformers has no language model of type "
            f"'{text.model_type}' by itself, so its text part cannot be trained. Choose another model."
        )
    text = copy.deepcopy(text)
    text.tie_word_embeddings = bool(shape.tie_word_embeddings and text.tie_word_embeddings)
    if quantised := getattr(shape, "quantization_config", None):
        text.quantization_config = quantised
    return text


def _whole(shape: PretrainedConfig) -> Any:
    """All of the model, on the meta device."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(copy.deepcopy(shape))


def _backbone(whole: nn.Module, text: PretrainedConfig) -> tuple[str, nn.Module]:
    """Name and module of the text model's layers in the whole model."""
    return next((n, m) for n, m in whole.named_modules() if type(m) is MODEL_MAPPING[type(text)])


def tower_parameters(shape: PretrainedConfig) -> int:
    """Parameters of a model beside those of its text part: of towers and projectors; 0 for a language model."""
    text = shape.get_text_config()
    if text is shape:
        return 0
    whole = _whole(shape)
    own = {*_backbone(whole, text)[1].parameters(), *whole.get_output_embeddings().parameters()}
    return sum(p.numel() for p in whole.parameters() if p not in own)


@dataclass(frozen=True)
class Parts:
    """Where the text model is in a checkpoint.

    shape: config of all of it. files: by name of tensor, below the model's folder. prefix: of the layers' names there,
    such as `language_model.model.`. head: name of the output head's weight; None: it is the embedding. base: prefix of
    the layers' names in the text model, such as `model.`
    """

    path: str
    revision: str | None
    shape: PretrainedConfig
    files: Mapping[str, str]
    prefix: str
    head: str | None
    base: str

    @property
    def renamed(self) -> dict[str, str]:
        """transformers' `key_mapping`, from the checkpoint's names to the text model's; it is undone on saving."""
        pairs = [(self.prefix, self.base)] + ([(self.head, HEAD)] if self.head else [])
        return {f"^{re.escape(theirs)}": ours for theirs, ours in pairs if theirs != ours}

    def located(self) -> str:
        """Prefix of the layers' names in the whole model as transformers builds it, such as `model.language_model.`"""
        return self._outer

    @cached_property
    def _outer(self) -> str:
        return f"{_backbone(_whole(self.shape), self.shape.get_text_config())[0]}."  # a second of a large model

    def inner(self, name: str) -> str:
        """A module's name in the whole model (`located`) as the text model has it."""
        outer = self.located()
        return self.base + name.removeprefix(outer) if name.startswith(outer) else name

    def outer(self, name: str) -> str:
        """The inverse of `inner`."""
        return self.located() + name.removeprefix(self.base) if name.startswith(self.base) else name

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint on this machine; None: it has no such file."""
        return found(self.path, name, self.revision)


def parts(shape: PretrainedConfig, path: str, revision: str | None = None) -> Parts | None:
    """None for a language model that is all of its checkpoint. ConfigError: weights in no safetensors files."""
    text = shape.get_text_config()
    if text is shape:
        return None
    files = _files(path, revision)
    prefix = _prefix(files)
    if prefix is None:
        raise ConfigError(
            f"model {path} (type '{shape.model_type}'): no tensor of its safetensors files is named *{EMBEDDING}, so "
            "its text part is not found. Give a checkpoint as transformers writes it."
        )
    base = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].base_model_prefix
    head = min((n for n in files if n.endswith(HEAD)), key=len, default=None)
    return Parts(path, revision, shape, files, prefix, head, f"{base}.")


def found(path: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model's folder or of the hub, downloaded; None where it has none of that name."""
    file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)


def _files(path: str, revision: str | None) -> dict[str, str]:
    if index := found(path, INDEX, revision):
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if single := found(path, SINGLE, revision):
        with safe_open(single, "pt") as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE)
    raise ConfigError(
        f"model {path}: has no {SINGLE}, nor shards with a {INDEX}, from which the towers beside its text part could "
        "be exported. Convert its weights to safetensors."
    )


def _prefix(names: Iterable[str]) -> str | None:
    every = [n.removesuffix(EMBEDDING) for n in names if n.endswith(f".{EMBEDDING}")]
    text = [p for p in every if "language_model" in p or "text_model" in p]
    return min(text or every, key=len, default=None)
