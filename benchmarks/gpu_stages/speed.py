"""How much of the card a step uses, and how much memory, against the estimates of `dpeer plan`; 8B shape."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from dpeer.data.packing import build_pack
from dpeer.model import kernels
from gpu_stages import cost
from gpu_stages.facts import matmul_tflops
from gpu_stages.shapes import LLAMA_8B, TINY, record, result, shape

GOAL = 0.60
"""Hardware FLOPs utilisation of the measured ceiling, recomputation included."""
KINDS = {
    "matrix products": r"gemm|nvjet|cutlass|cublas|ampere_|sm\d\d_xmma",
    "attention": r"flash|fmha|attention",
    "index and gather": r"index|gather|scatter|sort",
    "copies": r"memcpy|memset|copy",
    "softmax": r"softmax|logsumexp|reduce",
}


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    big = device == "cuda"
    fields = LLAMA_8B if big else TINY
    sizes, ceiling = ((1024, 4096, 8192, 16384), 8192) if big else ((300, 600), 256)
    tree = record(600, (350,) * 4, fields["vocab_size"]) if big else record(60, (30,) * 3, fields["vocab_size"])
    peak = matmul_tflops(device, ceiling)
    variants = {
        "full, recompute": (cost.spec(lora=False), sizes),
        "full, recompute, head by 256": (cost.spec(lora=False, chunk=256), sizes[2:3] or sizes[:1]),
        "full, no recompute": (cost.spec(lora=False, checkpointing=False), sizes[1:3] or sizes[:1]),
        "LoRA, recompute": (cost.spec(lora=True), sizes),
    }
    lines = [f"ceiling {peak:.1f} TFLOP/s; HFU is of it (goal {GOAL} from 8k tokens; 0.45 is usual for eager models)"]
    rows: list[dict[str, Any]] = []
    card, known = torch.device(device), shape(fields)
    fused = kernels.choose("auto", card, known, torch.bfloat16)
    lines.append(f"layers with Liger: {fused}")
    if fused.startswith("Liger"):
        variants |= {
            f"{name}, Liger": (variants[name][0], sizes[2:3]) for name in ("full, recompute", "LoRA, recompute")
        }
    for name, (chosen, tokens) in variants.items():
        kernels.choose("liger" if name.endswith("Liger") else "eager", card, known, torch.bfloat16)
        with cost.model(fields, device, chosen) as lm:
            for size in tokens:
                trees = [tree] * max(1, round(size / (len(tree.prompt) + sum(map(len, tree.responses)))))
                try:
                    found = cost.measure(lm, trees, device, chosen)
                except torch.OutOfMemoryError as error:
                    lines.append(f"{name}, {size} tokens: {str(error).splitlines()[0][:160]}")
                    torch.cuda.empty_cache()
                    continue
                expected = cost.predicted(fields, chosen, tree, found.tokens)
                row = {"variant": name, "tokens": found.tokens, "seconds": found.seconds, "peak": found.peak}
                row |= {"hfu": found.flops / found.seconds / peak / 1e12, "predicted": expected}
                row["reserved_share"] = found.reserved / max(1, found.peak)
                rows.append(row)
                lines.append(
                    f"{name}, {found.tokens} tokens: {found.seconds * 1e3:.0f} ms, {found.tokens / found.seconds:.0f} "
                    f"tokens/s, HFU {row['hfu']:.2f}; peak {found.peak / 2**30:.1f} GiB, plan {expected / 2**30:.1f} "
                    f"({found.peak / expected:.2f}), reserved / allocated {row['reserved_share']:.2f}"
                )
            if big and name == "full, recompute":
                shares = profile(lm, [tree] * 4)
                lines.append("of one step: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
    return result(None, lines, ceiling=peak, rows=rows)


def profile(lm: Any, trees: list[Any]) -> dict[str, float]:
    """Shares of the time of one step, by kind of kernel."""
    pack = build_pack(trees, range(len(trees))).to("cuda")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.profiler.profile(activities=activities) as found:
        start.record()
        lm(pack).sum().backward()
        end.record()
        torch.cuda.synchronize()
    whole = start.elapsed_time(end) * 1e3  # microseconds
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.key.lower()
            spent[next((k for k, words in KINDS.items() if re.search(words, name)), "elementwise")] += (
                event.self_device_time_total
            )
    syncs = sum(e.count for e in found.key_averages() if "Synchronize" in e.key)
    print(found.key_averages().table(sort_by="self_device_time_total", row_limit=40))
    print(f"{syncs} synchronisations")
    return {k: v / whole for k, v in spent.most_common()} | {"idle": max(0.0, 1 - sum(spent.values()) / whole)}
