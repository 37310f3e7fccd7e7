"""A chat template as a program: which variables it reads, and with which of them already set it is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dpeer.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "strftime_now")
"""Variables that are no options: they come with each chat. So do the special tokens."""
OWN = frozenset({*GIVEN, "raise_exception", "conversation", "chat_template", "tokenize", "padding", "truncation"}) | {
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""Names that `apply_chat_template` takes for itself."""
CLOCK = re.compile(r"""\bstrftime_now\(\s*(['"])(.*?)\1""")
GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Marks of transformers' own, which jinja2 does not know."""


def variables(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Options that the tokenizer's chat template reads, sorted; none of a template that cannot be parsed."""
    return sorted({name for text in _texts(tokenizer) for name in _read(text)})


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    template: Any = tokenizer.chat_template
    return list(template.values()) if isinstance(template, dict) else [template] if template else []


def speaks_of(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    """Whether the template's source has the word, such as `tools`."""
    return any(re.search(rf"\b{word}\b", text) for text in _texts(tokenizer))


@lru_cache(maxsize=32)
def _read(template: str) -> frozenset[str]:
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))
    except TemplateError:
        return frozenset()
    first: dict[str, str] = {}
    for name, use in _uses(tree):
        first.setdefault(name, use)
    found = (v for v in find_undeclared_variables(tree) if first.get(v) == "load")
    return frozenset(v for v in found if v not in OWN and not v.endswith("_token"))


def _uses(node: Any) -> Iterator[tuple[str, str]]:
    """(name, load or store) in the order in which they happen: a variable that is set first is the template's own."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        yield node.name, "load" if node.ctx == "load" else "store"
    children = list(node.iter_child_nodes())
    if isinstance(node, nodes.Assign | nodes.For):
        children.sort(key=lambda child: child is node.target)
        children.sort(key=lambda child: isinstance(node, nodes.For) and child is not node.iter)
    for child in children:
        yield from _uses(child)


def refuse_unread(kwargs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """ConfigError for options that the template never reads: they would do nothing."""
    known = variables(tokenizer)
    if unread := [name for name in kwargs if name not in known]:
        reads = f"it reads {', '.join(known)}" if known else "it reads none"
        raise ConfigError(
            f"model.template_kwargs: the chat template never reads {', '.join(unread)}, which would do nothing; {reads}"
        )


def with_defaults(template: Any, kwargs: Mapping[str, Any]) -> Any:
    """The template, or each of a set of them, with `kwargs` as the values of options that it is not asked: whoever
    renders it then asks as in training, and may still ask otherwise."""
    if isinstance(template, dict):
        return {name: with_defaults(text, kwargs) for name, text in template.items()}
    lines = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in kwargs.items()
    )
    return lines + template


def on_day(template: str, now: datetime) -> str:
    """The template with `strftime_now` fixed to a moment. (As an argument, transformers takes no function from 5.2x
    on.) A format that is not written out in the call is refused by the template itself."""
    formats = {match[2] for match in CLOCK.finditer(template)}
    if not re.search(r"\bstrftime_now\b", template):
        return template
    written = _literal({f: now.strftime(f) for f in sorted(formats)})
    missing = "raise_exception('strftime_now is called with a format that is not written out')"
    return (
        f"{{%- macro strftime_now(format) -%}}{{%- set told = {written} -%}}"
        f"{{{{- told[format] if format in told else {missing} -}}}}{{%- endmacro %}}\n" + template
    )


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
