"""What a person sees while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dpeer.escape import markup

LINE_EVERY = 20  # steps between lines where there is no terminal


class Progress:
    """A live bar on a terminal, otherwise a line now and then: loss and multiplier per dimension, tokens/s."""

    def __init__(self, name: str, total: int, start: int) -> None:
        self.console = Console(highlight=False)
        self.total, self.name = total, name
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total, completed=start, status="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def update(self, entry: dict[str, Any], timing: Mapping[str, Any]) -> None:
        status = markup(describe(entry, timing))
        self.bar.update(self.task, completed=entry["step"], status=status)
        if not self.console.is_terminal and (entry["step"] % LINE_EVERY == 0 or entry["step"] in (1, self.total)):
            self.console.print(f"{self.name} step {entry['step']}/{self.total}  {status}", soft_wrap=True)

    def warn(self, message: str) -> None:
        self.console.print(f"[yellow]warning:[/] {markup(message)}", soft_wrap=True)


def describe(entry: dict[str, Any], timing: Mapping[str, Any]) -> str:
    """One line: loss per dimension, multipliers that are not zero, tokens per second; on GPUs their use and memory."""
    parts = [f"{d} {v['loss']:.3f}" for d, v in entry["dimensions"].items() if v["loss"] is not None]
    if not parts:
        parts = [f"NLL {entry['golden_nll']:.3f}"]
    active = [f"{name} {c['multiplier']:.2f}" for name, c in entry["constraints"].items() if c["multiplier"] > 0]
    shown = f"  λ {' '.join(active[:6])}{' …' if len(active) > 6 else ''}" if active else ""
    return f"loss {' '.join(parts)}{shown}  {timing['tokens_per_second']:,.0f} tok/s{_gpu(timing)}"


def _gpu(timing: Mapping[str, Any]) -> str:
    """Share of the GPUs' arithmetic, recomputation included, and GiB of tensors of those held; nothing on CPU."""
    hfu, taken, held = (timing.get(name) for name in ("hfu", "memory_allocated", "memory_reserved"))
    shown = f"  HFU {hfu:.0%}" if hfu else ""
    return shown + (f"  {taken / 2**30:.1f}/{held / 2**30:.1f} GiB" if taken and held else "")
