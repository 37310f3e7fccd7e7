"""What a plan starts from: the model's config, the lengths of the records, the GPU. Each says where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from dpeer import config
from dpeer.config import Config
from dpeer.config_sources import paths
from dpeer.data.layout import Layout
from dpeer.data.order import edges
from dpeer.data.places import place
from dpeer.data.tokenize import tokenize
from dpeer.errors import ConfigError, DpeerError
from dpeer.model.flops import Lengths
from dpeer.model.words import options_of, tokenizer_of
from dpeer.training.prepare import split_records

HERE = Path(__file__).parent
CHARACTERS_PER_TOKEN = 4.0  # English text under the tokenizers of Llama 3 and Qwen: about 4


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    gpu_link_gbyte_s: float
    node_link_gbit_s: float


@dataclass(frozen=True)
class GivenLengths:
    """Lengths that a person gave; None where they did not."""

    records: int | None = None
    prompt: int | None = None
    response: int | None = None
    rejects: int | None = None

    @property
    def complete(self) -> bool:
        return None not in (self.records, self.prompt, self.response, self.rejects)


@dataclass(frozen=True)
class Records:
    lengths: tuple[Lengths, ...]
    source: str
    assumed: bool

    def laid_out(self, layout: Layout) -> Records:
        return replace(self, lengths=tuple(replace(r, layout=layout) for r in self.lengths))


def gpu(name: str) -> Gpu:
    """A row of gpus.json. Raises ConfigError that names the known ones."""
    known: dict[str, Any] = json.loads((HERE / "gpus.json").read_text())
    if name.lower() not in known:
        raise ConfigError(
            f"--gpu {name}: not in the table; known: {', '.join(known)}. For another card take the nearest one and "
            "set what differs: --gpu-memory, --network."
        )
    return Gpu(name.lower(), **known[name.lower()])


def model_config(spec: config.Model, given: Path | None) -> tuple[PretrainedConfig, str]:
    """The model's config and where it was found: the given file, its folder, the hub cache, known.json, the hub."""
    if given:
        return _read_config(given, f"--model-config {given}"), f"read from {given}"
    if (Path(spec.path) / "config.json").is_file():
        return _read_config(Path(spec.path), f"model {spec.path}"), f"read from {Path(spec.path) / 'config.json'}"
    cached = _cached(spec)
    if cached:
        return _read_config(Path(cached), f"model {spec.path}"), "read from the local hub cache"
    for entry in _known("models"):
        if spec.path in entry["paths"]:
            return AutoConfig.for_model(**entry["config"]), "from dpeer's table of known shapes, not read from the hub"
    try:
        model_config = AutoConfig.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {spec.path}: its config.json is neither here nor on a hub that this machine reaches. Give it with "
            "--model-config FILE (the config.json alone is enough)."
        ) from error
    assert isinstance(model_config, PretrainedConfig)
    return model_config, "read from the hub"


def _cached(spec: config.Model) -> str | None:
    try:
        path: str | None = cached_file(spec.path, "config.json", revision=spec.revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return path


def _read_config(path: Path, what: str) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text())
        model_config = AutoConfig.for_model(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{what}: not a readable model config ({reason}). Give a transformers config.json.") from None
    assert isinstance(model_config, PretrainedConfig)
    return model_config


def records(recipe: Config, given: GivenLengths) -> Records:
    """Lengths of the training records: given, from the data and its tokenizer, or assumed."""
    if given.complete:
        return Records(_made(given, {}), "given", assumed=False)
    sources = paths(recipe.data.train)
    shown = ", ".join(sources)
    known = next((e for e in _known("data") if set(sources) <= set(e["paths"])), None)
    if given == GivenLengths() and all(Path(place(source).path).exists() for source in sources):
        return _measured(recipe)
    if known:
        return Records(_made(given, known), f"{shown} is not read: lengths are assumed unless given", assumed=True)
    raise ConfigError(
        f"data.train = {shown}: not on this machine, so its lengths are not known. Give a local file, or "
        "all of --records, --prompt-tokens, --response-tokens and --rejects."
    )


def _made(given: GivenLengths, known: dict[str, Any]) -> tuple[Lengths, ...]:
    """Records of equal lengths; with a known mixture of rejects in its proportions and a fixed shuffled order."""
    prompt = given.prompt or known["prompt_tokens"]
    response = given.response or known["response_tokens"]
    mixture = {given.rejects: 1} if given.rejects else {int(k): n for k, n in known["records_by_rejects"].items()}
    counts = [k for k, n in mixture.items() for _ in range(n)]
    total = given.records or len(counts)
    chosen = [counts[i * len(counts) // total] for i in range(total)]
    return tuple(Lengths(prompt, (response,) * (1 + k), tuple((0, j) for j in range(1, 1 + k))) for k in chosen)


def _measured(recipe: Config) -> Records:
    data = split_records(recipe)["train"]
    spec, shown = recipe.data, ", ".join(paths(recipe.data.train))
    try:
        tokenizer = tokenizer_of(recipe)
    except DpeerError:
        estimated = tuple(
            Lengths(
                _tokens(sum(len(m.content) for m in r.prompt)),
                tuple(_tokens(len(x.text)) for x in r.responses),
                tuple((e.better, e.worse) for e in edges(r)),
            )
            for r in data.records
        )
        source = f"{shown}, tokens estimated as characters / {CHARACTERS_PER_TOKEN:g}: the tokenizer is not here"
        return Records(estimated, source, assumed=True)
    trees = tokenize(data, tokenizer, spec.max_tokens, spec.overlong, options_of(recipe)).trees
    counted = tuple(
        Lengths(len(t.prompt), tuple(len(r) for r in t.responses), tuple((i, j) for _, i, j in t.edges)) for t in trees
    )
    return Records(counted, f"{shown}, counted with the model's tokenizer", assumed=False)


def _tokens(characters: int) -> int:
    return max(2, round(characters / CHARACTERS_PER_TOKEN))


@cache
def _known(kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((HERE / "known.json").read_text())[kind]
    return entries
