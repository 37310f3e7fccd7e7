"""What a model's small files say of it: nothing is loaded. Of weights only the header is read, for the embedding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from dpeer.data.facts import ModelFacts
from dpeer.errors import ConfigError
from dpeer.model.adapters import refuse_adapter_folder

MEDIA = re.compile("(?!(bos|eos|pad|unk|sep|cls|mask|decoder_start)_).+_token_(id|index)")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")


def model_facts(path: str, revision: str | None = None) -> ModelFacts | None:
    """None for a folder or hub id without a config.json, such as a bare tokenizer. ConfigError: it is no config."""
    refuse_adapter_folder(path)
    try:
        fields, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError) as error:
        if (Path(path) / "config.json").is_file():
            raise ConfigError(f"model {path}: its config.json cannot be read ({_first_line(error)}).") from error
        return None
    if not isinstance(fields, dict) or not fields:
        return None
    inner = fields.get("text_config")
    text = fields | inner if isinstance(inner, dict) else fields
    rows = [n for n in (_whole(text.get("vocab_size")), _rows(Path(path))) if n]
    media = _media(fields) if isinstance(inner, dict) else frozenset[int]()
    return ModelFacts(path, min(rows, default=None), positions(text), _ends(path, text), _quantised(fields), media)


def _media(fields: Mapping[str, Any]) -> frozenset[int]:
    """Ids that stand for images or sound: of all tokens that the config names, those that are not the text's own."""
    try:
        every = AutoConfig.for_model(**fields).to_dict() | dict(fields)  # what the file leaves away has a default
    except (ValueError, TypeError, KeyError, AttributeError):
        every = dict(fields)
    found = (MEDIA.fullmatch(key) and _whole(value) for key, value in every.items())
    return frozenset(i for i in found if i)


def positions(fields: Mapping[str, Any]) -> int | None:
    """Positions that the model was made for, those that a rope scaling adds included; None where it does not say."""
    most = _whole(fields.get("max_position_embeddings"))
    if most is None:
        return None
    given = [g for key in ("rope_parameters", "rope_scaling") if isinstance(g := fields.get(key), dict)]
    ropes = [rope for g in given for rope in (g, *g.values())]  # a kind of layer may have its own
    return max([most, *(_scaled(rope, most) for rope in ropes if isinstance(rope, dict))])


def _scaled(rope: Mapping[str, Any], most: int) -> int:
    factor, original = rope.get("factor"), _whole(rope.get("original_max_position_embeddings"))
    return int((original or most) * factor) if isinstance(factor, int | float) and 1 <= factor < 1e6 else most


def _ends(path: str, fields: Mapping[str, Any]) -> frozenset[int]:
    """Token ids at which generation stops, by generation_config.json, else by config.json."""
    try:
        given = json.loads((Path(path) / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        given = None
    return frozenset(token_ids(fields.get("eos_token_id") if given is None else given))


def token_ids(value: object) -> list[int]:
    """One id or a list of them, as configs write both."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _quantised(fields: Mapping[str, Any]) -> str | None:
    given = fields.get("quantization_config") or (fields.get("text_config") or {}).get("quantization_config")
    if not given:
        return None
    return str(given.get("quant_method") or "an unnamed method") if isinstance(given, dict) else "an unnamed method"


def _rows(folder: Path) -> int | None:
    """Rows of the embedding, from the header of the safetensors file that holds it; None where there is none here."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else None
        name = _embedding(names) if names else None
        file = folder / names[name] if names and name else single
        if not file.is_file():
            return None
        with safe_open(file, framework="numpy") as weights:
            name = name or _embedding(weights.keys())
            return int(weights.get_slice(name).get_shape()[0]) if name else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None  # loading it says what is wrong


def _embedding(names: Iterable[str]) -> str | None:
    return min((n for n in names if n.endswith(EMBEDDINGS)), key=len, default=None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
