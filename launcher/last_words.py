"""What a worker wrote on stderr before its end: Ray keeps it on the worker's node, in a folder soon deleted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LINES = 200
MOST_BYTES = 2**17
ANSWER_S = 20.0


def stderr_file() -> str:
    """The file behind this process's stderr; empty where it is none."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return path if os.path.isfile(path) else ""


def tail(path: str) -> str:
    """The last LINES lines of a file, without Ray's own marks; empty where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - MOST_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if not line.startswith((":job_id:", ":actor_name:"))]
    return "\n".join(lines[-LINES:])


def last_lines(places: Sequence[tuple[str, str]]) -> list[str]:
    """The tail of each (Ray's node id, file); empty where the node is gone or does not answer in time."""
    here = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    asked = {place: _ask(*place) for place in places if place[1] and place[0] != here}
    if asked:
        wait(list(asked.values()), len(asked), ANSWER_S)
    return [_answer(asked[place]) if place in asked else tail(place[1]) for place in places]


def wait(refs: list[Any], count: int, timeout_s: float) -> tuple[list[Any], list[Any]]:
    """ray.wait, which wraps what a signal handler raises meanwhile in a SystemError; it is unwrapped here."""
    try:
        done, pending = ray.wait(refs, num_returns=count, timeout=timeout_s)
    except SystemError as error:
        raise (error.__cause__ or error) from None
    return done, pending


def _ask(node: str, path: str) -> ray.ObjectRef[str]:
    on = NodeAffinitySchedulingStrategy(node, soft=False)
    reader = ray.remote(num_cpus=0, max_retries=0)(tail)
    return reader.options(scheduling_strategy=on).remote(path)


def _answer(reference: ray.ObjectRef[str]) -> str:
    try:
        return str(ray.get(reference, timeout=0))
    except Exception:  # whatever it is: the reason of the end is told without these lines
        return ""
