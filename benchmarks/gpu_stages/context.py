"""The longest records that one card trains on, against the budget that `dpeer plan` would give; 8B shape, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gpu_stages import cost
from gpu_stages.shapes import LLAMA_8B, TINY, record, result

WANTED = 0.95
"""Share of the predicted budget that must run."""
SPARE = 0.06
"""Of the card: what `dpeer plan` leaves to fragmentation."""


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    big = device == "cuda"
    fields, step = (LLAMA_8B, 1024) if big else (TINY, 64)
    responses = (500,) * 5 if big else (20,) * 3
    chosen = cost.spec(lora=True)
    card = torch.cuda.get_device_properties(0).total_memory - 1.5 * 2**30 if big else 20e6
    budget = longest(fields, chosen, responses, card * (1 - SPARE), step)
    lines = [f"plan: prompts of {budget} tokens with {len(responses)} responses of {responses[0]} fit"]
    rows: list[dict[str, Any]] = []
    prompts = [p for p in (16384, 32768, 65536) if p < WANTED * budget] if big else [64]
    with cost.model(fields, device, chosen) as lm:
        for prompt in [*prompts, int(WANTED * budget)]:
            tree = record(prompt, responses, fields["vocab_size"])
            try:
                found = cost.measure(lm, [tree], device, chosen, runs=1)
            except torch.OutOfMemoryError as error:
                lines.append(f"prompt {prompt}: {str(error).splitlines()[0][:160]}")
                rows.append({"prompt": prompt, "seconds": None})
                break
            rows.append({"prompt": prompt, "seconds": found.seconds, "peak": found.peak})
            lines.append(
                f"prompt {prompt}: {found.seconds:.1f} s, {found.tokens / found.seconds:.0f} tokens/s, "
                f"{found.flops / found.seconds / 1e12:.0f} TFLOP/s, peak {found.peak / 2**30:.1f} GiB"
            )
    held = rows[-1]["seconds"] is not None
    lines.append(f"{WANTED:.0%} of the plan's budget {'runs' if held else 'does NOT run'}")
    return result(held, lines, rows=rows, budget=budget)


def longest(fields: dict[str, Any], chosen: Any, responses: tuple[int, ...], usable: float, step: int) -> int:
    """Longest prompt, a multiple of `step`, whose record is predicted to fit. What a token costs depends little on the
    prompt's length, so that the estimate is made anew for each guess, and the guesses close in at once."""
    rest = sum(r - 1 for r in responses)
    prompt = 16 * step
    for _ in range(3):
        tree = record(prompt, responses, 16)
        low, high = 0, 4096
        while high - low > 1:
            middle = (low + high) // 2
            fits = cost.predicted(fields, chosen, tree, middle * step + rest) <= usable
            low, high = (middle, high) if fits else (low, middle)
        if low * step == prompt:
            break
        prompt = max(1, low) * step
    return prompt
