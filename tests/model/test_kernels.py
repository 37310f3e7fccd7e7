"""Liger's kernels: put in place by its own functions where they agree, with all losses off; taken back otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dpeer.errors import ConfigError
from dpeer.model import kernels

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300,
}  # fmt: skip
SHAPE = AutoConfig.for_model("llama", **SIZES)


class Fused(LlamaRMSNorm):  # type: ignore[misc]
    """Another order of the same operations."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class Wrong(Fused):
    """Gemma's norm in a Llama."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + hidden_states


class Broken(Fused):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nfor execution")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type], list[dict[str, Any]]]]:
    """A Liger whose norm is the given one; returns what it was called with. Layers of a GPU are computed here."""
    real, calls = kernels._layer, list[dict[str, Any]]()
    monkeypatch.setattr(kernels, "_layer", lambda shape, device, dtype: real(shape, CPU, dtype))
    monkeypatch.setattr(kernels, "_installed", lambda: None)

    def put(norm: type) -> list[dict[str, Any]]:
        def apply_liger_kernel_to_llama(
            rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True,
            rms_norm: bool = True, swiglu: bool = True, model: Any = None,
        ) -> None:  # fmt: skip
            calls.append(dict(locals()))
            modeling_llama.LlamaRMSNorm = norm

        fake = SimpleNamespace(apply_liger_kernel_to_llama=apply_liger_kernel_to_llama)
        monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=fake))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
        monkeypatch.setattr(kernels, "_installed", lambda: "0.8.5")
        return calls

    yield put
    kernels._restore()
    assert modeling_llama.LlamaRMSNorm is LlamaRMSNorm


def choose(wanted: str, device: torch.device = GPU, shape: PretrainedConfig = SHAPE) -> str:
    return kernels.choose(wanted, device, shape, torch.bfloat16)


def test_liger_is_used_where_it_agrees_and_the_next_recipe_decides_anew(install: Any) -> None:
    calls = install(Fused)
    random = torch.get_rng_state()
    for wanted in ("auto", "liger"):
        assert choose(wanted) == "Liger 0.8.5"
        assert modeling_llama.LlamaRMSNorm is Fused
    assert torch.equal(torch.get_rng_state(), random)
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    own = {"rope": True, "rms_norm": True, "swiglu": True, "model": None}
    assert [c.items() >= (off | own).items() for c in calls] == [True, True]
    assert choose("eager") == "transformers" and modeling_llama.LlamaRMSNorm is LlamaRMSNorm


@pytest.mark.parametrize(
    ("norm", "says"), [(Wrong, "a layer differs from transformers' by"), (Broken, "RuntimeError: no kernel image")]
)
def test_kernels_that_disagree_or_fail_are_taken_back(install: Any, norm: type, says: str) -> None:
    install(norm)
    said = choose("auto")
    assert said.startswith("transformers; Liger is installed but not used: ") and says in said and "\n" not in said
    assert modeling_llama.LlamaRMSNorm is LlamaRMSNorm
    with pytest.raises(ConfigError, match=f"model.kernels = liger: {says}"):
        choose("liger")


def test_where_there_is_no_liger_auto_says_nothing_and_liger_is_refused(install: Any) -> None:
    assert choose("auto") == choose("auto", CPU) == "transformers"
    with pytest.raises(ConfigError, match="it is not installed here"):
        choose("liger")
    install(Fused)
    assert choose("auto", CPU) == "transformers"
    with pytest.raises(ConfigError, match="it needs a GPU"):
        choose("liger", CPU)
    assert "no kernels for qwen3" in choose("auto", shape=AutoConfig.for_model("qwen3", **SIZES))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text"])
def test_every_family_has_a_layer_to_compare(family: str) -> None:
    """Finite, with a gradient of every parameter that the layer has, and the same twice."""
    shape = AutoConfig.for_model(family, **SIZES)
    first, second = (kernels._layer(shape, CPU, torch.bfloat16) for _ in range(2))
    assert all(torch.isfinite(x).all() and x.abs().sum() > 0 for x in first)
    assert kernels._difference(first, second) == ""
