"""Calls to answers on disk: one model after another, each through its backend, every call written exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpeer.errors import ClusterError
from dpeer.eval import config
from dpeer.eval.backends.engine import Answer, Call, Job, Method, choose_device
from dpeer.eval.progress import Meter
from dpeer.files import write_json

if TYPE_CHECKING:
    from dpeer.eval.backends.farm import Farm

Connect = Callable[[], AbstractContextManager[Any]]
RAY_DATA_FROM = 20_000
"""Calls of one model from which farm.backend = auto takes Ray Data."""
RATES = "rates.json"


@dataclass(frozen=True, slots=True)
class Work:
    """The calls of one model that are still to be answered, conversation by conversation; `write` keeps answers."""

    served: config.Served
    method: Method
    ids: frozenset[str]
    calls: Callable[[], Iterator[Call]]
    write: Callable[[Sequence[Answer]], None]
    done: int = 0
    """Rows of this model that are on disk already."""


def execute(
    cfg: config.EvalConfig, works: Sequence[Work], connect: Connect, folder: Path, console: Console | None = None
) -> None:
    """Answer and write all calls. Ray is entered (`connect`) only when a vLLM model has calls left.

    Raises ClusterError when engines cannot be had; all that was finished before is on disk.
    """
    console = console or Console(highlight=False)
    works = [w for w in works if w.ids]
    with ExitStack() as stack:
        farm: Farm | None = None
        for work in works:
            if work.served.backend == "vllm" and farm is None:
                stack.enter_context(connect())
                from dpeer.eval.backends.farm import Farm

                farm = stack.enter_context(Farm(cfg.farm, lambda line: console.print(line, soft_wrap=True)))
            _execute_one(cfg, work, farm, folder, console)


def _execute_one(cfg: config.EvalConfig, work: Work, farm: Farm | None, folder: Path, console: Console) -> None:
    served = _placed(work.served)
    job = Job(served, settings_of(cfg, served), work.method, _device(cfg, served))
    pending = set(work.ids)
    tokens: int | None = 0
    began = time.monotonic()
    with Meter(console, work.served.name, work.done + len(pending), work.done) as meter:
        for answers in _answers(cfg, job, work, farm):
            fresh = [a for a in answers if a.id in pending]
            pending -= {a.id for a in fresh}
            work.write(fresh)
            meter.advance(len(fresh))
            tokens = _added(tokens, fresh)
    if pending:
        raise ClusterError(
            f"{work.served.name}: {len(pending)} of {len(work.ids)} calls came back without an answer; the others are "
            "saved. Run the same command again to ask for these."
        )
    _save_rate(folder / RATES, work, tokens, time.monotonic() - began)


def _added(tokens: int | None, answers: Sequence[Answer]) -> int | None:
    """With the tokens that these answers took to compute; None when a backend does not tell which were cached."""
    for answer in answers:
        if answer.cached_tokens is None and answer.finish in ("stop", "length"):
            return None
        if tokens is not None:
            tokens += (answer.prompt_tokens or 0) - (answer.cached_tokens or 0) + answer.output_tokens
    return tokens


def settings_of(cfg: config.EvalConfig, served: config.Served) -> config.Engine:
    return served.engine or cfg.engine


def _placed(served: config.Served) -> config.Served:
    """The same with whole paths: an engine may run in another folder than the person who named it."""
    if served.backend == "openai":
        return served
    places = {"path": served.path, "adapter": served.adapter}
    whole = {key: str(Path(place).resolve()) for key, place in places.items() if place and Path(place).is_dir()}
    return served.model_copy(update=whole)


def _device(cfg: config.EvalConfig, served: config.Served) -> Any:
    if served.backend == "openai":
        return "cpu"
    import ray

    return choose_device(settings_of(cfg, served), ray.cluster_resources().get("GPU", 0))


def _answers(cfg: config.EvalConfig, job: Job, work: Work, farm: Farm | None) -> Iterator[list[Answer]]:
    per_task = cfg.farm.conversations_per_task
    if job.served.backend == "openai":
        from dpeer.eval.backends import endpoint as openai_backend

        return openai_backend.answers(job, work.calls(), min(openai_backend.TIMEOUT_S, cfg.farm.timeout_s))
    from dpeer.eval.backends.farm import tasks_of

    assert farm is not None
    tasks = tasks_of(work.calls(), per_task)
    if backend_of(cfg.farm, len(work.ids)) == "actors":
        return farm.run(job, tasks)
    from dpeer.eval.backends import ray_data

    farm.make_room()
    return ray_data.answers(job, tasks, cfg.farm)


def backend_of(spec: config.Farm, calls: int) -> str:
    if spec.backend != "auto":
        return spec.backend
    return "ray_data" if calls >= RAY_DATA_FROM else "actors"


def _save_rate(path: Path, work: Work, tokens: int | None, seconds: float) -> None:
    """Remember how fast this model answered, for the next plan."""
    rates = read_rates(path.parent)
    rates[f"{work.served.name}/{work.method.mode}"] = {
        "calls": len(work.ids),
        "tokens": tokens,
        "seconds": round(seconds, 3),
    }
    write_json(path, rates)


def read_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """Measured calls, computed tokens (None: unknown) and seconds per model/mode of earlier runs in this folder."""
    path = folder / RATES
    return dict(json.loads(path.read_text())) if path.exists() else {}
