"""Which local or hub model is this: hashes of its weights and words, and the family that its config tells."""

from __future__ import annotations

import json
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from dpeer.data.load import HUB_ID as OWNED_ID
from dpeer.errors import ConfigError
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.families import ALIASES
from dpeer.eval.store.parts import content_id

HUB_ID = re.compile(rf"{OWNED_ID.pattern}|[A-Za-z0-9][\w.-]*")
"""owner/name, or the bare name of an old one such as gpt2."""
WORDS = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "generation_config.json",
)
"""Files of a model folder that say how text becomes tokens, and at which token an answer ends."""


def model_identity(served: Served) -> str:
    """Hash of weights and adapter."""
    adapter = _adapter_hash(served) if served.adapter else None
    return content_id(model=_weights_hash(served), adapter=adapter)


def words_hash(served: Served) -> str | None:
    """Tokenizer, chat template and end tokens of a local model: they change what is asked, and weights do not tell.

    None for a hub id, whose commit pins them.
    """
    folder = Path(served.path)
    if not folder.is_dir():
        return None
    files = sorted({file for pattern in WORDS for file in folder.glob(pattern) if file.is_file()})
    return content_id(files={file.name: sha256(file.read_bytes()).hexdigest() for file in files})


def _weights_hash(served: Served) -> str:
    from dpeer.model.identity import model_hash

    path = Path(served.path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "; it holds a LoRA adapter: give the base model as path and this folder as adapter"
            lora = (path / "adapter_config.json").is_file()
            raise ConfigError(f"{served.name}: {path} is no model folder (no config.json){hint if lora else ''}.")
        return model_hash(served.path)
    if not HUB_ID.fullmatch(served.path) or Path(path.parts[0]).is_dir():
        raise ConfigError(f"{served.name}: there is no folder {served.path}. Give a model's folder or its hub id.")
    return _hub_hash(served.path, served.revision)


@cache
def _hub_hash(path: str, revision: str | None) -> str:
    from dpeer.model.identity import model_hash

    return model_hash(path, revision)


def _adapter_hash(served: Served) -> str:
    from dpeer.model.identity import model_hash

    described = Path(str(served.adapter)) / "adapter_config.json"
    if not described.is_file():
        raise ConfigError(
            f"{served.name}: adapter {served.adapter} is no folder with an adapter_config.json. Give the local folder "
            "that PEFT wrote."
        )
    # Rank and scale are in the description: the same matrices with another alpha are another model.
    return content_id(weights=model_hash(str(served.adapter)), described=sha256(described.read_bytes()).hexdigest())


def family_of_config(served: Served) -> str | None:
    """The family of the model type in its config.json; None where there is none."""
    model_type = _model_type(served)
    letters = re.match(r"[a-z]+", model_type.lower()) if model_type else None
    return ALIASES.get(letters[0], letters[0]) if letters else None


def _model_type(served: Served) -> str | None:
    local = Path(served.path) / "config.json"
    described = local if local.parent.is_dir() else _hub_config(served.path, served.revision)
    if described is None or not described.is_file():
        return None
    try:
        return json.loads(described.read_text())["model_type"] or None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{served.name}: {described} does not say what model this is ({error!r}). Restore it."
        ) from None


@cache
def _hub_config(path: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    if not HUB_ID.fullmatch(path):
        return None
    file = cached_file(path, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(file) if file else None
