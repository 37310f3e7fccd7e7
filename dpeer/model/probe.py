"""Which layout computes a model exactly, found by trying: its architecture in small, against separate sequences.

The oracle is transformers alone: each prompt + response by itself, its own attention, its own logits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dpeer.cache import cache_root
from dpeer.data.layout import Layout
from dpeer.data.packing import Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.integrity import Damaged, parse_state, write_state
from dpeer.model.families import named, own_attention
from dpeer.model.miniature import VOCABULARY, miniature
from dpeer.model.state import by_device
from dpeer.model.team import Team, side_by_side
from dpeer.model.tiles import tile_mlps
from dpeer.model.tree_attention import NAME
from dpeer.model.tree_lm import TreeLM

VALUES, GRADIENTS = 1e-5, 3e-4
"""Largest error of log-probabilities and of a parameter's gradient, relative to the largest, in fp32."""
SHAPES = ((23, 9, 1, 20), (5, 19, 2), (1, 6, 6))
"""Tokens of prompt and responses of the records tried: longer than the windows, and of one token."""
LARGEST = 1e8
"""Parameters of a model that is tried."""
VERSION = 2
TILE = 7
Way = Layout | Literal["cut", "tiled"]
WAYS = {
    "tree": "trees",
    "sequences": "separate sequences",
    "cut": "trees that two ranks share",
    "tiled": "sequences whose MLPs are tiled",
}


@dataclass(frozen=True, slots=True)
class Exactness:
    """Errors of a layout: of log-probabilities, of gradients, and of which parameter; or why it could not run."""

    values: float
    gradients: float
    worst: str
    failure: str = ""

    @property
    def exact(self) -> bool:
        return not self.failure and self.values <= VALUES and self.gradients <= GRADIENTS

    def __str__(self) -> str:
        return self.failure or (
            f"log-probabilities are off by {self.values:.1e} and gradients by {self.gradients:.1e} ({self.worst})"
        )


def layout_of(shape: PretrainedConfig, path: str, wanted: str = "auto") -> Layout:
    """The layout to compute a model with; `wanted` is `model.layout`. ConfigError where none, or not that one, is
    exact; says what was found."""
    if wanted == "sequences":
        return _checked(shape, path, "sequences")
    if named(shape) or (tree := exactness(shape, "tree")).exact:
        return "tree"
    if wanted == "tree":
        raise ConfigError(f"model {path}: model.layout is tree, but as trees its {tree}. Set it to auto.")
    return _checked(shape, path, "sequences", f"as trees its {tree}; ")


def _checked(shape: PretrainedConfig, path: str, layout: Layout, before: str = "") -> Layout:
    if named(shape) or (found := exactness(shape, layout)).exact:
        return layout
    raise ConfigError(
        f"model {path} (type '{shape.model_type}'): cannot be trained exactly: {before}as separate sequences its "
        f"{found}. Choose another model."
    )


def exactness(shape: PretrainedConfig, way: Way) -> Exactness:
    """The errors of a layout, or of trees that are cut, for models of this config; kept in the cache folder."""
    fields = json.dumps(shape.to_dict(), sort_keys=True, default=str)
    key = "\0".join([fields, way, transformers.__version__, torch.__version__, str(VERSION)])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    if name not in _FOUND and (kept := _kept(name)):
        _FOUND[name] = kept
    elif name not in _FOUND:
        print(f"trying a small model of type '{shape.model_type}' as {WAYS[way]}", flush=True)
        _FOUND[name] = _keep(name, probe(shape, way))
    return _FOUND[name]


_FOUND: dict[str, Exactness] = {}


def _path(name: str) -> Path:
    return cache_root() / "probes" / f"{name}.json"


def _kept(name: str) -> Exactness | None:
    try:
        return Exactness(**parse_state(_path(name).read_bytes()))
    except (OSError, Damaged, TypeError):
        return None


def _keep(name: str, found: Exactness) -> Exactness:
    if found.failure:  # what has failed may have been the machine's
        return found
    with suppress(OSError):  # then it is tried again next time
        _path(name).parent.mkdir(parents=True, exist_ok=True)
        write_state(_path(name), asdict(found))
    return found


def probe(shape: PretrainedConfig, way: Way) -> Exactness:
    """Compare the miniature of a config, with random weights, against separate sequences; seconds."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            layout: Layout = "tree" if way == "cut" else "sequences" if way == "tiled" else way
            model, oracle = _pair(shape, layout)
            if way == "tiled":
                tile_mlps(model, TILE)
            trees = [_tree(i, lengths) for i, lengths in enumerate(SHAPES)]
            expected = _separate(oracle, trees)
            weights = torch.sin(torch.arange(len(expected)) * 1.7 + 0.5).double()  # of mixed sign, as margins give
            torch.autograd.backward((expected * weights).sum())
            pack = build_pack(trees, range(len(trees)))
            if way == "cut":
                found = _by_two(model, pack, weights)
            else:
                found = TreeLM(model, layout=layout)(pack)
                torch.autograd.backward((found * weights).sum())
        except Exception as error:  # whatever a model of unknown make does
            first = (str(error).strip().splitlines() or ["no message"])[0][:300]
            return Exactness(0, 0, "", f"small model does not run ({type(error).__name__}: {first})")
        gap, worst = max(_gradient_errors(model, oracle))
        return Exactness(_relative(found, expected), gap, worst)


def _by_two(model: PreTrainedModel, pack: Pack, weights: Tensor) -> Tensor:
    """What a team of two computes of a pack; the sum of their gradients is left in the model."""
    models = [model, copy.deepcopy(model)]

    def compute(team: Team) -> Tensor:
        lm = TreeLM(models[team.rank])
        lm.team = team
        values: Tensor = lm(pack.cut(team.rank, team.size))
        torch.autograd.backward((values * weights).sum())
        return values.detach()

    found, _ = side_by_side(2, compute)
    for mine, theirs in zip(*(m.parameters() for m in models), strict=True):
        if theirs.grad is not None:
            mine.grad = theirs.grad if mine.grad is None else mine.grad + theirs.grad
    return found


def _pair(shape: PretrainedConfig, layout: Layout) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model as we compute it and as transformers does, with the same weights."""
    model, oracle = small_models(shape, NAME if layout == "tree" else own_attention(shape), "eager")
    _waken(model)
    oracle.load_state_dict(model.state_dict())
    return model, oracle


def small_models(shape: PretrainedConfig, *attention: str | None) -> list[PreTrainedModel]:
    """Miniatures of a config as in training, one with each kind of attention."""
    try:
        models = [_build(miniature(shape), kind) for kind in attention]
    except Exception:  # sizes that hang together in a way of this architecture
        models = [_build(_affordable(miniature(shape, narrow=False)), kind) for kind in attention]
    return [model.train() for model in models]


def _affordable(small: PretrainedConfig) -> PretrainedConfig:
    with torch.device("meta"):
        size = sum(p.numel() for p in _build(copy.deepcopy(small), None).parameters())
    if size > LARGEST:
        raise ValueError(f"{small.num_hidden_layers} layers of it have {size / 1e9:.1f}e9 parameters: too many to try")
    return small


def _build(small: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
    by_device(model)
    return model


@torch.no_grad()
def _waken(model: PreTrainedModel) -> None:
    """Weights with which every part matters: attention far from uniform, norms and biases far from their start, states
    that outlast a token."""
    generator = torch.Generator().manual_seed(0)
    outer = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # a state that lasts for a few to some tens of tokens
            parameter.uniform_(-4, -0.5, generator=generator)
        elif parameter.ndim < 2:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        elif all(parameter is not x for x in outer):
            parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5, generator=generator)
    outer[0].normal_(generator=generator)
    outer[1].normal_(0, 3 / outer[1].shape[1] ** 0.5, generator=generator)


def _tree(index: int, lengths: Sequence[int]) -> TokenTree:
    rng = random.Random(index)
    prompt, *responses = (tuple(rng.randrange(3, VOCABULARY) for _ in range(n)) for n in lengths)
    return TokenTree(index, prompt, tuple(responses), (), 0, ())


def _separate(model: PreTrainedModel, trees: Sequence[TokenTree]) -> Tensor:
    """Log-probabilities [R] in nats, each response after its prompt as one sequence."""
    found = []
    for prompt, response in ((t.prompt, r) for t in trees for r in t.responses):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
        table = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(table[torch.arange(len(response)), list(response)].double().sum())
    return torch.stack(found)


def _gradient_errors(model: nn.Module, oracle: nn.Module) -> list[tuple[float, str]]:
    pairs: Any = zip(model.named_parameters(), oracle.named_parameters(), strict=True)
    return [
        (_relative(_gradient(ours), _gradient(theirs)), name)
        for (name, ours), (_, theirs) in pairs
        if _gradient(theirs).any() or _gradient(ours).any()
    ]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).detach().nan_to_num(1e30))
