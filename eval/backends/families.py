"""Model families by name: a judge of the family that it rates may prefer its own."""

from __future__ import annotations

import re
from pathlib import Path

KNOWN = (
    *("claude", "command", "deepseek", "falcon", "gemini", "gemma", "glm", "gpt", "granite", "grok", "internlm"),
    *("kimi", "llama", "mistral", "nemotron", "olmo", "phi", "qwen", "smollm"),
)
ALIASES = {
    "chatgpt": "gpt",
    "chatglm": "glm",
    "codellama": "llama",
    "codestral": "mistral",
    "cohere": "command",
    "ministral": "mistral",
    "mixtral": "mistral",
    "qwq": "qwen",
    "vicuna": "llama",
}


def family_of_name(name: str) -> str | None:
    """A family with whose name a word of this one starts: `Meta-Llama-3-8B` is a llama."""
    words = re.findall(r"[a-z]+", Path(name).name.lower()) + re.findall(r"[a-z]+", name.lower())
    families = ALIASES | {known: known for known in KNOWN}
    return next((families[known] for word in words for known in families if word.startswith(known)), None)
