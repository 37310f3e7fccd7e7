"""The builder's prompts: instructions of ours, material of others between fences, and what a reply must hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dpeer.data import cells
from dpeer.data.parse import MESSAGES
from dpeer.eval.questions.prompting import TAG, Segment, broken, fence_tag, visible
from dpeer.yaml_dialect import parse as parse_yaml

FOLDER = Path(__file__).parents[1] / "prompts"
STAGES = ("scene", "prompt", "golden", "reject")
HOLE = re.compile(r"\{(\w+)\}")
MARK = "\u2060"


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt of one stage. answers: the tags that a reply must hold, once each."""

    name: str
    version: int
    text: str
    answers: tuple[str, ...]
    hash: str
    """First 16 hex digits of the sha256 over version, text and answers."""


@cache
def template(stage: str) -> Template:
    tree = parse_yaml((FOLDER / f"{stage}.yaml").read_text(encoding="utf-8"), f"{stage}.yaml")
    version, text, answers = tree["version"], tree["text"].strip(), tuple(tree["answers"])
    digest = hashlib.sha256(repr((version, text, answers)).encode()).hexdigest()[:16]
    return Template(stage, version, text, answers, digest)


def filled(used: Template, words: Mapping[str, str], material: Mapping[str, str]) -> tuple[Segment, ...]:
    """The user message of a call: `words` are put in as they are, `material` between fences that it cannot close.

    Material comes from seeds and from models that have read them: it is untrusted, and what looks like a control token
    or a tag in it is broken (see `dpeer.eval.questions.prompting.broken`). A line of which all holes are empty is left
    out.
    """
    texts = {name: broken(visible(text).strip()) for name, text in material.items() if text}
    tag = fence_tag(list(texts.values()), TAG)
    known = {**dict.fromkeys(material, ""), **words, "tag": tag}
    segments: list[Segment] = []

    def trusted(text: str) -> None:
        if segments and segments[-1].trusted:
            segments[-1] = Segment(segments[-1].text + text, True)
        else:
            segments.append(Segment(text, True))

    for line in used.text.splitlines(keepends=True):
        holes = HOLE.findall(line)
        if holes and not any(texts.get(name) or known[name] for name in holes):
            continue
        at = 0
        for found in HOLE.finditer(line):
            trusted(line[at : found.start()])
            at, name = found.end(), found[1]
            if name not in texts:
                trusted(known[name])
                continue
            trusted(f"<{name}-{tag}>\n")
            segments.append(Segment(texts[name], False))
            trusted(f"\n</{name}-{tag}>")
        trusted(line[at:])
    return tuple(segments)


def read(text: str, answers: Sequence[str]) -> dict[str, str] | str:
    """The content of each tag of a reply; or in words what is wrong with it."""
    found = {}
    for tag in answers:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        if not inside:
            return f"the reply has no <{tag}>...</{tag}>"
        try:
            found[tag] = cells.text(whole(inside[-1]).strip(), tag)
            if MESSAGES.match(found[tag]):  # told without an excerpt: generators are told it as a word of ours
                return f"<{tag}> is a list of messages, which would be read as a conversation; text is needed"
        except cells.Invalid as invalid:
            return f"<{tag}> {invalid.message}"
    return found


def whole(text: str) -> str:
    """Without the marks by which material was broken, where a model has copied them."""
    return re.sub(rf"([<\[]){MARK}", r"\1", text)
