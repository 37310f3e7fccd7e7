"""Loading of checkpoints that are computed exactly, with adapters or without."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
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
from dpeer.data.layout import Layout
from dpeer.data.round_trip import is_panic
from dpeer.errors import ConfigError, DpeerError
from dpeer.model import flash, kernels, tree_attention
from dpeer.model.families import expert_count, family_of, own_attention, refuse_unsupported
from dpeer.model.probe import layout_of
from dpeer.model.tree_lm import TreeLM

SEQUENCES = "transformers' own, over separate sequences"
ROUTER = re.compile("router|gate$", re.IGNORECASE)
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
LOADING = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, SafetensorError)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_tokenizer(path: str, revision: str | None = None, today: date | None = None) -> PreTrainedTokenizerBase:
    """`today`: the day that its chat template is told (`dpeer.data.round_trip.now`)."""
    with hub_errors(path, whole=True):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    tokenizer.today = today
    return tokenizer


def load_shape(path: str, revision: str | None = None) -> PretrainedConfig:
    """The model's config.json. ConfigError: it cannot be read, or a size in it is none."""
    with hub_errors(path, whole=True):
        shape = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    text = shape.get_text_config()
    for name in SIZES:
        value = getattr(text, name, 1)
        if value is None and name == "num_key_value_heads":
            continue  # as many as there are heads
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"model {path}: config.json has {name} = {value!r}, which must be a whole number above 0."
            )
    return shape


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Decoder layers: their classes, and the parameters of the largest and of the output head."""

    classes: tuple[str, ...]
    parameters: int
    head: int


def layer_shape(shape: PretrainedConfig) -> LayerShape:
    """Counted on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(shape))
    layers = family_of(shape).decoder_layers(model)
    classes = tuple(dict.fromkeys(f"{type(x).__module__}.{type(x).__qualname__}" for x in layers))
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    return LayerShape(classes, largest, model.get_output_embeddings().weight.numel())


def attention_kernel(spec: config.Model, device: torch.device) -> str:
    """Choose the kernel of attention for this process, and return its name. Comes before the model is built: what is
    tried here must not be built in the way of an engine."""
    for path, revision in (spec.reference, (spec.path, spec.revision)):
        shape = load_shape(path, revision)
        refuse_unsupported(shape, path)
        layout = layout_of(shape, path, spec.layout)
    if layout == "sequences":
        return SEQUENCES
    heads = shape.num_attention_heads
    size = family_of(shape).query_width(shape) // heads
    shared = getattr(shape, "num_key_value_heads", None) or heads
    return flash.choose(spec.flash, device, DTYPES[spec.dtype], (heads, shared), size)


def layer_kernels(spec: config.Model, device: torch.device) -> str:
    """Choose the kernels of the layers for models that this process builds from now on, and return their name."""
    return kernels.choose(spec.kernels, device, load_shape(spec.path, spec.revision), DTYPES[spec.dtype])


def load_lm(
    path: str, dtype: str, revision: str | None = None, attention: str = "gather", layout: str = "auto"
) -> tuple[PreTrainedModel, Layout]:
    """Weights of `path` with the attention of its layout. Under an active HfDeepSpeedConfig they come partitioned."""
    model_config = load_shape(path, revision)
    refuse_unsupported(model_config, path)
    chosen = layout_of(model_config, path, layout)
    kernel = tree_attention.IMPLEMENTATIONS[attention] if chosen == "tree" else own_attention(model_config)
    with hub_errors(path):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=kernel,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model {path}: its checkpoint lacks {len(missing)} of the weights that its config.json describes, among "
            f"them {', '.join(missing[:3])}; they would start at random values. Give a complete checkpoint."
        )
    # Parts of partitioned weights are looked at by the engine that knows which elements are padding.
    refuse_not_finite(((n, w) for n, w in model.named_parameters() if not hasattr(w, "ds_tensor")), path)
    if model.get_output_embeddings().bias is not None:
        raise ConfigError(f"model {path}: its output head has a bias, which the chunked head does not compute.")
    return model, chosen


def load_causal_lm(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    return load_lm(path, dtype, revision)[0]


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], path: str) -> None:
    """ConfigError for weights that are NaN or infinite: nothing computed with them would mean anything."""
    bad = [n for n, w in weights if w.numel() and not all(map(math.isfinite, map(float, torch.aminmax(w.detach()))))]
    if bad:
        raise ConfigError(
            f"model {path}: {len(bad)} of its weights hold NaN or infinite values, among them {', '.join(bad[:3])}. "
            "Its files are damaged, or its own training diverged: give another copy or checkpoint."
        )


def add_lora(model: PreTrainedModel, lora: config.Lora, seed: int) -> PreTrainedModel:
    """Wrap with PEFT adapters of the model's precision; B starts at zero, so the policy starts equal to the
    reference."""
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if isinstance(targets, list):
        _refuse_targets(model, targets)
    routing = routers(model) if targets == "all-linear" else []
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=targets,
                exclude_modules=routing or None,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            ),
            autocast_adapter_dtype=False,  # bf16 beside a bf16 base: masters are fp32, and fp32 products cost as much
        )
    except ValueError as error:
        raise ConfigError(f"model.lora.targets = {lora.targets}: {str(error).splitlines()[0]}") from error
    _unwrap(adapted, routing)
    return adapted


def routers(model: PreTrainedModel) -> list[str]:
    """Names of the modules that send tokens to experts, and of what is in them: adapters there would move many tokens
    at once."""
    modules = dict(model.named_modules())
    experts = expert_count(model.config.get_text_config())
    found = [
        name
        for name, m in modules.items()
        if ROUTER.search(type(m).__name__)
        or (isinstance(m, nn.Linear) and experts and m.out_features == experts and ROUTER.search(name))
    ]
    return [name for name in modules if any(name == f or name.startswith(f"{f}.") for f in found)]


def _unwrap(adapted: Any, names: list[str]) -> None:
    """Take adapters off these modules: PEFT adds those of routers that are no linear modules, excluded or not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base, config = adapted.get_base_model(), adapted.peft_config["default"]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if isinstance(module := base.get_submodule(name), BaseTunerLayer):
            setattr(base.get_submodule(parent), leaf, module.get_base_layer())
            config.target_parameters = {t for t in config.target_parameters if t.rpartition(".")[0] != leaf}


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
    path, revision = spec.reference if reference else (spec.path, spec.revision)
    model, layout = load_lm(path, spec.dtype, revision, spec.attention, spec.layout)
    if reference:
        return TreeLM(model.requires_grad_(False).eval(), spec.head_chunk, layout)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if spec.lora:
        model = add_lora(model, spec.lora, seed)
    return TreeLM(model.train(), spec.head_chunk, layout)


class hub_errors:
    """Turns transformers' loading errors into one that names the model and says what to do.

    whole: any exception counts, as where small files are read and nothing else can fail; also the panics of
    tokenizers, which are no Exceptions. Else those of files and configs: others are of memory or of other ranks."""

    def __init__(self, path: str, *, whole: bool = False) -> None:
        self.path, self.whole = path, whole

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        mismatch = isinstance(error, RuntimeError) and "mismatched" in str(error)
        loading = isinstance(error, Exception if self.whole else LOADING) or (self.whole and is_panic(error))
        if mismatch or (loading and not isinstance(error, DpeerError)):
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            first = first if isinstance(error, OSError | ValueError) and first else f"{kind.__name__}: {first}"
            raise ConfigError(
                f"model {self.path}: cannot be loaded ({first[:300]}). Give a local folder with config.json, "
                "safetensors and a tokenizer, or a hub id that this machine can reach."
            ) from error
