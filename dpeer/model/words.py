"""The tokenizer of a recipe with the chat template that the recipe gives, and what that template is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.config import Config
from dpeer.data.chat import ChatOptions
from dpeer.data.template import refuse_unread, with_defaults
from dpeer.errors import ConfigError
from dpeer.model.lm import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = "template_kwargs"
"""Key of an export's tokenizer_config.json: what its chat template was asked in training."""


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    """ConfigError: the template's file cannot be read, or it never reads an option that the recipe gives."""
    spec = config.model
    tokenizer = load_tokenizer(spec.path, spec.revision, config.data.date)
    if spec.chat_template:
        tokenizer.chat_template = _template(Path(spec.chat_template))
    refuse_unread(spec.template_kwargs, tokenizer)
    return tokenizer


def options_of(config: Config) -> ChatOptions:
    return ChatOptions(config.model.template_kwargs, config.data.end_of_turn, config.data.reasoning)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def exported(config: Config, thoughts: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of an export: its template answers as it was asked in training, and says what that was.

    thoughts: responses were trained with theirs, so the model must be asked as they were, if without any option.
    """
    tokenizer = tokenizer_of(config)
    asked = config.model.template_kwargs
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, asked)
    if asked or thoughts:
        tokenizer.init_kwargs[ASKED] = dict(asked)
    return tokenizer


def _template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template: {path} cannot be read ({error}); give a jinja file") from None
    if not text.strip():
        raise ConfigError(f"model.chat_template: {path} is empty; give the jinja file of a chat template")
    return text
