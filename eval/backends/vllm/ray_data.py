"""The calls of one model through Ray Data LLM: streaming over many engines, for jobs of tens of thousands of calls."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dpeer.errors import ClusterError
from dpeer.eval.backends import config
from dpeer.eval.backends.types import Answer, Job
from dpeer.eval.backends.vllm.engine import (
    context_length,
    eager,
    encode,
    engine_kwargs,
    environment,
    opening,
    rating_ids,
    room,
    sampling,
    too_long_reason,
    vllm_version,
)
from dpeer.eval.backends.vllm.farm import Node, Task, check_feasible, conversations, per_task, replicas, resources

ERROR = "__inference_error__"  # rows that carry it pass Ray's engine stage untouched
TOO_LONG = "too long: "
KEPT = ("id", "finish", "text", "prompt_tokens", "output_tokens", "engine")
TOKENIZING = 0.1
"""Cores that a tokenizing task claims; an engine leaves as much, so that the two never wait for each other."""


def answers(
    job: Job, tasks: Iterable[Task], spec: config.Farm, free: Sequence[Node] | None = None
) -> Iterator[list[Answer]]:
    """Answers, block by block as they finish. A conversation is one input row, so it stays on one engine.

    What is not yet handed out is lost with the driver and asked for again by the next run. Engines that die are
    replaced by Ray Data, each at most max_restarts times, and their blocks sent again. vLLM's count of cached tokens
    does not come through. Raises ClusterError as `Farm.run` does, and when nothing has come for timeout_s.
    """
    rows = [{"calls": conversation} for task in tasks for conversation in conversations(task)]
    wanted = resources(job, free)
    engines = min(replicas(spec, job, free), max(1, len(rows)))
    check_feasible(engines, wanted, job.served.name)

    def answered() -> Any:
        requests = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // per_task(spec, job, engines)))
        tokens = requests.flat_map(lambda row: _requests(job, row["calls"]), num_cpus=TOKENIZING)
        return _processor(job, spec, wanted, engines)(tokens)

    try:
        for block in blocks(answered, spec.timeout_s):
            yield [_answer(row, eager(job)) for row in block.to_pylist()]
    except RayError as error:
        raise _given_up(job, error) from error
    except Silence:
        raise ClusterError(
            f"{job.served.name}: the engines of Ray Data gave no sign for {spec.timeout_s:g} s (farm.timeout_s). What "
            "was finished is saved: run the same command again to go on. With the same end again, farm.backend=actors "
            "replaces a silent engine and finds the conversation that silences it."
        ) from None


class Silence(Exception):
    """Nothing has come for too long."""


def blocks(dataset: Callable[[], Any], limit_s: float) -> Iterator[Any]:
    """The blocks of a dataset as they finish; Silence when none comes for so long, in seconds.

    The time in which the caller is busy with a block does not count.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    since = [time.monotonic()]

    class Watch(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:
            if time.monotonic() - since[0] > limit_s:
                raise Silence

    with _quiet(Watch):
        for block in dataset().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            since[0] = math.inf
            yield block
            since[0] = time.monotonic()


@contextmanager
def _quiet(watch: type) -> Iterator[None]:
    """Ray Data with a watch over each step, and without its own progress lines: ours say the same."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(watch)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        context.custom_execution_callback_classes.remove(watch)
        logger.setLevel(before[1])


def _given_up(job: Job, error: RayError) -> ClusterError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause or error).strip().splitlines() if line.strip()]
    return ClusterError(
        f"{job.served.name}: Ray Data gave up ({(lines or ['no reason'])[-1][:300]}). What was finished is saved: run "
        "the same command again to go on, or with farm.backend=actors to see the engine's own error."
    )


def _requests(job: Job, calls: Task) -> list[dict[str, Any]]:
    """A conversation's calls in tokens. One that is too long is marked, so that no engine sees it."""
    tokenizer = _tokenizer(job.served.path, job.served.revision)
    ratings, longest = rating_ids(job.method, tokenizer), context_length(job)
    opens = opening(job.method, tokenizer)
    rows = []
    for call in calls:
        ids = encode(tokenizer, call, job.method)
        fits = room(job.method, len(ids), longest) > 0
        rows.append(
            {
                "id": call.id,
                "prompt_tokens": len(ids),
                "tokenized_prompt": ids if fits else ids[:1],
                "limit": room(job.method, len(ids), longest),
                "eos": tokenizer.eos_token_id,
                "ratings": list(ratings),
                "opens": opens,
                "sampling_params": sampling(job.method, ratings, call, len(ids), longest),
                ERROR: "" if fits else TOO_LONG + too_long_reason(len(ids), longest),
            }
            | ({"model": job.served.adapter} if job.served.adapter else {})
        )
    return rows


@lru_cache(maxsize=2)
def _tokenizer(path: str, revision: str | None) -> Any:
    from dpeer.model.lm import load_tokenizer

    return load_tokenizer(path, revision)


def _processor(job: Job, spec: config.Farm, wanted: dict[str, float], engines: int) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    kwargs = {k: v for k, v in engine_kwargs(job).items() if k != "model"}
    stages = {"chat_template_stage": False, "tokenize_stage": False, "detokenize_stage": False}
    processor = vLLMEngineProcessorConfig(
        model_source=job.served.path,
        engine_kwargs=kwargs,
        runtime_env={"env_vars": environment(job)},
        concurrency=engines,
        batch_size=job.settings.max_num_seqs,
        placement_group_config={"bundles": [wanted | {"CPU": wanted["CPU"] - TOKENIZING}]},
        should_continue_on_error=True,
        log_engine_metrics=False,
        **stages,
    )
    light = {"num_cpus": TOKENIZING}
    built = build_processor(
        processor,
        preprocess=lambda row: row,
        postprocess=_kept,
        preprocess_map_kwargs=light,
        postprocess_map_kwargs=light,
    )
    limits = {"max_restarts": spec.max_restarts, "max_task_retries": spec.max_restarts}  # Ray's own are infinite
    built.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(limits)
    return built


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """What an answer needs of a row that went through the engine."""
    tokens = list(row["generated_tokens"])
    cut = len(tokens) >= row["limit"] and tokens[-1] != row["eos"]
    first = row["logprobs"][0] if len(row["ratings"]) else {}
    return {
        "id": row["id"],
        "finish": "length" if cut else "stop",
        "text": row["opens"] + row["generated_text"],
        "logprobs": [float(first[token]["logprob"]) for token in row["ratings"]],
        "prompt_tokens": row["prompt_tokens"],
        "output_tokens": len(tokens),
        "engine": vllm_version(),
    }


def _answer(row: dict[str, Any], eager: bool) -> Answer:
    if not row[ERROR]:
        return Answer(**{name: row[name] for name in KEPT}, logprobs=tuple(row["logprobs"]), eager=eager)
    finish = "too_long" if row[ERROR].startswith(TOO_LONG) else "error"
    return Answer(row["id"], finish, error=row[ERROR], prompt_tokens=row["prompt_tokens"])
