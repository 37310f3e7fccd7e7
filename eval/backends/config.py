"""Config of whoever answers: a served model, its engine, and how engines are spread over a cluster."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from dpeer.config import LONGEST_NAME, Positive, Section

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
    """Who runs it: `vllm` on Ray, `openai` (any compatible endpoint), or another name of `backends.registry`."""
    base_url: str | None = None
    """openai: address of the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: name of the environment variable that holds the key."""
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
