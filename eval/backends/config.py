"""Config of whoever answers: a served model, its engine, and how engines are spread over a cluster."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dpeer.config import LONGEST_NAME, Positive, Section

OWN = frozenset({"model", "messages", "stream", "stream_options", "n", "logprobs", "tools", "functions", "seed"})
"""Keys of a request without which its answer would not be the planned one."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Engine(Section):
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where vLLM runs; auto: GPU if the cluster has one. The environment variable DPEER_DEVICE overrides it."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of weights and activations."""
    max_model_len: int = Field(8192, ge=32)
    """Longest prompt plus output, in tokens; longer conversations get the status `truncated`."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences that one engine works on at once."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per engine."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of GPU memory that an engine may take."""
    eager: bool | None = None
    """GPU: leave out compiled code and captured graphs; default: where one token is read (mode logprob). Results may
    differ by rounding from those with them; recorded with each rating, which keeps its id."""
    cpu_cache_gib: int = Field(1, ge=1)
    """KV cache per engine on CPU, in GiB."""
    batch_invariant: bool = False
    """Ask vLLM for results that do not depend on the batch (slower, GPU); recorded with each rating."""


class Served(Section):
    """A language model that answers or judges."""

    name: str = Field(pattern=NAME, max_length=LONGEST_NAME)
    """Short name in tables and reports."""
    path: str
    """Local folder or hub id; with backend `openai` the model name that the server knows."""
    revision: str | None = None
    """Hub revision (commit)."""
    adapter: str | None = None
    """Folder of a LoRA adapter on top of `path`."""
    family: str | None = None
    """Model family (e.g. llama); default: the model type of its config, or of a name that tells it."""
    backend: str = "vllm"
    """Who runs it: `vllm` on Ray, `openai` (any compatible endpoint), `openai-batch` (files of requests, for half the
    price, within a day), or another name of `backends.registry`."""
    base_url: str | None = None
    """openai: address of the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: name of the environment variable that holds the key."""
    request: dict[str, Any] = Field(default_factory=dict)
    """openai: what else every request says, e.g. {reasoning_effort: low}; has the last word, null leaves a key out."""
    reasoning_budget: int = Field(0, ge=0)
    """openai: tokens for thoughts, on top of the answer's limit (not in mode logprob, which reads the first token)."""
    engine: Engine | None = None
    """Settings of this model's engine; default: the common ones."""

    @field_validator("base_url")
    @classmethod
    def _no_credentials(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url holds more than an address (user:password@, ?key=... or #...), which would be printed and "
                "become part of the ids of rows. Give the bare address, e.g. https://host/v1, and the key in the "
                "environment variable that api_key_env names"
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise PydanticCustomError(
                "key_name",
                "api_key_env is no name of an environment variable (and is not shown here: it may be the key itself). "
                "Put the key into a variable, e.g. export MY_KEY=..., and give its name",
            )
        return name

    @field_validator("request")
    @classmethod
    def _no_protocol(cls, request: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OWN & request.keys()):
            raise ValueError(f"request: {taken[0]} is dpeer's own to say; leave it out")
        if any(re.search(r"api.?key|authorization|password|secret|^token$", key, re.I) for key in request):
            raise PydanticCustomError(
                "key_in_request",
                "request holds what looks like a key; it would be printed and stored. Put it into the environment "
                "variable that api_key_env names",
            )
        return request


class Farm(Section):
    backend: Literal["auto", "actors", "ray_data"] = "auto"
    """How vLLM runs on Ray: plain actors, or Ray Data LLM; auto: Ray Data from 20,000 calls on."""
    replicas: int | None = Field(None, ge=1)
    """Engines per model that run at once; default: one on CPU, as many as free GPUs allow on GPU."""
    conversations_per_task: int | None = Field(None, ge=1)
    """Conversations that an engine gets at once; finished ones are on disk before the next are sent. Default: 64 on
    CPU, 512 on GPU, where an engine works on many at once and waits for the last ones of each task."""
    address: str | None = None
    """Address of a running Ray cluster; default: a private one on this machine (or RAY_ADDRESS)."""
    timeout_s: Positive = 1800.0
    """Longest wait for one task, in seconds, before its engine is declared dead."""
    max_restarts: int = Field(3, ge=0)
    """Engine restarts before the farm gives up."""
