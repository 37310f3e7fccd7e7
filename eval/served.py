"""Which model is this, and of what family: what makes a judge a relative of the model that it rates."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dpeer.errors import ConfigError
from eval.config import Served
from eval.ratings import content_id

KNOWN = (
    *("claude", "command", "deepseek", "falcon", "gemini", "gemma", "glm", "gpt", "granite", "grok", "internlm"),
    *("kimi", "llama", "mistral", "nemotron", "olmo", "phi", "qwen", "smollm"),
)
ALIASES = {
    "chatgpt": "gpt",
    "codellama": "llama",
    "codestral": "mistral",
    "ministral": "mistral",
    "mixtral": "mistral",
    "qwq": "qwen",
    "vicuna": "llama",
}


def served_hash(served: Served) -> str:
    """What the answers come from: weights and adapter of a vLLM model, address and name of an endpoint's."""
    from dpeer.model.identity import model_hash

    if served.backend == "openai":
        return content_id(base_url=served.base_url, path=served.path, revision=served.revision)
    local = served.path.startswith((".", "/", "~")) or served.path.count("/") > 1  # a hub id is owner/name
    if local and not Path(served.path).is_dir():
        raise ConfigError(f"{served.name}: there is no folder {served.path}. Give a model's folder or its hub id.")
    adapter = model_hash(served.adapter) if served.adapter else None
    return content_id(model=model_hash(served.path, served.revision), adapter=adapter)


def family(served: Served) -> str | None:
    """`Served.family`, or that of the model type in its config.json, or one that its name tells; None: unknown."""
    if served.family:
        return served.family
    model_type = _model_type(served) if served.backend == "vllm" else None
    if model_type and (letters := re.match(r"[a-z]+", model_type.lower())):
        return ALIASES.get(letters[0], letters[0])
    return family_of_name(served.path) or family_of_name(served.name)


def family_of_name(name: str) -> str | None:
    """A family with whose name a word of this one starts: `Meta-Llama-3-8B` is a llama."""
    words = re.findall(r"[a-z]+", Path(name).name.lower()) + re.findall(r"[a-z]+", name.lower())
    families = ALIASES | {known: known for known in KNOWN}
    return next((families[known] for word in words for known in families if word.startswith(known)), None)


def _model_type(served: Served) -> str | None:
    from transformers.utils import cached_file

    folder = Path(served.path)
    found = (
        folder / "config.json"
        if folder.is_dir()
        else cached_file(
            served.path, "config.json", revision=served.revision, _raise_exceptions_for_missing_entries=False
        )
    )
    if found is None or not Path(found).is_file():
        return None
    return str(json.loads(Path(found).read_text()).get("model_type") or "") or None
