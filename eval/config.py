"""The strict, frozen config tree of an evaluation: which models answer what, and who judges it how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dpeer.config import NonNegative, Positive, Section

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

    name: str = Field(pattern=NAME)
    """Short name in tables and reports."""
    path: str
    """Local folder or hub id; with backend `openai` the model name that the server knows."""
    revision: str | None = None
    """Hub revision (commit)."""
    adapter: str | None = None
    """Folder of a LoRA adapter on top of `path`."""
    family: str | None = None
    """Model family (e.g. llama); default: the model type of its config, or of a name that tells it."""
    backend: Literal["vllm", "openai"] = "vllm"
    """vLLM on Ray, or any OpenAI-compatible endpoint."""
    base_url: str | None = None
    """openai: address of the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: name of the environment variable that holds the key."""
    engine: Engine | None = None
    """Settings of this model's engine; default: the common ones."""

    @model_validator(mode="after")
    def _endpoint(self) -> Served:
        if self.backend == "openai" and not self.base_url:
            raise ValueError(f"{self.name}: backend openai needs base_url, the address of the endpoint")
        return self


class Prompts(Section):
    path: str = ""
    """Hub id, file (CSV, JSONL, Parquet) or folder: PersonaKnob form, XSTest prompts, or anything with a prompt."""
    prompt: str = "prompt"
    """Column with the prompt."""
    id: str | None = None
    """Column with a stable id; default: a hash of the prompt."""
    limit: int | None = Field(None, ge=1)
    """Use this many prompts only, chosen by the seed."""


class Generation(Section):
    samples: int = Field(1, ge=1)
    """Responses per model and prompt."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling mass."""
    max_tokens: int = Field(1024, ge=1)
    """Longest response, in tokens; a longer one is cut and marked."""
    system: str | None = None
    """System message before each prompt."""


class Judging(Section):
    rubric: str = "persona"
    """Name of a shipped rubric, or path of a YAML file."""
    dimensions: tuple[str, ...] = ()
    """Dimensions to rate; empty: all of the rubric."""
    mode: Literal["logprob", "structured"] = "logprob"
    """Read the log-probability of each rating token, or a JSON answer with a rationale."""
    score: Literal["most_likely", "sampled"] = "most_likely"
    """logprob: take the most probable score, or draw one from the judge's distribution (seeded by the rating's id)."""
    repeats: int = Field(1, ge=1)
    """Ratings per judge, response and criterion; every second one lists the scale from the top."""
    min_mass: float = Field(0.5, ge=0, le=1)
    """Least probability on the rating tokens; less gives the status `low_mass`."""
    max_tokens: int = Field(512, ge=8)
    """structured: longest answer with its rationale, in tokens."""
    allow_related: bool = False
    """Allow a judge that is the model under test or of its family; its ratings are marked for self-preference."""


class Design(Section):
    kind: Literal["full", "linked"] = "full"
    """Every judge rates everything, or a sparse design that links all judges."""
    anchors: int = Field(20, ge=0)
    """linked: prompts that every judge rates for every model."""
    judges_per_response: int = Field(2, ge=1)
    """linked: judges of each response outside the anchor set."""


class Farm(Section):
    backend: Literal["auto", "actors", "ray_data"] = "auto"
    """How vLLM runs on Ray: plain actors, or Ray Data LLM; auto: Ray Data from 20,000 calls on."""
    replicas: int | None = Field(None, ge=1)
    """Engines per model that run at once; default: one on CPU, as many as the cluster has GPUs for on GPU."""
    conversations_per_task: int = Field(64, ge=1)
    """Conversations that an engine gets at once; finished ones are on disk before the next are sent."""
    address: str | None = None
    """Address of a running Ray cluster; default: a private one on this machine (or RAY_ADDRESS)."""
    timeout_s: Positive = 1800.0
    """Longest wait for one task, in seconds, before its engine is declared dead."""
    max_restarts: int = Field(3, ge=0)
    """Engine restarts before the farm gives up."""


class EvalConfig(Section):
    name: str = Field(pattern=NAME)
    """Name of the evaluation; its folder is output_dir/name."""
    output_dir: Path = Path("runs/eval")
    """Folder of all evaluations."""
    seed: int = Field(0, ge=0)
    """Seed of sampling, item order and the linked design."""
    prompts: Prompts = Prompts()
    models: tuple[Served, ...] = ()
    """Models under test."""
    base: str | None = None
    """Name of the model that the others are compared with; default: the first."""
    generation: Generation = Generation()
    responses: Path | None = None
    """Judge these responses (JSONL, CSV, Parquet) instead of those that `dpeer generate` wrote."""
    judges: tuple[Served, ...] = ()
    """Judge models."""
    judging: Judging = Judging()
    design: Design = Design()
    engine: Engine = Engine()
    farm: Farm = Farm()

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @model_validator(mode="after")
    def _names_differ(self) -> EvalConfig:
        for kind in ("models", "judges"):
            names = [served.name for served in getattr(self, kind)]
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"{kind}: the name {twice[0]} is given twice; names must differ")
        if self.base is not None and self.models and self.base not in {m.name for m in self.models}:
            raise ValueError(f"base: {self.base} is not among the models")
        return self
