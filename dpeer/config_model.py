"""The model of a recipe: where it lies, how it is computed and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpeer.section import NonNegative, Place, Positive, Section


class Lora(Section):
    path: Place | None = None
    """Start from this adapter instead of a fresh one: folder or hub id of a PEFT adapter of `model.path`. Rank, alpha,
    targets, dora and rslora are its own; the reference is the model with the adapter as it is at the start."""
    revision: str | None = None
    """Hub revision (commit) of the adapter."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """LoRA rank r; default 16."""
    alpha: Positive | None = None
    """LoRA scale numerator: the update is multiplied by alpha / rank, with `rslora` by alpha / sqrt(rank); default
    32."""
    targets: tuple[str, ...] | Literal["all-linear"] | None = None
    """Module names that receive adapters; default `all-linear`: all linear layers and experts of the decoder, less
    routers and the output head."""
    dora: bool | None = None
    """Train the length of each weight's rows apart from their direction (DoRA); about twice the time of a step."""
    rslora: bool | None = None
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast (rank-stabilised LoRA)."""

    @model_validator(mode="after")
    def _defaults_of_a_fresh_adapter(self) -> Lora:
        if self.path is None and self.revision is not None:
            raise ValueError(f"revision ({self.revision}) is that of an adapter to start from, but there is no path")
        for name, value in FRESH.items():
            if self.path is None and getattr(self, name) is None:
                object.__setattr__(self, name, value)
        return self


FRESH = {"rank": 16, "alpha": 32.0, "targets": "all-linear", "dora": False, "rslora": False}
"""What an adapter has that does not start from another one."""


class Model(Section):
    path: Place
    """Local folder or hub id of the model to train; also the reference unless `reference_path` is given."""
    revision: str | None = None
    """Hub revision (commit) of the model."""
    reference_path: Place | None = None
    """Frozen reference model; default: what training starts from, which is `path`, with the adapter of `lora.path`
    where there is one. A model given here is taken as it is, without any adapter."""
    reference_revision: str | None = None
    """Hub revision (commit) of the reference; default: `revision` where the reference is `path` too, else none."""
    chat_template: Place | None = None
    """Jinja file of a chat template that takes the place of the tokenizer's, in training, samples and export."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What the chat template is asked beside messages and tools, such as `{enable_thinking: false}`; the export's
    template answers so where it is not asked otherwise."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; with bf16 the master weights and optimizer state stay fp32."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights."""
    load_in_4bit: bool = False
    """Keep the frozen linear layers below the adapters in 4 bits (QLoRA: NF4 with double quantisation, of the package
    bitsandbytes); the reference too. The export has the adapters on the 16-bit weights of `path`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    offload_activations: bool = False
    """Keep what `gradient_checkpointing` keeps, each layer's input, in the host's memory until the backward pass, which
    costs two copies over the GPU's link to its host. For long records (docs/long_context.md)."""
    mlp_tile: Annotated[int, Field(ge=1)] | None = None
    """Tokens that each dense MLP computes at once, so that its intermediate activations are those of so many alone;
    4096 or more keeps GPUs busy. Needs `gradient_checkpointing`. Experts are left as they are. None: all of a pack."""
    layout: Literal["auto", "tree", "sequences"] = "auto"
    """How records reach the model: as trees, each prompt computed once, or as separate sequences, which costs more and
    is exact for every causal model. `auto`: trees where they are exact, which is tried on a small model of the same
    architecture."""
    router_aux_loss: NonNegative = 0.0
    """Weight of the loss that keeps experts evenly used (transformers' `router_aux_loss_coef`), beside the objective; 0
    leaves it out. Costs one more forward pass per step. Not with `lora`, where routers stay as they are."""
    attention: Literal["gather", "cascade"] = "gather"
    """On GPUs in bf16: `gather` copies a prompt's keys and values once per response; `cascade` attends to the prompt
    and to own tokens apart and merges both exactly, which saves memory with many responses to long prompts. Proven on
    CPU only, so run `benchmarks/gpu.py --stages exact` on your GPU first. Layers with a window always gather."""
    flash: Literal["auto", "torch"] = "auto"
    """Kernel of attention on GPUs in bf16. `auto`: FlashAttention 3 (Hopper) or 4 (Blackwell) where it is installed,
    torch can use it and it agrees with torch's own, FlashAttention 2, on a small problem; `torch`: always that one."""
    kernels: Literal["auto", "eager", "liger"] = "auto"
    """Norms, MLP and rotary positions of the layers: `eager`, transformers' own; `liger`, fused ones of the package
    liger-kernel, on GPUs only; `auto`: these where they are installed, know the model's family and agree with
    transformers on one layer when a worker starts."""
    export_dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of the exported safetensors."""
    head_chunk: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Prediction rows per chunk of the log-prob head; memory is head_chunk x vocabulary. `auto`: 256 on CPU, 2048 on
    GPU."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # template_kwargs is a mapping, which has no hash of its own

    @property
    def reference(self) -> tuple[str, str | None]:
        """Path and revision of the reference."""
        path = self.reference_path or self.path
        return path, self.reference_revision or (self.revision if path == self.path else None)

    @model_validator(mode="after")
    def _activations_are_recomputed(self) -> Model:
        if not self.gradient_checkpointing and (self.offload_activations or self.mlp_tile):
            asked = "offload_activations moves what gradient_checkpointing keeps, and would find nothing to move"
            if not self.offload_activations:
                asked = f"mlp_tile ({self.mlp_tile}) computes tiles again in the backward pass, and so must layers be"
            raise ValueError(f"{asked}: set model.gradient_checkpointing=true, or leave it out")
        return self

    @model_validator(mode="after")
    def _frozen_weights_in_4_bits(self) -> Model:
        if self.load_in_4bit and self.lora is None:
            raise ValueError(
                "load_in_4bit is for frozen weights, and all weights are trained here: train adapters (model.lora={}), "
                "or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _trained_routers(self) -> Model:
        if self.router_aux_loss and self.lora is not None:
            raise ValueError(
                f"router_aux_loss ({self.router_aux_loss:g}) trains routers, which adapters leave as they are: set "
                "it to 0, or train all weights (model.lora=null)"
            )
        return self

    @property
    def start(self) -> Lora | None:
        """The trained adapter that training starts from."""
        return self.lora if self.lora and self.lora.path else None

    @property
    def reference_lora(self) -> Lora | None:
        """The adapter of the reference, as it is in its files."""
        return None if self.reference_path else self.start

    @property
    def reference_is_base(self) -> bool:
        """The reference is the model that training starts from."""
        return self.reference == (self.path, self.revision) and self.reference_lora == self.start

    @property
    def reference_in_policy(self) -> bool:
        """The reference is the very model that is loaded to be trained: what the policy computes before its first step,
        without adapters that were drawn for it."""
        return self.reference_is_base and self.start is None and not self.load_in_4bit

    @property
    def reference_beneath(self) -> bool:
        """The reference is what the policy computes without its adapters."""
        return self.lora is not None and self.reference == (self.path, self.revision) and self.reference_lora is None
