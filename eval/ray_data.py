"""The calls of one model through Ray Data LLM: streaming over many engines, for jobs of tens of thousands of calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import RayError

from dpeer.errors import ClusterError
from eval import config
from eval.engine import (
    Answer,
    Call,
    Job,
    context_length,
    encode,
    engine_kwargs,
    environment,
    rating_ids,
    refused,
    room,
    sampling,
    too_long,
)
from eval.farm import Task, check_feasible, conversations, resources

ERROR = "__inference_error__"  # rows that carry it pass Ray's engine stage untouched
TOO_LONG = "too long"
TOKENIZING = 0.1
"""Cores that a tokenizing task claims; an engine leaves as much, so that the two never wait for each other."""


def answers(job: Job, tasks: Iterable[Task], spec: config.Farm) -> Iterator[list[Answer]]:
    """Answers, block by block as they finish. A conversation is one input row, so it stays on one engine.

    What is not yet handed out is lost with the driver and asked for again by the next run. Engines that die are
    replaced by Ray Data, which sends their blocks again. vLLM's count of cached tokens does not come through.
    """
    rows = [{"calls": conversation} for task in tasks for conversation in conversations(task)]
    wanted = resources(job)
    check_feasible(spec.replicas, wanted, job.served.name)
    blocks = -(-len(rows) // spec.conversations_per_task)
    requests = ray.data.from_items(rows, override_num_blocks=blocks).flat_map(
        lambda row: _requests(job, row["calls"]), num_cpus=TOKENIZING
    )
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        answered = _processor(job, spec, wanted)(requests)
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield [_answer(job, row) for row in block.to_pylist()]
    except RayError as error:
        raise ClusterError(
            f"{job.served.name}: Ray Data gave up ({(str(error).strip().splitlines() or ['no reason'])[0][:300]}). "
            "What was finished is saved: run the same command again to go on, or with farm.backend=actors to see the "
            "engine's own error."
        ) from error
    finally:
        context.enable_progress_bars = before


def _requests(job: Job, calls: Task) -> list[dict[str, Any]]:
    """A conversation's calls in tokens. One that is too long is marked, so that no engine sees it."""
    tokenizer = _tokenizer(job.served.path, job.served.revision)
    ratings, longest = rating_ids(job.method, tokenizer), context_length(job)
    rows = []
    for call in calls:
        ids = encode(tokenizer, call, job.method)
        fits = room(job.method, len(ids), longest) > 0
        rows.append(
            {
                "id": call.id,
                "prompt_tokens": len(ids),
                "tokenized_prompt": ids if fits else ids[:1],
                "sampling_params": sampling(job.method, ratings, call, len(ids), longest),
                ERROR: "" if fits else TOO_LONG,
            }
            | ({"model": job.served.adapter} if job.served.adapter else {})
        )
    return rows


@lru_cache(maxsize=2)
def _tokenizer(path: str, revision: str | None) -> Any:
    from dpeer.model.lm import load_tokenizer

    return load_tokenizer(path, revision)


def _processor(job: Job, spec: config.Farm, wanted: dict[str, float]) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    kwargs = {k: v for k, v in engine_kwargs(job).items() if k != "model"}
    stages = {"chat_template_stage": False, "tokenize_stage": False, "detokenize_stage": False}
    processor = vLLMEngineProcessorConfig(
        model_source=job.served.path,
        engine_kwargs=kwargs,
        runtime_env={"env_vars": environment(job)},
        concurrency=spec.replicas,
        batch_size=job.settings.max_num_seqs,
        placement_group_config={"bundles": [wanted | {"CPU": wanted["CPU"] - TOKENIZING}]},
        should_continue_on_error=True,
        log_engine_metrics=False,
        **stages,
    )
    light = {"num_cpus": TOKENIZING}
    return build_processor(
        processor,
        preprocess=lambda row: row,
        postprocess=_kept,
        preprocess_map_kwargs=light,
        postprocess_map_kwargs=light,
    )


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    first = row["logprobs"][0] if row["logprobs"] is not None and len(row["logprobs"]) else {}
    return {
        "id": row["id"],
        "prompt_tokens": row["prompt_tokens"],
        "generated_text": row["generated_text"],
        "num_generated_tokens": row["num_generated_tokens"],
        "last": row["generated_tokens"][-1] if len(row["generated_tokens"]) else -1,
        "limit": row["limit"],
        "ratings": {str(token): float(found["logprob"]) for token, found in first.items()},
    }


def _answer(job: Job, row: dict[str, Any]) -> Answer:
    raise NotImplementedError
