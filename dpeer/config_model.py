"""The model of a recipe: where it lies, how it is computed and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dpeer.section import Place, Positive, Section


class Lora(Section):
    rank: int = Field(16, ge=1)
    """LoRA rank r."""
    alpha: Positive = 32.0
    """LoRA scale numerator: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names that receive adapters."""


class Model(Section):
    path: Place
    """Local folder or hub id of the model to train; also the reference unless `reference_path` is given."""
    revision: str | None = None
    """Hub revision (commit) of the model."""
    reference_path: Place | None = None
    """Frozen reference model; default: the same weights as `path`."""
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
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    layout: Literal["auto", "tree", "sequences"] = "auto"
    """How records reach the model: as trees, each prompt computed once, or as separate sequences, which costs more and
    is exact for every causal model. `auto`: trees where they are exact, which is tried on a small model of the same
    architecture."""
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

    @property
    def reference_is_base(self) -> bool:
        """The reference is the model that training starts from."""
        return self.reference == (self.path, self.revision)
