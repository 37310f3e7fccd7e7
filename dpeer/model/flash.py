"""Which variable-length FlashAttention kernel a process uses: by what is installed, and only if it agrees with torch's.

torch's own is FlashAttention 2, which the package flash-attn would not improve on; FlashAttention 3 (package
flash_attn_3, Hopper) and 4 (flash-attn-4, Blackwell) are put in its place by torch's registry, under `varlen_attn` and
the cascade alike.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TORCH, SEGMENTS = "FlashAttention 2 of torch", "SDPA, segment by segment"
MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
BY_GENERATION = {9: ("FA3",), 10: ("FA4",)}  # major compute capability
AGREES = 2e-2  # largest difference from torch's kernel, relative to the largest value: some roundings of bf16


def choose(wanted: str, device: torch.device, dtype: torch.dtype, heads: tuple[int, int], size: int) -> str:
    """Put the fastest kernel for this device in place and return its name. Heads: of queries, of keys.

    wanted: `auto`, or `torch` for torch's own. A kernel that fails or disagrees on a small problem is taken back, and
    the name says why.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return SEGMENTS
    if _registry() is not None:
        _restore()  # what an earlier recipe of this process has put in place
    candidates = BY_GENERATION.get(torch.cuda.get_device_capability(device)[0], ()) if wanted == "auto" else ()
    refused = ""
    for name in filter(_installed, candidates):
        expected = _problem(device, dtype, heads, size)
        why = _activate(name) or _difference(expected, lambda: _problem(device, dtype, heads, size))
        if not why:
            return f"FlashAttention {name[-1]} ({MODULES[name]})"
        _restore()
        refused = f"; {name} is installed but not used: {why}"
    return TORCH + refused


def active() -> str:
    """The kernel that is in place in this process."""
    registry = _registry()
    return (registry and registry.current_flash_attention_impl()) or TORCH


def _registry() -> Any:
    """torch.nn.attention where it can change kernels (2.11 on), else None."""
    from torch.nn import attention

    return attention if hasattr(attention, "activate_flash_attention_impl") else None


def _installed(name: str) -> bool:
    try:
        return _registry() is not None and find_spec(MODULES[name]) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _activate(name: str) -> str | None:
    """What went wrong, if anything."""
    try:
        _registry().activate_flash_attention_impl(name)
    except Exception as error:
        return _said(error)
    return None


def _restore() -> None:
    registry = _registry()
    if registry.current_flash_attention_impl() is not None:
        registry.restore_flash_attention_impl()


def _difference(expected: list[Tensor], found: Any) -> str | None:
    try:
        for name, a, b in zip(("output", "dq", "dk", "dv"), expected, found(), strict=True):
            gap = float((a - b).abs().max() / a.abs().max())
            if not gap <= AGREES:
                return f"its {name} differs from torch's kernel by {gap:.1e}"
    except Exception as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__} ({next(iter(str(error).strip().splitlines()), '')[:200]})"


def _problem(device: torch.device, dtype: torch.dtype, heads: tuple[int, int], size: int) -> list[Tensor]:
    """Output and gradients (fp32) of a small pack with and without a window, by the kernel that is in place."""
    from dpeer.data.packing import build_pack
    from dpeer.data.tokenize import TokenTree
    from dpeer.model.tree_attention import varlen_attention

    tree = TokenTree(0, (0,) * 150, ((0,) * 70, (0,) * 40), (), 0, ())
    pack = build_pack([tree], [0]).to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, pack.tokens, size) for n in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes)
    out = torch.cat([varlen_attention(q, k, v, pack, None, window) for window in (None, 64)])
    gradients = torch.autograd.grad(out, (q, k, v), torch.cos(out.detach().float()).to(dtype))
    return [x.detach().float() for x in (out, *gradients)]
