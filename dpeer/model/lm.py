"""The language model over packs, and the loading of checkpoints that it can compute exactly."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dpeer import config
from dpeer.data.packing import Pack
from dpeer.errors import ConfigError
from dpeer.model import flash, kernels, tree_attention
from dpeer.model.families import backbone, causal_lm, family_of, refuse_unsupported
from dpeer.model.logprob import Chunk, response_sums, token_logprobs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Head(nn.Module):
    """Reads the output weight inside its own forward, so that ZeRO-3 gathers it there and releases it early."""

    def __init__(self, output: nn.Linear, chunk: Chunk) -> None:
        super().__init__()
        self._output = [output]  # in a list: the module is registered once, in the model
        self.chunk = chunk

    @property
    def weight(self) -> Tensor:
        return self._output[0].weight

    def forward(self, hidden: Tensor, targets: Tensor | None) -> Tensor:
        """Log-probability [N] of the targets after hidden states [N, H]; without targets the likeliest tokens [N]."""
        if targets is None:
            likeliest: Tensor = (hidden @ self._output[0].weight.T).argmax(-1)
            return likeliest
        return token_logprobs(hidden, self._output[0].weight, targets, self.chunk)


class TreeLM(nn.Module):
    """A causal language model whose forward maps a pack to the log-probability of each of its responses."""

    def __init__(self, model: PreTrainedModel, head_chunk: Chunk = "auto") -> None:
        super().__init__()
        self.model = model  # a PreTrainedModel, or a PeftModel around one
        self._backbone = [backbone(model)]
        self.head = Head(causal_lm(model).get_output_embeddings(), head_chunk)

    def forward(self, pack: Pack, greedy: bool = False) -> Tensor:
        """Log-probability [R] in nats (fp64 sums of fp32 tokens) of the pack's responses, end-of-turn included.

        greedy: instead the likeliest token [R] in the place of each response's last.
        """
        hidden = self._backbone[0](
            input_ids=pack.input_ids, position_ids=pack.position_ids, attention_mask=None, use_cache=False, tree=pack
        ).last_hidden_state[0]
        if greedy:
            likeliest: Tensor = self.head(hidden[pack.rows[pack.response_tokens.cumsum(0) - 1]], None)
            return likeliest
        tokens = self.head(hidden[pack.rows], pack.targets)
        return response_sums(tokens, pack.row_response, len(pack.response_tokens))

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside, a model with LoRA adapters computes what the model does that they were added to."""
        disabled: AbstractContextManager[None] = self.model.disable_adapter()
        return disabled


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    with hub_errors(path):
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)


def model_shape(path: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a model; no weights are read."""
    with hub_errors(path):
        shape: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    return shape


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A decoder layer: its class, and the parameters of it and of the output head."""

    name: str
    parameters: int
    head: int


def layer_shape(shape: PretrainedConfig) -> LayerShape:
    """Counted on the meta device."""
    family = family_of(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**family.with_layers(shape, 1)))
    layer = family.decoder_layers(model)[0]
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return LayerShape(name, sum(p.numel() for p in layer.parameters()), model.get_output_embeddings().weight.numel())


def attention_kernel(spec: config.Model, device: torch.device) -> str:
    """Choose the kernel of attention for this process, and return its name."""
    shape = model_shape(spec.path, spec.revision)
    heads = shape.num_attention_heads
    size = family_of(shape).query_width(shape) // heads
    return flash.choose(spec.flash, device, DTYPES[spec.dtype], (heads, shape.num_key_value_heads), size)


def layer_kernels(spec: config.Model, device: torch.device) -> str:
    """Choose the kernels of the layers for models that this process builds from now on, and return their name."""
    return kernels.choose(spec.kernels, device, model_shape(spec.path, spec.revision), DTYPES[spec.dtype])


def load_causal_lm(path: str, dtype: str, revision: str | None = None, attention: str = "gather") -> PreTrainedModel:
    """Weights of `path` with tree attention of that kind. Under an active HfDeepSpeedConfig they come partitioned."""
    refuse_unsupported(model_shape(path, revision), path)
    with hub_errors(path):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=tree_attention.IMPLEMENTATIONS[attention],
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model {path}: its checkpoint lacks {len(missing)} of the weights that its config.json describes, among "
            f"them {', '.join(missing[:3])}; they would start at random values. Give a complete checkpoint."
        )
    if model.get_output_embeddings().bias is not None:
        raise ConfigError(f"model {path}: its output head has a bias, which the chunked head does not compute.")
    return model


def add_lora(model: PreTrainedModel, lora: config.Lora, seed: int) -> PreTrainedModel:
    """Wrap with PEFT adapters of the model's precision; B starts at zero, so the policy starts equal to the
    reference."""
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if isinstance(targets, list):
        _refuse_targets(model, targets)
    torch.manual_seed(seed)
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
            ),
            autocast_adapter_dtype=False,  # bf16 beside a bf16 base: masters are fp32, and fp32 products cost as much
        )
    except ValueError as error:
        raise ConfigError(f"model.lora.targets = {lora.targets}: {str(error).splitlines()[0]}") from error


def _refuse_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """ConfigError for names that no module has, and for the embedding and the head: it reads the bare weight."""
    modules = dict(model.named_modules())
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    for target in targets:
        matches = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        if not matches:
            known = sorted({name.rsplit(".", 1)[-1] for name, m in modules.items() if isinstance(m, nn.Linear)})
            raise ConfigError(f"model.lora.targets: no module is named '{target}'. Linear modules: {', '.join(known)}.")
        if any(m is o for m in matches for o in outer):
            raise ConfigError(
                f"model.lora.targets: '{target}' is the embedding or the output head, which take no adapters here. "
                "Leave it out."
            )


def build_lm(spec: config.Model, seed: int, *, reference: bool = False) -> TreeLM:
    """The policy (trainable) or the reference (frozen) of a run."""
    path = spec.reference_path if reference and spec.reference_path else spec.path
    model = load_causal_lm(path, spec.dtype, spec.revision, spec.attention)
    if reference:
        return TreeLM(model.requires_grad_(False).eval(), spec.head_chunk)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if spec.lora:
        model = add_lora(model, spec.lora, seed)
    return TreeLM(model.train(), spec.head_chunk)


class hub_errors:
    """Turns transformers' loading errors into one that names the model and says what to do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        mismatch = isinstance(error, RuntimeError) and "mismatched" in str(error)
        if mismatch or (
            isinstance(error, (OSError, ValueError, SafetensorError)) and not isinstance(error, ConfigError)
        ):
            first = next((line for line in str(error).splitlines() if line.strip()), kind.__name__)
            raise ConfigError(
                f"model {self.path}: cannot be loaded ({first[:300]}). Give a local folder with config.json, "
                "safetensors and a tokenizer, or a hub id that this machine can reach."
            ) from error
