"""What is here: versions, the kernels that attention can use, and the ceilings that other stages are read against."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_stages.shapes import result

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "ray",
    "vllm",
    "trl",
    "flash-attn",
    "flash-attn-3",
    "liger-kernel",
)
FLASH = {"16 x 1k": (16, 1024), "2 x 16k": (2, 16384)}  # sequences, tokens


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"versions": versions(), "device": device}
    lines = [", ".join(f"{k} {v}" for k, v in found["versions"].items())]
    try:
        from torch.nn.attention.varlen import varlen_attn

        found["varlen_attn"] = str(inspect.signature(varlen_attn))
        lines.append(f"varlen_attn{found['varlen_attn'][:300]}")
    except ImportError as error:
        found["varlen_attn"] = None
        lines.append(f"no varlen_attn: {error}")
    if device == "cuda":
        found |= card()
        lines.append(", ".join(f"{k} {v}" for k, v in card().items()))
    size, elements = (8192, 2**30) if device == "cuda" else (256, 2**20)
    found["matmul_tflops"] = matmul_tflops(device, size)
    found["copy_tb_s"] = copy_tb_s(device, elements)
    lines.append(
        f"{size}^3 bf16 matmul {found['matmul_tflops']:.1f} TFLOP/s (H100 SXM, H200: 770 to 800), copy "
        f"{found['copy_tb_s']:.2f} TB/s (H100 3.0, H200 4.3)"
    )
    if device == "cuda":
        for name, (count, tokens) in FLASH.items():
            forward, backward = flash_tflops(count, tokens)
            found[f"flash {name}"] = {"forward": forward, "backward": backward}
            lines.append(
                f"flash attention {name}: forward {forward:.0f}, backward {backward:.0f} TFLOP/s (FA2: 350, 280)"
            )
        if found["matmul_tflops"] < 0.9 * 770 and any(n in found["name"] for n in ("H100", "H200")):
            lines.append("below 0.9 of what this card does: throttled, capped or shared; read all speeds with that")
    return result(None, lines, **found)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"CUDA": str(torch.version.cuda)}


def card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {"name": properties.name, "GiB": round(properties.total_memory / 2**30, 1)}
    found |= {"capability": torch.cuda.get_device_capability(0), "NCCL": torch.cuda.nccl.version()}
    wanted = "driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu,clocks_throttle_reasons.active"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
        found[wanted] = done.stdout.strip().splitlines()[0] if done.stdout.strip() else done.stderr.strip()[:200]
    except (OSError, subprocess.TimeoutExpired) as error:
        found["nvidia-smi"] = str(error)
    return found | {"cores": os.cpu_count()}


def timed(device: str, call: Callable[[], Any], runs: int = 10, warm: int = 3) -> float:
    """Seconds of one call, the median of `runs`."""
    for _ in range(warm):
        call()
    spent = []
    for _ in range(runs):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        spent.append(time.perf_counter() - began)
    return sorted(spent)[runs // 2]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_tflops(device: str, size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(device, lambda: a @ b) / 1e12


def copy_tb_s(device: str, elements: int) -> float:
    """Bytes read and written per second."""
    source = torch.ones(elements, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(device, lambda: target.copy_(source)) / 1e12


def flash_tflops(count: int, tokens: int, heads: int = 32, kv_heads: int = 8, width: int = 128) -> tuple[float, float]:
    """Forward and backward of the variable-length kernel, causal, as the attention of an 8B model calls it."""
    from torch.nn.attention.varlen import varlen_attn

    def some(n: int) -> torch.Tensor:
        return torch.randn(count * tokens, n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    q, k, v = some(heads), some(kv_heads), some(kv_heads)
    places = torch.arange(0, count * tokens + 1, tokens, device="cuda", dtype=torch.int32)
    asks = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def forward() -> torch.Tensor:
        return varlen_attn(q, k, v, places, places, tokens, tokens, window_size=(-1, 0), **asks)

    seconds = timed("cuda", forward)
    gradient = torch.randn_like(forward())
    both = timed("cuda", lambda: forward().backward(gradient))
    flops = 4 * heads * width * count * tokens**2 / 2
    return flops / seconds / 1e12, 2.5 * flops / (both - seconds) / 1e12
