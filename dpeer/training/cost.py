"""What a step cost on all ranks, as a line of timing.jsonl. Pure: rows of numbers in, a row out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from dpeer.objective.rows import TimingRow

PHASES = ("reference", "forward", "backward", "dual", "exchange", "optimizer")


class StepCost(TypedDict):
    """One rank's. FLOPs are those of the whole group; FLOP/s and bytes are None without a GPU."""

    seconds: dict[str, float]
    flops: float
    """As computed, recomputation included."""
    model_flops: float
    ceiling: float | None
    """FLOP/s of a large matrix product on this GPU, measured when the rank started."""
    largest_pack: int
    prompt_tokens: int
    response_tokens: int
    responses: int
    memory_allocated: int | None
    memory_reserved: int | None
    writing: bool
    """This rank's part of a checkpoint was still being written at the end of the step."""


def cost(entry: Mapping[str, Any], ranks: Sequence[StepCost], seconds: float, waited: float) -> TimingRow:
    """Seconds of phases are means over ranks, memory is that of the rank that needs most."""
    hfu, mfu = utilisation(ranks, seconds)

    def most(name: Literal["memory_allocated", "memory_reserved"]) -> int | None:
        return max((c[name] or 0 for c in ranks), default=0) or None

    return {
        "step": entry["step"],
        "seconds": seconds,
        "tokens_per_second": entry["tokens"] / seconds,
        "reference_wait_s": waited,
        "phases": {name: sum(c["seconds"][name] for c in ranks) / len(ranks) for name in PHASES},
        "tokens_per_micro_step": entry["tokens"] / entry["packs"],
        "largest_pack": max(c["largest_pack"] for c in ranks),
        "prompt_tokens": ranks[0]["prompt_tokens"],
        "response_tokens": ranks[0]["response_tokens"],
        "responses": ranks[0]["responses"],
        "hfu": hfu,
        "mfu": mfu,
        "ceiling": ranks[0]["ceiling"],
        "memory_allocated": most("memory_allocated"),
        "memory_reserved": most("memory_reserved"),
    }


def utilisation(costs: Sequence[StepCost], seconds: float) -> tuple[float | None, float | None]:
    """(HFU, MFU) of a step: arithmetic done, and needed, over what the ranks' GPUs reach in a matrix product."""
    ceilings = [c["ceiling"] for c in costs]
    reached = sum(c for c in ceilings if c) * seconds
    if None in ceilings or not reached:
        return None, None
    return costs[0]["flops"] / reached, costs[0]["model_flops"] / reached
