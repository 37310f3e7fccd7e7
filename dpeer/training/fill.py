"""The reference cache is filled: by the policy before its first step where that is the reference, so that the weights
are loaded once, else by workers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpeer.config import Config
from dpeer.files import SILENT_S, clear_temporary
from dpeer.training.agreement import refuse_other_facts
from dpeer.training.calls import PolicyCalls, Ranks, ReferenceCalls, Scores, Workers, merge
from dpeer.training.prepare import Prepared, prepare
from dpeer.training.reference import cache_path, uncached, write_cache

CACHE_SLICE = 128  # records per rank and call
Score = Callable[[Any, str, int, int], Scores]


def fill_cache(config: Config, workers: Workers) -> None:
    """Compute the reference log-probs that the cache lacks by reference workers, which are freed then."""
    prepared = prepare(config)
    if paths := _lacking(config, prepared):
        workers.close()  # policy workers of an earlier run would hold the places
        group = workers.reference()
        refuse_other_facts("the reference group", group.build(config)["facts"], prepared.facts)
        _fill(paths, prepared, group, ReferenceCalls.score_split)
        workers.close()


def fill_cache_by_policy(config: Config, policy: Ranks, facts: dict[str, Any]) -> None:
    """The same by a policy that has been built, with these facts, and has loaded no checkpoint."""
    prepared = prepare(config)
    if paths := _lacking(config, prepared):
        refuse_other_facts("the driver", prepared.facts, facts)
        _fill(paths, prepared, policy, PolicyCalls.score_start)


def _lacking(config: Config, prepared: Prepared) -> Mapping[str, Path]:
    """The file of each split that is yet to be scored."""
    paths = {name: cache_path(config, data) for name, data in prepared.splits.items()}
    for pattern in (".*.tmp", "tmp*"):  # names of this and of earlier versions; runs of one output_dir share the cache
        clear_temporary(paths["train"].parent, pattern, SILENT_S)
    if lacking := uncached(paths, prepared.splits):
        print(f"{config.name}: computing the reference log-probabilities", flush=True)
    return {name: paths[name] for name in lacking}


def _fill(paths: Mapping[str, Path], prepared: Prepared, group: Ranks, method: Score) -> None:
    for name, path in paths.items():
        write_cache(path, _scored(group, method, name, len(prepared.splits[name].trees)))


def _scored(group: Ranks, method: Score, name: str, records: int) -> Iterator[list[float]]:
    """In slices: ranks that compute by themselves wait for the slowest after each, not for hours in the end."""
    size = CACHE_SLICE * group.size
    for start in range(0, records, size):
        stop = min(start + size, records)
        yield from merge(group.call("filling the reference cache", method, name, start, stop), stop - start)
