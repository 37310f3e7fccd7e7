"""Whether the ranks of a run hold the same data and weights, and compute with the same means. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpeer.errors import ClusterError

MOST = 4  # ranks that are named


def refuse_other_facts(name: str, facts: dict[str, Any], expected: dict[str, Any]) -> None:
    """ClusterError when a worker has loaded other data or weights than rank 0."""
    for key, value in expected.items():
        if facts.get(key) != value:
            raise ClusterError(
                f"{name} holds another {key} than policy rank 0: {facts.get(key)} instead of {value}. All nodes must "
                "see the same files: use a shared file system, or the same hub revision (model.revision) everywhere."
            )


def refuse_other_means(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """ClusterError where ranks compute attention or layers by different kernels, so that their numbers differ; a line
    where their GPUs or libraries do. `summaries`: what ranks say of themselves when they are built, by name."""
    for key, what, fix in (("attention", "attention", "flash=torch"), ("kernels", "layers", "kernels=eager")):
        kinds = _hosts(summaries, key)
        if len(kinds) > 1:
            raise ClusterError(
                f"ranks compute {what} by different kernels: {_told(kinds)}. Use GPUs of one kind and install the same "
                f"packages everywhere, or take what all have: model.{fix}."
            )
    kinds = _hosts(summaries, "numerics")
    if len(kinds) > 1:
        print(f"warning: ranks differ in what they compute with, so their last digits may: {_told(kinds)}.", flush=True)


def _hosts(summaries: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, list[str]]:
    """Ranks with their hosts by what they compute with; why a kernel is not used is no difference."""
    kinds: dict[str, list[str]] = {}
    for name, summary in summaries.items():
        value = summary["means"][key]
        value = value.split(";")[0] if isinstance(value, str) else ", ".join(value)
        kinds.setdefault(value, []).append(f"{name} ({summary['host']})")
    return kinds


def _told(kinds: Mapping[str, Sequence[str]]) -> str:
    more = {value: f" and {len(names) - MOST} more" if len(names) > MOST else "" for value, names in kinds.items()}
    return "; ".join(f"{value} on {', '.join(names[:MOST])}{more[value]}" for value, names in kinds.items())
