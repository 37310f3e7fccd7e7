"""Which kernels decoder layers use for norms, MLP and rotary positions: transformers' own, or Liger's fused ones.

Liger is put in place by its documented functions, `apply_liger_kernel_to_<model type>`, which exchange names in the
family's module in transformers; models that are built afterwards use them. Its losses stay off: the head is dpeer's.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from dpeer.errors import ConfigError
from dpeer.model.miniature import alike, with_layers

EAGER = "transformers"
AGREES = 5e-2  # largest difference of a layer's output or gradient, as vectors: roundings of bf16 make about 1e-2
TOKENS = 64

_before: list[tuple[ModuleType, dict[str, Any]]] = []  # modules as they were


def choose(wanted: str, device: torch.device, shape: PretrainedConfig, dtype: torch.dtype) -> str:
    """Put the kernels in place for models that this process builds from now on; returns their name.

    wanted: `eager`; `auto`: Liger's on a GPU where it is installed, knows the family and agrees with transformers on
    one layer, else the name says why not; `liger`: the same, but ConfigError where that is not so.
    """
    _restore()  # what an earlier recipe of this process has put in place
    if wanted == "eager" or (wanted == "auto" and device.type != "cuda"):
        return EAGER
    apply, why = _liger(shape) if device.type == "cuda" else (None, "it needs a GPU")
    if apply and not (why := _put(apply, device, shape, dtype)):
        return f"Liger {_installed()}"
    if wanted == "liger":
        raise ConfigError(f"model.kernels = liger: {why}. Set it to auto, which takes transformers' own kernels then.")
    return f"{EAGER}; Liger is installed but not used: {why}" if _installed() else EAGER


def _installed() -> str | None:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        return None


def _liger(shape: PretrainedConfig) -> tuple[Callable[..., None] | None, str]:
    """The function that puts Liger's kernels in place for a family; or why there is none."""
    if not _installed():
        return None, "it is not installed here (pip install liger-kernel)"
    try:
        apply = getattr(import_module("liger_kernel.transformers"), f"apply_liger_kernel_to_{shape.model_type}", None)
    except Exception as error:  # of whatever compiles its kernels
        return None, f"it cannot be imported ({_words(error)})"
    return apply, "" if apply else f"it has no kernels for {shape.model_type}"


def _put(apply: Callable[..., None], device: torch.device, shape: PretrainedConfig, dtype: torch.dtype) -> str:
    """Empty, or why the kernels were taken back."""
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(shape)].__module__]
    losses = {name: False for name in inspect.signature(apply).parameters if "cross_entropy" in name}
    try:
        expected = _layer(shape, device, dtype)
        _before.append((module, dict(vars(module))))
        apply(**losses)
        why = _difference(expected, _layer(shape, device, dtype))
    except Exception as error:
        why = _words(error)
    if why:
        _restore()
    return why


def _restore() -> None:
    while _before:
        module, names = _before.pop()
        vars(module).update(names)


def _layer(shape: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of one layer of the model's size; the same weights and tokens at each call."""
    fields = with_layers(shape, alike(shape, 1)) | {"vocab_size": TOKENS, "pad_token_id": None}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model: Any = AutoModel.from_config(AutoConfig.for_model(**fields), dtype=dtype)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms, which begin as 1 or 0
                parameter.data += 0.1 * torch.randn_like(parameter)
        out = model(input_ids=torch.arange(TOKENS)[None], use_cache=False).last_hidden_state
        out.backward(torch.randn_like(out))
    return [out.detach().float(), *(p.grad.float() for p in model.parameters())]


def _difference(expected: list[Tensor], found: list[Tensor]) -> str:
    gap = max(float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in zip(expected, found, strict=True))
    return "" if gap <= AGREES else f"a layer differs from transformers' by {gap:.1e}"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"
