"""vLLM on Ray, as actors or through Ray Data. Whatever needs ray, torch or vllm is imported where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dpeer.errors import DpeerError
from dpeer.eval.backends.config import Engine, Farm, Served
from dpeer.eval.backends.families import family_of_name
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.backends.vllm.identity import family_of_config, model_identity, words_hash

RAY_DATA_FROM = 20_000
"""Calls of one model from which farm.backend = auto takes Ray Data."""


class VLLM(Backend):
    """Models that are loaded here, by vLLM engines on a Ray cluster."""

    needs_ray = True
    writes_prompts = True

    def identity(self, served: Served) -> str:
        return model_identity(served)

    def conditions(self, served: Served, settings: Engine) -> dict[str, Any]:
        words = words_hash(served)
        return {"dtype": settings.dtype, "batch_invariant": settings.batch_invariant, "words": words}

    def family(self, served: Served) -> str | None:
        return family_of_config(served) or family_of_name(served.path) or family_of_name(served.name)

    def tokenizer(self, served: Served) -> Any | None:
        from dpeer.model.lm import load_tokenizer

        try:
            return load_tokenizer(served.path, served.revision)
        except (DpeerError, OSError):
            return None

    @contextmanager
    def session(self, farm: Farm, say: Say) -> Iterator[Answers]:
        import ray

        from dpeer.eval.backends.vllm import ray_data
        from dpeer.eval.backends.vllm.engine import choose_device
        from dpeer.eval.backends.vllm.farm import Farm as Engines
        from dpeer.eval.backends.vllm.farm import free_nodes, per_task, replicas, tasks_of

        free = free_nodes()
        with Engines(farm, say, free=free) as engines:

            def answers(job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
                device = choose_device(job.settings, ray.cluster_resources().get("GPU", 0))
                job = replace(job, served=with_whole_paths(job.served), device=device)
                count = replicas(farm, job, free)
                tasks = tasks_of(calls, per_task(farm, job, count))
                if runner(farm, job.count) == "actors":
                    return engines.run(job, tasks)
                engines.make_room()
                return ray_data.answers(job, tasks, farm, free)

            yield answers


def runner(farm: Farm, calls: int) -> Literal["actors", "ray_data"]:
    """What runs the engines for so many calls of one model."""
    if farm.backend != "auto":
        return farm.backend
    return "ray_data" if calls >= RAY_DATA_FROM else "actors"


def with_whole_paths(served: Served) -> Served:
    """The same with whole paths: an engine may run in another folder than the person who named it."""
    places = {"path": served.path, "adapter": served.adapter}
    whole = {key: str(Path(place).resolve()) for key, place in places.items() if place and Path(place).is_dir()}
    return served.model_copy(update=whole)


BACKENDS.register("vllm", VLLM())
