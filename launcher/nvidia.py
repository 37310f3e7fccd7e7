"""What nvidia-smi says of this machine's GPUs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FIELDS = (
    "index",
    "name",
    "driver_version",
    "memory.total",
    "memory.free",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.active",
)
SLOWED = {
    0x08: "hardware slowdown",
    0x20: "too hot (driver)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that are no normal operation; idling and the power cap are."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU. Memory in MiB; None where the card does not tell, as in shared-memory designs."""

    index: int
    name: str
    driver: str
    total: int | None
    free: int | None
    uncorrected: int
    slowed: tuple[str, ...]


def cards() -> tuple[Card, ...]:
    """The GPUs that answer; a lost card is told by nvidia-smi in words, and is not among them."""
    return tuple(_parsed(_ask(FIELDS).splitlines()))


def gpus() -> tuple[str, ...]:
    """Name and memory of each."""
    return tuple(line for line in _ask(("name", "memory.total"), "").splitlines() if ", " in line)


def _ask(fields: Sequence[str], units: str = ",nounits") -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, f"--query-gpu={','.join(fields)}", f"--format=csv,noheader{units}"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs: no card answers
        return ""


def _parsed(lines: Sequence[str]) -> Iterator[Card]:
    for line in lines:
        values = [value.strip() for value in line.split(", ")]
        if len(values) == len(FIELDS) and values[0].isdigit():
            index, name, driver, total, free, uncorrected, reasons = values
            bits = int(reasons, 16) if reasons.startswith("0x") else 0
            slowed = tuple(words for bit, words in SLOWED.items() if bits & bit)
            yield Card(int(index), name, driver, _number(total), _number(free), _number(uncorrected) or 0, slowed)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def driver_line(found: Sequence[Card]) -> str:
    return ", ".join(sorted({card.driver for card in found})) or "unknown: nvidia-smi does not tell"


def used(found: Sequence[Card], share: float) -> list[str]:
    """GPUs of which others hold more than `share` of the memory, in words."""
    known = [(card, card.total, card.free) for card in found if card.total and card.free is not None]
    return [
        f"GPU {card.index} has {free / 1024:.1f} of {total / 1024:.1f} GiB free"
        for card, total, free in known
        if free < (1 - share) * total
    ]


def ailing(found: Sequence[Card]) -> list[str]:
    """GPUs that run slowed down or have lost data, in words."""
    slow = [f"GPU {card.index} is slowed: {', '.join(card.slowed)}" for card in found if card.slowed]
    lost = [f"GPU {c.index} has had {c.uncorrected} uncorrectable memory errors" for c in found if c.uncorrected]
    return slow + lost
