"""Loading of checkpoints that are computed exactly, with adapters or without."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from dpeer import config
from dpeer.data.layout import Layout
from dpeer.data.round_trip import is_panic
from dpeer.errors import ConfigError, DpeerError
from dpeer.model import flash, kernels, tree_attention
from dpeer.model.adapters import load_start, refuse_adapter_folder, start_of
from dpeer.model.balance import refuse_unbalanced
from dpeer.model.families import expert_count, family_of, own_attention, refuse_unsupported, size_of
from dpeer.model.finite import refuse_not_finite
from dpeer.model.four_bits import four_bits, refuse_four_bits
from dpeer.model.probe import layout_of
from dpeer.model.recompute import refuse_unmoved, refuse_untiled, spare_memory
from dpeer.model.state import by_device
from dpeer.model.tiles import tile_mlps
from dpeer.model.towers import Parts, parts, text_part, tower_parameters
from dpeer.model.tree_lm import TreeLM

if TYPE_CHECKING:
    from peft import LoraConfig

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
    """The model's config.json, of a model that sees or hears too its text part. ConfigError: it cannot be read, or a
    size in it is none."""
    refuse_adapter_folder(path)
    text = text_part(_read_shape(path, revision), path)
    for name in SIZES:
        value = size_of(text, name, 1)
        if value is None and name == "num_key_value_heads":
            continue  # as many as there are heads
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"model {path}: config.json has {name} = {value!r}, which must be a whole number above 0."
            )
    return text


def _read_shape(path: str, revision: str | None) -> PretrainedConfig:
    with hub_errors(path, whole=True):
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)


def load_parts(path: str, revision: str | None = None) -> Parts | None:
    """Where the text model is in a checkpoint that has more; None where it is all of it."""
    with hub_errors(path):
        return parts(_read_shape(path, revision), path, revision)


def towers(path: str, revision: str | None = None) -> int:
    """Parameters of a checkpoint that are no part of its text model."""
    return tower_parameters(_read_shape(path, revision))


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
        refuse_untiled(shape, path, spec.mlp_tile)
    if spec.offload_activations:
        refuse_unmoved(shape)
    if layout == "sequences":
        return SEQUENCES
    heads = shape.num_attention_heads
    size = family_of(shape).query_width(shape) // heads
    shared = size_of(shape, "num_key_value_heads") or heads
    return flash.choose(spec.flash, device, DTYPES[spec.dtype], (heads, shared), size)


def layer_kernels(spec: config.Model, device: torch.device) -> str:
    """Choose the kernels of the layers for models that this process builds from now on, and return their name."""
    return kernels.choose(spec.kernels, device, load_shape(spec.path, spec.revision), DTYPES[spec.dtype])


def load_lm(
    path: str,
    dtype: str,
    revision: str | None = None,
    attention: str = "gather",
    layout: str = "auto",
    in_4bit: bool = False,
) -> tuple[PreTrainedModel, Layout]:
    """Weights of `path` with the attention of its layout. Under an active HfDeepSpeedConfig they come partitioned."""
    model_config = load_shape(path, revision)
    refuse_unsupported(model_config, path)
    chosen = layout_of(model_config, path, layout)
    kernel = tree_attention.IMPLEMENTATIONS[attention] if chosen == "tree" else own_attention(model_config)
    quantised = {"quantization_config": four_bits(model_config, path, DTYPES[dtype])} if in_4bit else {}
    if part := load_parts(path, revision):
        model_config.tie_word_embeddings = model_config.tie_word_embeddings or part.head is None
    with hub_errors(path), _unreported(part is not None):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=model_config,
            key_mapping=part.renamed if part else None,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=kernel,
            trust_remote_code=False,
            output_loading_info=True,
            **quantised,
        )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model {path}: its checkpoint lacks {len(missing)} of the weights that its config.json describes, among "
            f"them {', '.join(missing[:3])}; they would start at random values. Give a complete checkpoint."
        )
    # Parts of partitioned weights are looked at by the engine that knows which elements are padding.
    refuse_not_finite(((n, w) for n, w in model.named_parameters() if not hasattr(w, "ds_tensor")), f"model {path}")
    by_device(model)
    if model.get_output_embeddings().bias is not None:
        raise ConfigError(f"model {path}: its output head has a bias, which the chunked head does not compute.")
    return model, chosen


@contextmanager
def _unreported(towers: bool) -> Iterator[None]:
    """Without transformers' report of the tensors that the text part of a checkpoint has no use for."""
    before = logging.get_verbosity()
    if towers:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_causal_lm(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    return load_lm(path, dtype, revision)[0]


def add_lora(
    model: PreTrainedModel, lora: config.Lora, seed: int, part: Parts | None = None, start: LoraConfig | None = None
) -> PreTrainedModel:
    """Wrap with PEFT adapters of the model's precision. Fresh ones begin as nothing: B is zero, and with DoRA the
    lengths are those of the weights. Those of `lora.path` begin as they are in its files. `part`: where the model is in
    a checkpoint that has more. `start`: what PEFT is asked for in place of `start_of`."""
    from peft import LoraConfig, get_peft_model

    if start is None and lora.path:
        start = start_of(lora, part)
    targets = start.target_modules if start else lora.targets
    if not start and not isinstance(targets, str):
        _refuse_targets(model, list(targets or ()))
    routing = routers(model) if targets == "all-linear" and not start else []
    torch.manual_seed(seed)
    wanted = start or LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets or ()),
        target_parameters=fused_experts(model) if targets == "all-linear" else None,
        exclude_modules=routing or None,
        lora_dropout=0.0,
        use_dora=bool(lora.dora),
        use_rslora=bool(lora.rslora),
        task_type="CAUSAL_LM",
    )
    try:
        # In bf16 beside a bf16 base: masters are fp32, and fp32 products cost as much.
        adapted = get_peft_model(model, wanted, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(_refusal(lora, str(error).splitlines()[0])) from error
    _unwrap(adapted, routing)
    if start:
        _refuse_outer(adapted, lora)
        if model.device.type != "meta":
            load_start(adapted, lora, part)
    return adapted


def _refusal(lora: config.Lora, why: str) -> str:
    """PEFT's reason, in the recipe's words."""
    if "use_dora" in why or "DoRA" in why:
        return (
            "model.lora.dora = true: the experts' weights are fused, and PEFT has no DoRA for that. Name the modules "
            "of attention (model.lora.targets=[q_proj, k_proj, v_proj, o_proj]), or leave dora out."
        )
    return f"model.lora.path {lora.path}: {why}" if lora.path else f"model.lora.targets = {lora.targets}: {why}"


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


def fused_experts(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that hold a layer's experts, all in one: PEFT finds those of some architectures only."""
    experts = expert_count(model.config.get_text_config())
    shapes = ((n, getattr(p, "ds_shape", p.shape)) for n, p in model.named_parameters())
    fused = (n for n, size in shapes if experts and len(size) == 3 and size[0] == experts)
    return sorted({".".join(n.split(".")[-2:]) for n in fused})  # with their module's name, as the adapter is kept


def _unwrap(adapted: Any, names: list[str]) -> None:
    """Take adapters off these modules: PEFT adds those of routers that are no linear modules, excluded or not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base, config = adapted.get_base_model(), adapted.peft_config["default"]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if isinstance(module := base.get_submodule(name), BaseTunerLayer):
            setattr(base.get_submodule(parent), leaf, module.get_base_layer())
            config.target_parameters = {t for t in config.target_parameters if t.rpartition(".")[0] != leaf}


def _refuse_outer(adapted: Any, lora: config.Lora) -> None:
    """ConfigError for a trained adapter of the embedding or of the head, which reads the bare weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    if any(isinstance(m, BaseTunerLayer) for m in (base.get_input_embeddings(), base.get_output_embeddings())):
        raise ConfigError(
            f"model.lora.path {lora.path}: adapts the embedding or the output head too, which take no adapters here. "
            "Merge it into its base with PEFT (merge_and_unload) and train from that: model.path=MERGED."
        )


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
    refuse_four_bits(spec)
    model, layout = load_lm(path, spec.dtype, revision, spec.attention, spec.layout, spec.load_in_4bit)
    if reference:
        if spec.reference_lora:
            model = add_lora(model, spec.reference_lora, seed, load_parts(path, revision))
        if spec.mlp_tile:
            tile_mlps(model, spec.mlp_tile)
        return TreeLM(model.requires_grad_(False).eval(), spec.head_chunk, layout)
    spare_memory(model, spec)
    if spec.lora:
        model = add_lora(model, spec.lora, seed, load_parts(path, revision))
    if spec.router_aux_loss:
        refuse_unbalanced(model, path)
    return TreeLM(model.train(), spec.head_chunk, layout, routing=spec.router_aux_loss > 0)


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
