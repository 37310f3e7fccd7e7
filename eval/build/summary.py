"""What became of a build, for the terminal."""

from __future__ import annotations

from rich.console import Console

from dpeer.escape import markup
from dpeer.eval.build.build import Built
from dpeer.eval.build.spec import JOIN, SPLITS

SHOWN = 10
"""Reasons for dropped records."""


def show(built: Built, console: Console) -> None:
    """Records per split, what was dropped and why, and where records are missing."""
    for split in SPLITS:
        counts = [len(ones) for (s, _), ones in built.records.items() if s == split]
        if counts:
            console.print(f"{split}: {sum(counts):,} records in {len(counts):,} masks ({min(counts)} to {max(counts)})")
    for stage, statuses in built.texts.groupby("stage", sort=False)["status"]:
        counted = ", ".join(f"{n:,} {status}" for status, n in statuses.value_counts().items())
        console.print(f"{stage}: {len(statuses):,} written so far ({counted})")
    for reason, count in built.left_out.items():
        console.print(f"seeds left out: {count:,} ({reason})")
    if built.dropped:
        console.print(f"dropped: {len(built.dropped):,} records")
        for (stage, kind), count in list(built.drops.items())[:SHOWN]:
            console.print(f"  {count:,} {markup(stage)}: {markup(kind)}", soft_wrap=True)
        if (more := len(built.drops) - SHOWN) > 0:
            console.print(f"  ... and {more} more reasons, in dropped.csv")
    for (split, mask), (there, wanted) in built.short.items():
        console.print(
            f"[yellow]short:[/] {split} {JOIN.join(mask)}: {there} of {wanted}; give more seeds, or raise `spare`"
        )
