"""Judge prompts: the conversation first, fenced as untrusted data, then one question about it; and their tokens.

All calls about one conversation (dimensions x criteria x repeats) share every segment but the last, and share its
tokens exactly, because segments are encoded one by one: an engine with prefix caching reads the conversation once.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from dpeer.data.schema import Message
from dpeer.data.template import on_day
from dpeer.errors import ConfigError
from dpeer.eval.questions.rubric import Rubric
from dpeer.eval.questions.shown import PLAIN, Shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["up", "down"]
Mode = Literal["logprob", "structured"]

_LETTERS = "bcdfghjklmnpqrst"
"""One per hex digit: a tag without digits cannot be taken for a rating."""
TAG, TERSE_TAG = 8, 3
"""Letters of a fence's tag."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a judge prompt. Untrusted text comes from data: the prompt and the response that is judged."""

    text: str
    trusted: bool


def judge_segments(
    rubric: Rubric,
    prompt: str,
    response: str,
    dimension: str,
    criterion: str,
    order: Order,
    mode: Mode,
    shown: Shown = PLAIN,
) -> tuple[Segment, ...]:
    """The user message of one judge call: fence, prompt, divider, response, fence, question.

    A conversation (`shown.messages`) stands in place of prompt and response, with a divider before each message; a
    reference answer follows behind fences of its own. All but the last segment depend on rubric and texts only. Fences
    and dividers carry a tag that occurs in none of the texts, so no text can close them. order: "up" lists the scale
    from the lowest score, "down" from the highest. Raises ConfigError for a dimension or criterion that the rubric
    lacks.
    """
    question = _terse_question if rubric.terse else _question
    task = question(rubric, dimension, criterion, order, mode, shown)
    talk = shown.messages or (Message("user", prompt), Message("response", response))
    texts = [visible(message.content) for message in talk]
    reference = visible(shown.reference)
    tag = fence_tag([*texts, *([reference] if reference else [])], TERSE_TAG if rubric.terse else TAG)
    dividers, closing = _terse_fences(talk, tag) if rubric.terse else _fences(rubric, shown, talk, tag)
    pieces = [s for d, t in zip(dividers, texts, strict=True) for s in (Segment(d, True), Segment(t, False))]
    return (*pieces, Segment(closing, True), *reference_segments(rubric, reference, tag), Segment(task, True))


def reference_segments(rubric: Rubric, reference: str, tag: str) -> tuple[Segment, ...]:
    """A reference answer between fences of its own; nothing where there is none."""
    if not reference:
        return ()
    opening = f"\n{rubric.words.reference}\n\n<reference-{tag}>\n"
    return Segment(opening, True), Segment(reference, False), Segment(f"\n</reference-{tag}>\n", True)


def fence_tag(texts: Sequence[str], length: int) -> str:
    """Letters from a hash of the texts that occur in none of them, in whatever case or width; longer where need be."""
    content = unicodedata.normalize("NFKC", "\0".join(texts)).casefold()
    digest = hashlib.sha256("\0".join(texts).encode())
    for attempt in itertools.count():
        digest.update(b"%d" % attempt)
        tag = "".join(_LETTERS[int(digit, 16)] for digit in digest.hexdigest()[: length + attempt // 8])
        if tag not in content:
            return tag
    raise AssertionError("a text of finite length lacks some tag")


def visible(text: str) -> str:
    r"""The text with nothing unprintable that could hide or break something.

    Line ends become \n. Other control characters become their pictures (NUL is U+2400, DEL is U+2421), C1 controls and
    lone surrogates U+FFFD. Tabs, newlines and everything else, right-to-left marks included, stay.
    """
    return _CONTROLS.sub(_picture, text.replace("\r\n", "\n").replace("\r", "\n"))


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def _fences(rubric: Rubric, shown: Shown, talk: Sequence[Message], tag: str) -> tuple[list[str], str]:
    """What stands before each message, and behind the last."""
    words = rubric.words
    kind = "conversation" if shown.messages else "exchange"
    said = (words.conversation_all if shown.whole else words.conversation_last) if shown.messages else words.exchange
    role = f"{rubric.role}\n\n" if rubric.role else ""
    first = f"<{talk[0].role}-{tag}>\n" if shown.messages else ""
    opening = f"{role}{said.format(tag=tag)}\n\n<{kind}-{tag}>\n{first}"
    return [opening, *(f"\n<{message.role}-{tag}>\n" for message in talk[1:])], f"\n</{kind}-{tag}>\n"


def _terse_fences(talk: Sequence[Message], tag: str) -> tuple[list[str], str]:
    return [f"<{tag}>", *(f"|{tag}|" for _ in talk[1:])], f"</{tag}>"


def _question(rubric: Rubric, dimension: str, criterion: str, order: Order, mode: Mode, shown: Shown) -> str:
    words, whole = rubric.words, shown.whole and bool(shown.messages)
    about = rubric.dimension(dimension)
    scores = rubric.scale if order == "up" else rubric.scale[::-1]
    listed = ", ".join(map(str, scores))
    question, anchors = shown.criteria, dict[int, str]()
    if not shown.instead:
        content = rubric.criterion(dimension, criterion)
        question, anchors = content.question, content.anchors
    described = [f"{score}: {anchors[score]}" for score in scores] if anchors else [words.scores.format(listed=listed)]
    also = [words.item.format(criteria=shown.criteria)] if shown.criteria and not shown.instead else []
    answers = (words.number, words.json_all if whole else words.json_last)
    answer = answers[mode == "structured"].format(listed=listed)
    return "\n".join(
        [
            "",
            (words.rate_all if whole else words.rate_last).format(title=about.title),
            *([about.description] if about.description else []),
            "",
            question,
            *also,
            *described,
            "",
            f"{words.fits_all if whole else words.fits_last} {answer}",
        ]
    )


def _terse_question(rubric: Rubric, dimension: str, criterion: str, order: Order, mode: Mode, shown: Shown) -> str:
    first, *_, last = rubric.scale if order == "up" else rubric.scale[::-1]
    answer = "" if mode == "logprob" else ' {"rationale", "score"}'
    return f"{rubric.criterion(dimension, criterion).question} {first}-{last}{answer}"


# Tokens


def encode_chat(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> list[int]:
    """Token ids of the model's chat template around one user message that consists of the segments.

    Only the template yields control tokens: a `<|im_end|>` inside a segment is ordinary text. Where the template's own
    marks are ordinary text too (`[INST]` of Llama 2), marks in untrusted text are broken as in `chat_messages`. Every
    segment is encoded by itself, so equal leading segments are equal leading ids. A reasoning model's template is
    asked to leave thinking out, where it knows that option.
    Raises ConfigError where the template is missing, or refuses or alters a user message.
    """
    head, tail = _frame(tokenizer, *_rendered(tokenizer))
    return [*head, *itertools.chain.from_iterable(_segment_ids(tokenizer, s) for s in segments), *tail]


def prefix_length(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> int:
    """Leading tokens of `encode_chat` that all calls about the same conversation share."""
    head, _ = _frame(tokenizer, *_rendered(tokenizer))
    return len(head) + sum(len(_segment_ids(tokenizer, s)) for s in segments[:-1])


def generation_ids(tokenizer: PreTrainedTokenizerBase, answer: str = "") -> list[int]:
    """Token ids of what the chat template writes after the user message, followed by the start of an answer."""
    _, tail = _rendered(tokenizer)
    return _joined_ids(tokenizer, tail + answer)


def chat_messages(segments: Sequence[Segment]) -> list[dict[str, str]]:
    """The same as messages for an endpoint that applies a template that we do not see.

    There untrusted text that looks like a control token (`<|im_end|>`, `</s>`, `<think>`, `[INST]`) gets a
    zero-width U+2060 behind its first character, so that no tokenizer takes it for one.
    """
    return [{"role": "user", "content": "".join(s.text if s.trusted else broken(s.text) for s in segments)}]


def broken(text: str) -> str:
    """With a U+2060 in what looks like a control token."""
    return _MARK.sub("\\g<0>\u2060", text)


_MARK = re.compile(r"<(?=[|\uff5c/A-Za-z_])|\[(?=/?[A-Z_]+\])")
_WHOLE_MARK = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")

_PLACEHOLDER = "placeholder-of-the-user-message"
_NO_THINKING = {"enable_thinking": False}
"""A reasoning model must answer at once; in training its template writes the same empty thought. Others ignore it."""
_ASKED = "template_kwargs"
"""Key of tokenizer_config.json in exports: what the template was asked in training."""
_DAY = datetime(2026, 1, 1)
"""Today, for templates that write it: a prompt must not change from day to day."""


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """A chat as the model's template writes it, up to where the reply begins; an export's is asked as in training.

    Raises ConfigError where the template is missing or refuses the messages.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            f"{_named(tokenizer)} has no chat template, so it cannot be asked anything; use an instruction-tuned model"
        )
    trained = tokenizer.init_kwargs.get(_ASKED)
    options: dict[str, Any] = _NO_THINKING if trained is None else trained
    options = options | {"add_generation_prompt": True, "tokenize": False}
    try:
        template = on_day(tokenizer.get_chat_template(), _DAY)
        return str(tokenizer.apply_chat_template(list(messages), chat_template=template, **options))
    except (TemplateError, TypeError, ValueError) as error:
        roles = " and a ".join(m["role"] for m in messages)
        hint = "; leave out generation.system, or the prompt's own" if messages[0]["role"] == "system" else ""
        raise ConfigError(f"{_named(tokenizer)}: its chat template refuses a {roles} message: {error}{hint}") from error


def _rendered(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the template writes before and after the user message."""
    return _render(tokenizer, str(tokenizer.chat_template or ""))


@lru_cache(maxsize=8)
def _render(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    text = render_chat(tokenizer, [{"role": "user", "content": _PLACEHOLDER}])
    head, placeholder, tail = text.partition(_PLACEHOLDER)
    if not placeholder or _PLACEHOLDER in tail:
        raise ConfigError(f"{_named(tokenizer)}: its chat template drops, repeats or alters the user message")
    return head, tail


@lru_cache(maxsize=8)
def _frame(tokenizer: PreTrainedTokenizerBase, head: str, tail: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(_ids(tokenizer, head)), tuple(_joined_ids(tokenizer, tail))


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "this tokenizer"


@lru_cache(maxsize=8)
def _marks_are_text(tokenizer: PreTrainedTokenizerBase, head: str, tail: str) -> bool:
    """Whether the template separates turns by something that the tokenizer does not know as a token of its own."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return any(mark not in added for mark in _WHOLE_MARK.findall(head + tail))


def _segment_ids(tokenizer: PreTrainedTokenizerBase, segment: Segment) -> tuple[int, ...]:
    if not segment.trusted and _marks_are_text(tokenizer, *_rendered(tokenizer)):
        return _data_ids(tokenizer, broken(segment.text))
    return _data_ids(tokenizer, segment.text)


@lru_cache(maxsize=16)
def _data_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(_harmless_ids(tokenizer, text))


def _harmless_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text none of which is a control token: a text with one is cut until the token falls apart.

    (`split_special_tokens` of transformers would leave added tokens that are not marked special, such as `<think>`.)
    """
    ids = _joined_ids(tokenizer, text)
    if len(text) < 2 or _control_ids(tokenizer).isdisjoint(ids):
        return ids
    middle = len(text) // 2
    return _harmless_ids(tokenizer, text[:middle]) + _harmless_ids(tokenizer, text[middle:])


@lru_cache(maxsize=8)
def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Added tokens of two characters or more; runs of white space, which some tokenizers add too, control nothing."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, t in added.items() if len(t.content.strip()) > 1) - {tokenizer.unk_token_id}


def _joined_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as they would be in the middle of a longer one."""
    if not text or not _starts_anew(tokenizer):
        return _ids(tokenizer, text)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{_named(tokenizer)} is a slow one that writes a space before every piece of text; use the model's fast "
            "tokenizer (tokenizer.json)"
        )
    encoded = tokenizer(_ANCHOR + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        i for i, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if end > len(_ANCHOR)
    ]


_ANCHOR = "\ue000"
"""A private-use character: no vocabulary merges it with what follows."""


@lru_cache(maxsize=8)
def _starts_anew(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before each text that it encodes (sentencepiece's dummy prefix)."""
    return str(tokenizer.decode(_ids(tokenizer, "a") + _ids(tokenizer, "b"))) != "ab"


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
