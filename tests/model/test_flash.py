"""The kernel is chosen by device and installed packages, and one that disagrees with torch's own is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import varlen

from dpeer.model import flash

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


class Handle:
    def __init__(self, active: list[str]) -> None:
        self.active = active

    def remove(self) -> None:
        self.active.clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """A Hopper or Blackwell GPU without a GPU: torch's real registry, kernels written here, tensors on CPU."""
    active: list[str] = []

    def set_up(generation: int, installed: str, factor: float = 1.0, broken: str | None = None) -> list[str]:
        def register() -> Handle:
            if broken == "register":
                raise ImportError("libcudart.so.13: cannot open shared object file\nmore")
            active.append(installed)
            return Handle(active)

        def kernel(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
                   scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False) -> Tensor:  # fmt: skip
            if active and broken == "kernel":
                raise RuntimeError("FA3 flash_attention forward unsupported: head size")
            return torch.zeros_like(query) + (query.sum() + key.sum() + value.mean()) * (factor if active else 1.0)

        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (generation, 0))
        monkeypatch.setattr(flash, "find_spec", lambda name: name == flash.MODULES[installed] or None)
        registered = dict(attention._registry._FLASH_ATTENTION_IMPLS)
        monkeypatch.setattr(attention._registry, "_FLASH_ATTENTION_IMPLS", registered)
        attention.register_flash_attention_impl(installed, register_fn=register)
        problem = flash._problem
        monkeypatch.setattr(flash, "_problem", lambda device, *more: problem(torch.device("cpu"), *more))
        return active

    yield set_up
    if attention.current_flash_attention_impl() is not None:
        attention.restore_flash_attention_impl()


def choose(wanted: str = "auto") -> str:
    return flash.choose(wanted, CUDA, BF16, (4, 2), 8)


@pytest.mark.parametrize(("generation", "installed"), [(9, "FA3"), (10, "FA4")])
def test_takes_what_is_installed_for_the_device(machine: Any, generation: int, installed: str) -> None:
    active = machine(generation, installed)
    assert choose() == f"FlashAttention {installed[-1]} ({flash.MODULES[installed]})"
    assert active == [installed] and attention.current_flash_attention_impl() == installed


@pytest.mark.parametrize(
    ("generation", "installed", "wanted"), [(9, "FA4", "auto"), (8, "FA3", "auto"), (9, "FA3", "torch")]
)
def test_leaves_torchs_own_otherwise(machine: Any, generation: int, installed: str, wanted: str) -> None:
    assert machine(generation, installed) == [] and choose(wanted) == flash.TORCH


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"factor": 1.1}, "its output differs from torch's kernel by 9.9e-02"),
        ({"broken": "kernel"}, "head size"),
        ({"broken": "register"}, "ImportError (libcudart.so.13: cannot open shared object file)"),
    ],
)
def test_a_kernel_that_fails_or_disagrees_is_taken_back(machine: Any, fault: Any, says: str) -> None:
    active = machine(9, "FA3", **fault)
    name = choose()
    assert name.startswith(flash.TORCH) and "FA3 is installed but not used" in name and says in name
    assert active == [] and attention.current_flash_attention_impl() is None


def test_a_torch_without_a_registry_keeps_its_own(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(9, "FA3")
    monkeypatch.delattr(attention, "activate_flash_attention_impl")
    assert choose() == flash.TORCH


def test_cpu_and_fp32_use_no_flash_kernel() -> None:
    assert flash.choose("auto", torch.device("cpu"), BF16, (4, 2), 8) == flash.SEGMENTS
    assert flash.choose("auto", CUDA, torch.float32, (4, 2), 8) == flash.SEGMENTS
