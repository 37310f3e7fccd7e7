"""A record as its chat template writes it: the prompt, and every response as the model would write it after that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dpeer.data.faults import excerpt
from dpeer.data.parts import THOUGHT, names
from dpeer.data.round_trip import now
from dpeer.data.schema import Message, Record, Response
from dpeer.data.template import on_day, speaks_of, variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENED = re.compile(r"(<([^\s<>/]*think[^\s<>/]*)>|\[(THINK)\])(\s*)\Z")
"""A thought that is open where a text ends."""
CLOSED = re.compile(r"(</[^\s<>]*think[^\s<>]*>|\[/THINK\])\s*\Z")
"""A thought that has just ended, with or without a word."""
INLINE = re.compile(r"\s*<think>(.*?)</think>(.*)\Z", re.DOTALL)
"""A response that holds its thought in its text."""
MARK = re.compile(r"</?[^\s<>/]*think[^\s<>/]*>|\[/?THINK\]")
WAY_OUT = "or give another template by model.chat_template"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """kwargs: what the template is asked beside messages and tools. end_of_turn: the token that ends a response where
    the template writes none. reasoning: whether the thoughts of responses are trained or left out."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    end_of_turn: str | None = None
    reasoning: Literal["train", "drop"] = "train"


class Unsound(Exception):
    """A fault of a record under its template."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


@dataclass(frozen=True, slots=True)
class Chat:
    """The template of a tokenizer, and what it is asked."""

    tokenizer: PreTrainedTokenizerBase
    options: ChatOptions

    def prompt(self, record: Record) -> str:
        """The prompt up to where the response begins. Unsound: the template refuses it, or drops or alters a text."""
        text = self.render(record, generate=True)
        for message in record.prompt:
            lost = _lost_of(message, text)
            if calls := message.more.get("tool_calls"):
                lost = lost or ("" if speaks_of(self.tokenizer, "tool_calls") else names(calls)[0])
            if lost:
                raise Unsound(
                    "prompt",
                    f"the chat template drops or alters the {message.role} message {excerpt(lost, 40)}; "
                    f"{_hint([message.role], bool(calls))}; rendered {excerpt(text)}",
                )
        known = speaks_of(self.tokenizer, "tools")
        unwritten = [name for name in names(json.loads(record.tools or "[]")) if not known or name not in text]
        if unwritten:
            raise Unsound(
                "tools", f"the chat template does not write the tool {unwritten[0]!r}: leave tools out, {WAY_OUT}"
            )
        return text

    def whole(self, record: Record, k: int, prompt: str) -> str:
        """Prompt and response k, up to the end of its turn, as generation from the prompt would give them.

        A thought goes to the template by its own key, else within the text, else, where the prompt ends in an opened
        thought, right behind that: the first that comes through. Unsound: none does.
        """
        response = record.responses[k]
        calls = response.more.get("tool_calls", [])
        thought, text, first = "", "", ""
        closed = CLOSED.search(prompt) is not None
        for thought, text in self._readings(response):
            if mark := MARK.search(thought):
                raise Unsound("", f"the reasoning holds {mark[0]!r}, which begins or ends a thought; leave it out")
            first = ""
            for said in _forms(thought, text, calls):
                whole = self.render(record, generate=False, answer=said)
                first = first or whole
                if (
                    not (thought and closed)
                    and whole.startswith(prompt)
                    and not _lost(whole[len(prompt) :], thought, text, calls)
                ):
                    return self._ended(whole, calls)
        opened = OPENED.search(prompt)
        if opened and thought and not calls:
            return self._ended(self._spliced(record, prompt, opened, thought, text), calls)
        self._refuse(first, prompt, opened is not None, thought, text, calls)
        return self._ended(first, calls)  # its tokens are no continuation of the prompt's: told with them

    def _readings(self, response: Response) -> list[tuple[str, str]]:
        """(thought, text), the one that is meant first: a thought within a text may be part of it for the template."""
        inner, outer = _parted(response)
        if self.options.reasoning == "drop":
            return [("", outer)]
        if thought := response.more.get("reasoning"):
            return [(thought, response.text)]
        return [("", response.text)] + ([(inner, outer)] if inner else [])

    def render(self, record: Record, generate: bool, answer: Mapping[str, Any] | None = None) -> str:
        """The template's text. Arguments of calls are objects, or their JSON where the template takes only text."""
        messages = [self._fields(m) for m in record.prompt] + ([dict(answer)] if answer else [])
        tools = json.loads(record.tools) if record.tools else None
        calls = any("tool_calls" in m for m in messages)
        try:
            return self._apply(messages, tools, generate)
        except Exception as error:  # a template is a program
            if calls:
                try:
                    return self._apply([_as_text(m) for m in messages], tools, generate)
                except Exception:
                    pass
            roles = [str(m["role"]) for m in messages]
            raise Unsound(
                "prompt",
                f"the chat template refuses the roles {', '.join(roles)}{' with calls of tools' if calls else ''}: "
                f"{excerpt(str(error), 100)}; {_hint(roles, calls)}",
            ) from error

    def _apply(self, messages: list[dict[str, Any]], tools: list[Any] | None, generate: bool) -> str:
        template = on_day(self.tokenizer.get_chat_template(tools=tools), now(self.tokenizer))
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                add_generation_prompt=generate,
                tokenize=False,
                **self.options.kwargs,
            )
        )

    def _fields(self, message: Message) -> dict[str, Any]:
        more = message.more
        thought = more.pop("reasoning", "")
        said = {"role": message.role, "content": message.content, **more}
        return said | dict.fromkeys(THOUGHT, thought) if thought and self.options.reasoning == "train" else said

    def _spliced(self, record: Record, prompt: str, opened: re.Match[str], thought: str, text: str) -> str:
        """prompt + thought + its end + text + what the template writes after the text."""
        plain = self.render(record, generate=False, answer={"role": "assistant", "content": text})
        base = prompt[: opened.start()]
        _, found, after = plain[len(base) :].rpartition(text.strip())
        if not plain.startswith(base) or not found:
            raise Unsound(
                "prompt",
                f"the chat template opens a thought ({opened[0]!r}) where its own answer has "
                f"{excerpt(plain[len(base) :] if plain.startswith(base) else plain)}; {self._asked()}{WAY_OUT}",
            )
        close = f"</{opened[2]}>" if opened[2] else f"[/{opened[3]}]"
        line = "\n" if "\n" in opened[4] else ""
        return f"{prompt}{thought.strip()}{line}{close}{line * 2}{text.strip()}{after}"

    def _ended(self, whole: str, calls: Sequence[Any]) -> str:
        """With the end of turn where the template writes none. Unsound: it writes another one."""
        token, said = self.options.end_of_turn, whole.rstrip()
        if token is None or said.endswith(token):
            return whole
        special = (t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special)
        own = next((t for t in special if said.endswith(t)), None)
        if own and (not calls or own == self.tokenizer.eos_token):  # calls may end in a token that ends no turn
            raise Unsound(
                "",
                f"the chat template ends the response by {own!r}, and data.end_of_turn {token!r} would be trained as a "
                f"second end: leave data.end_of_turn out, {WAY_OUT}",
            )
        return said + token

    def _refuse(
        self, whole: str, prompt: str, opened: bool, thought: str, text: str, calls: list[dict[str, Any]]
    ) -> None:
        begins = whole.startswith(prompt)
        if opened and not begins and not thought:
            raise Unsound(
                "",
                "the chat template's generation prompt opens a thought, and the response has none, so its tokens are "
                f"not what the model would see: {self._asked()}give responses as {{reasoning, text}}, {WAY_OUT}",
            )
        if thought and (not begins or CLOSED.search(prompt)):
            raise Unsound(
                "",
                f"the reasoning {excerpt(thought, 40)} does not follow from the chat template's generation prompt: "
                f"{self._asked()}train without it by data.reasoning=drop, {WAY_OUT}",
            )
        if not begins:
            return
        lost = _lost(whole[len(prompt) :], thought, text, calls)
        if calls and lost in names(calls):
            raise Unsound(
                "", f"the chat template does not write the call of {lost!r}: it takes no tools; {_hint([], True)}"
            )
        if thought and lost == thought:
            raise Unsound(
                "",
                f"the chat template drops the reasoning {excerpt(thought, 40)}; train without it by "
                f"data.reasoning=drop, {self._asked()}{WAY_OUT}",
            )
        if lost:
            raise Unsound(
                "",
                f"the chat template drops or alters the response {excerpt(lost, 40)}; mend the text, {WAY_OUT}; "
                f"rendered {excerpt(whole[len(prompt) :])}",
            )

    def _asked(self) -> str:
        """The template's own switches of thoughts."""
        switches = [v for v in variables(self.tokenizer) if "think" in v or "reason" in v]
        return f"set model.template_kwargs ({', '.join(switches)}), " if switches else ""


def _parted(response: Response) -> tuple[str, str]:
    """The thought within a response's text, and the rest."""
    match = INLINE.match(response.text)
    return (match[1].strip(), match[2].strip()) if match and match[2].strip() else ("", response.text)


def _forms(thought: str, text: str, calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    said = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    if thought:
        yield said | dict.fromkeys(THOUGHT, thought)
        yield said | {"content": f"<think>\n{thought.strip()}\n</think>\n\n{text}"}
    else:
        yield said


def _lost(tail: str, thought: str, text: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """What of a response is not in its rendering, thought before text; "" for nothing."""
    at = tail.find(thought.strip())
    if at < 0:
        return thought
    if text.strip() not in tail[at + len(thought.strip()) :]:
        return text
    for call in calls:
        for leaf in (call["function"]["name"], *_leaves(call["function"]["arguments"])):
            if not _written(leaf, tail):
                return str(leaf)
    return ""


def _lost_of(message: Message, text: str) -> str:
    """What of an earlier message is not in the prompt. Its thought may be: templates drop those of earlier turns."""
    content = message.content.strip()
    if message.role == "assistant" and content not in text and (match := INLINE.match(content)):
        content = match[2].strip()
    if content not in text and not (message.role == "tool" and _written(content, text)):
        return content
    return _lost(text, "", "", message.more.get("tool_calls", []))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _written(value: Any, text: str) -> bool:
    """As it is, or as JSON writes it."""
    forms = {str(value)} | {json.dumps(value, ensure_ascii=a).strip('"') for a in (True, False)}
    return any(form in text for form in forms)


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        c | {"function": c["function"] | {"arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)}}
        for c in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _hint(roles: Sequence[str], calls: bool = False) -> str:
    if calls or "tool" in roles:
        return f"mend the calls as it asks, leave such records out, {WAY_OUT}"
    if "system" in roles:
        return f"write the system text into the first user message, {WAY_OUT}"
    return f"order the turns as it asks, {WAY_OUT}"
