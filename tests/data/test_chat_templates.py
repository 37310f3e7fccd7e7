"""Templates that behave like those of the model lines people tune: what is trained is what generation would give."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpeer.config import Config, Model
from dpeer.config_io import _misread_booleans
from dpeer.data.chat import ChatOptions
from dpeer.data.parse import record as parsed
from dpeer.data.read import Row
from dpeer.data.schema import DataSet, Record
from dpeer.data.template import refuse_unread, variables, with_defaults
from dpeer.data.tokenize import audit
from dpeer.errors import ConfigError

FILES = Path(__file__).with_name("chat_templates")
SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>|<seed:[be]os>|\]~!?b[\]\[]|\[e~\[|<sop>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<seed:think>", "</seed:think>", "<answer>", "</answer>")
DAY = date(2026, 3, 5)

INLINE = "<think>\n{thought}\n</think>\n\n{text}"
NO_TOOLS = ("does not write the", "get_weather", "model.chat_template")
OPENS = ("opens a thought", "{reasoning, text}", "model.chat_template")
LOST = ("drops or alters", "model.chat_template")
CALL = '{"city": "Rome"}'
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'

Refused = tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """What the model writes after its prompt, by hand; or what the refusal says."""

    file: str
    plain: str | Refused
    thought: str | Refused
    call: str | Refused = NO_TOOLS
    tools: bool | Refused = NO_TOOLS
    system: bool | Refused = True
    kwargs: dict[str, Any] = field(default_factory=dict)
    end: str | None = None
    call_id: str = "call12345"


LINES = {
    "Qwen2.5": Line("qwen2_5", "{text}<|im_end|>", INLINE + "<|im_end|>", HERMES + "<|im_end|>", True),
    "Qwen3": Line(
        "qwen3", "<think>\n\n</think>\n\n{text}<|im_end|>", INLINE + "<|im_end|>",
        f"<think>\n\n</think>\n\n{HERMES}<|im_end|>", True,
    ),
    "Qwen3 at once": Line(
        "qwen3", "{text}<|im_end|>", ("does not follow", "enable_thinking", "data.reasoning=drop"),
        HERMES + "<|im_end|>", True, kwargs={"enable_thinking": False},
    ),
    "Llama 3.1": Line(
        "llama3_1", "{text}<|eot_id|>", INLINE + "<|eot_id|>",
        '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot_id|>', True,
    ),
    "Gemma": Line(
        "gemma2", "{text}<end_of_turn>", INLINE + "<end_of_turn>", tools=("alternate", "model.chat_template"),
        system=("System role not supported", "first user message", "model.chat_template"),
    ),
    "Mistral": Line(
        "mistral_v7", "{text}</s>", INLINE + "</s>",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}, "id": "call12345"}]</s>', True,
    ),
    "Mistral, other ids": Line(
        "mistral_v7", "{text}</s>", INLINE + "</s>", ("length 9", "mend the calls as it asks"),
        ("length 9", "mend the calls as it asks"), call_id="1",
    ),
    "Ministral": Line(
        "ministral", "{text}</s>", "[THINK]{thought}[/THINK]{text}</s>", f"[TOOL_CALLS]get_weather[ARGS]{CALL}</s>",
        True,
    ),
    "Phi-4": Line(
        "phi4", "{text}<|im_end|>", INLINE + "<|im_end|>", tools=(*LOST, "get_weather")
    ),
    "GLM-4.5": Line(
        "glm4_5", "\n<think></think>\n{text}<|user|>", "\n<think>{thought}</think>\n{text}<|user|>",
        "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
        "<|user|>", True, end="<|user|>",
    ),
    "GLM-4.5 at once": Line(
        "glm4_5", "\n{text}<|user|>", ("does not follow", "enable_thinking"),
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call><|user|>", True,
        kwargs={"enable_thinking": False}, end="<|user|>",
    ),
    "GLM-4.5 without its end": Line(
        "glm4_5", ("no end-of-turn token", "data.end_of_turn"), ("data.end_of_turn",), ("data.end_of_turn",),
        ("data.end_of_turn",), ("data.end_of_turn",),
    ),
    "DeepSeek-R1": Line(
        "deepseek_r1", OPENS, "{thought}\n</think>\n\n{text}</s>", OPENS, ("get_weather", "model.chat_template"), OPENS
    ),
    "DeepSeek-V3.1": Line(
        "deepseek_v3_1", "{text}</s>", ("does not follow", "data.reasoning=drop", "model.template_kwargs (thinking)"),
        f"<|tool_call|>get_weather<|tool_sep|>{CALL}<|tool_end|></s>",
    ),
    "DeepSeek-V3.1 thinking": Line(
        "deepseek_v3_1", (*OPENS, "model.template_kwargs (thinking)"), "{thought}</think>{text}</s>", OPENS,
        system=OPENS, kwargs={"thinking": True},
    ),
    "Nemotron": Line(
        "nemotron_nano", OPENS, "{thought}\n</think>\n\n{text}<|end|>", OPENS, ("Unexpected role tool", "model.chat_t"),
        OPENS,
    ),
    "gpt-oss": Line(
        "gpt_oss", "<|channel|>final<|message|>{text}<|return|>",
        "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{CALL}<|call|>", True,
        kwargs={"reasoning_effort": "low"},
    ),
    "OLMo 2": Line(
        "olmo2", "{text}</s>", INLINE + "</s>", tools=(*LOST, "get_weather")
    ),
    "SmolLM3": Line(
        "smollm3", "{text}<|im_end|>", INLINE + "<|im_end|>", tools=LOST
    ),
    "SmolLM3 at once": Line(
        "smollm3", "{text}<|im_end|>", ("does not follow", "enable_thinking", "data.reasoning=drop"),
        tools=LOST, kwargs={"enable_thinking": False},
    ),
    "Command-R": Line(
        "command_r", "{text}<|END_OF_TURN_TOKEN|>", INLINE + "<|END_OF_TURN_TOKEN|>",
        tools=("must alternate", "model.chat_template"),
    ),
    "Granite": Line(
        "granite3", "{text}<|end_of_text|>", INLINE + "<|end_of_text|>",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]<|end_of_text|>', True,
        kwargs={"thinking": True},
    ),
    "MiniMax-M2": Line("minimax_m2", OPENS, "{thought}\n</think>\n\n{text}[e~[", OPENS, OPENS, OPENS),
    "Hunyuan": Line(
        "hunyuan", "<think>\n\n</think>\n<answer>\n{text}\n</answer></s>",
        "<think>\n{thought}\n</think>\n<answer>\n{text}\n</answer></s>", tools=LOST,
    ),
    "Seed-OSS": Line(
        "seed_oss", "{text}<seed:eos>", "<seed:think>{thought}</seed:think>\n{text}<seed:eos>",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Rome</parameter>\n</function>\n</seed:tool_call>"
        "<seed:eos>", True,
    ),
}  # fmt: skip

USER = {"role": "user", "content": "How warm is it?"}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
THOUGHT, TEXT, WORSE = "He asks for a number.", "It is mild, 18 degrees.", "Look outside."


def called(call_id: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": "Rome"}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": call_id, "function": function}],
    }


def prompts(call_id: str) -> dict[str, list[dict[str, Any]]]:
    earlier = {"role": "assistant", "content": "Good day."}
    thinking = earlier | dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "A greeting.")
    inline = earlier | {"content": "<think>\nA greeting.\n</think>\n\nGood day."}
    hello = {"role": "user", "content": "Hello"}
    answer = {"role": "tool", "content": '18 "C"', "tool_call_id": call_id, "name": "get_weather"}
    return {
        "single": [USER],
        "several turns": [hello, earlier, USER],
        "an earlier thought": [hello, thinking, USER],
        "an earlier thought in the text": [hello, inline, USER],
        "system": [{"role": "system", "content": "Be brief."}, USER],
        "tools": [USER, called(call_id), answer],
    }


@cache
def tokenizer(file: str) -> PreTrainedTokenizerFast:
    """Byte-level, with the marks of all templates as tokens; those of thoughts and calls are none of control."""
    sources = {path.stem: path.read_text() for path in sorted(FILES.glob("*.jinja"))}
    inner = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), bytes_])
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator([TEXT, THOUGHT, WORSE, "\n\n\n"], trainers.BpeTrainer(initial_alphabet=alphabet))
    roles = {f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
    marks = sorted({m for s in sources.values() for m in SPECIAL.findall(s)} | roles | {"<s>", "</s>"})
    inner.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
    inner.add_tokens([AddedToken(m, normalized=False, special=False) for m in TAGS])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    made.chat_template = sources[file]
    made.today = DAY
    return made


def made(prompt: list[dict[str, Any]], golden: Any, reject: Any, tools: Any = None) -> Record:
    """As a file gives it."""
    responses = [golden | {"fails": []}, reject | {"fails": ["A"]}]
    found = parsed(Row("t:1", "t, row 1", {"prompt": prompt, "mask": ["A"], "responses": responses, "tools": tools}))
    assert isinstance(found, Record), found
    return found


def check(line: Line, record: Record, prompt: str, expected: str | Refused, values: list[dict[str, str]]) -> None:
    """Tokens of prompt and responses, or the refusal."""
    t = tokenizer(line.file)
    trees, faults = audit(DataSet(("A",), (record,)), t, ChatOptions(line.kwargs, line.end))
    if isinstance(expected, tuple):
        (fault,) = faults
        assert fault.where == "t:1" and all(part in fault.message for part in expected), fault
        return
    assert not faults
    (tree,) = trees
    assert t.decode(tree.prompt) == prompt
    for ids, value in zip(tree.responses, values, strict=False):
        text = expected
        for key, word in value.items():
            text = text.replace("{" + key + "}", word)
        assert t.decode(ids) == text
        whole = t(prompt + text, add_special_tokens=False)["input_ids"]
        assert whole == [*tree.prompt, *ids]


def asked(line: Line, prompt: list[dict[str, Any]], tools: Any = None) -> str:
    """What an inference engine would send."""
    if line.file == "deepseek_v3_1":
        prompt = [json.loads(json.dumps(m).replace('{"city": "Rome"}', '"{\\"city\\": \\"Rome\\"}"')) for m in prompt]
    options = {"tools": tools, "add_generation_prompt": True, "tokenize": False} | line.kwargs
    return str(tokenizer(line.file).apply_chat_template(prompt, chat_template=dated(line.file), **options))


def dated(file: str) -> str:
    """The template with the day of the tests written in, format by format."""
    day = datetime.combine(DAY, datetime.min.time())
    template = str(tokenizer(file).chat_template)
    for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y"):
        template = template.replace(f"strftime_now('{form}')", f"'{day.strftime(form)}'")
    return template


TEXTS = ({"text": TEXT}, {"text": WORSE})


@pytest.mark.parametrize("turns", ["single", "several turns", "an earlier thought", "an earlier thought in the text"])
@pytest.mark.parametrize("name", LINES)
def test_texts(name: str, turns: str) -> None:
    line = LINES[name]
    prompt = prompts(line.call_id)[turns]
    check(line, made(prompt, *TEXTS), asked(line, prompt), line.plain, [*TEXTS])


@pytest.mark.parametrize("name", LINES)
def test_system(name: str) -> None:
    line = LINES[name]
    prompt = prompts(line.call_id)["system"]
    sound = line.system is True
    check(
        line, made(prompt, *TEXTS), asked(line, prompt) if sound else "", line.plain if sound else line.system, [*TEXTS]
    )


@pytest.mark.parametrize("name", LINES)
def test_thoughts(name: str) -> None:
    line = LINES[name]
    thoughts = [{"reasoning": THOUGHT, "text": TEXT}, {"reasoning_content": "Never mind.", "text": WORSE}]
    values = [{"thought": THOUGHT, "text": TEXT}, {"thought": "Never mind.", "text": WORSE}]
    for turns in ("single", "several turns"):
        prompt = prompts(line.call_id)[turns]
        check(line, made(prompt, *thoughts), asked(line, prompt), line.thought, values)


@pytest.mark.parametrize("name", LINES)
def test_tools(name: str) -> None:
    line = LINES[name]
    prompt = prompts(line.call_id)["tools"]
    sound = line.tools is True
    said = asked(line, prompt, [TOOL]) if sound else ""
    check(line, made(prompt, *TEXTS, [TOOL]), said, line.plain if sound else line.tools, [*TEXTS])


@pytest.mark.parametrize("name", LINES)
def test_calls(name: str) -> None:
    """The better response calls a tool, the worse one does not."""
    line = LINES[name]
    call = {"tool_calls": called(line.call_id)["tool_calls"]}
    check(line, made([USER], call, TEXTS[1]), asked(line, [USER]), line.call, [{}])


@pytest.mark.parametrize("name", LINES)
def test_thoughts_left_out_leave_the_plain_answer(name: str) -> None:
    """As the template writes it without one: what a model is trained to say is what is read of it."""
    line, t = LINES[name], tokenizer(LINES[name].file)
    thoughtful = made([USER], {"reasoning": THOUGHT, "text": TEXT}, {"text": f"<think>No.</think>{WORSE}"})
    options = ChatOptions(line.kwargs, line.end, "drop")
    found, plain = (audit(DataSet(("A",), (r,)), t, options)[0] for r in (thoughtful, made([USER], *TEXTS)))
    assert found == plain and bool(found) == isinstance(line.plain, str)


def test_a_thought_in_the_text_follows_an_opened_one() -> None:
    line = LINES["DeepSeek-R1"]
    record = made([USER], {"text": f"<think>\n{THOUGHT}\n</think>\n\n{TEXT}"}, {"text": f"<think>No.</think>{WORSE}"})
    check(line, record, asked(line, [USER]), line.thought, [{"thought": THOUGHT, "text": TEXT}])


@pytest.mark.parametrize("thought", ["Hm</think>", "<think>Hm", "[/THINK]"])
def test_a_thought_cannot_end_itself(thought: str) -> None:
    record = made([USER], {"reasoning": thought, "text": TEXT}, TEXTS[1])
    (fault,) = audit(DataSet(("A",), (record,)), tokenizer("qwen3"))[1]
    assert "leave it out" in fault.message or "control token" in fault.message


@pytest.mark.parametrize(("token", "words"), [("<|nobody|>", "must be one token"), ("the end", "must be one token")])
def test_the_end_of_turn_is_one_token(token: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        audit(DataSet(("A",), (made([USER], *TEXTS),)), tokenizer("glm4_5"), ChatOptions(end_of_turn=token))


def test_a_second_end_of_turn_is_refused() -> None:
    """Also after a call, where the template ends it by the tokenizer's own end."""
    calls = [{"text": "", "tool_calls": [{"name": "look", "arguments": {"city": c}}]} for c in ("Rome", "Bonn")]
    for said, file, end in ((TEXTS, "qwen3", "<|im_end|>"), (calls, "deepseek_v3_1", "</s>")):
        record = made([USER], *said)
        (fault,) = audit(DataSet(("A",), (record,)), tokenizer(file), ChatOptions(end_of_turn="<|user|>"))[1]
        assert "second end" in fault.message and repr(end) in fault.message
    same = audit(DataSet(("A",), (made([USER], *TEXTS),)), tokenizer("qwen3"), ChatOptions(end_of_turn="<|im_end|>"))
    assert len(same[0]) == 1 and not same[1]


@pytest.mark.parametrize("name", LINES)
def test_the_export_is_asked_as_in_training(name: str) -> None:
    """Without a word, its template writes what was trained; asked otherwise, it answers so."""
    line, t = LINES[name], tokenizer(LINES[name].file)
    refuse_unread(line.kwargs, t)
    exported = with_defaults(dated(line.file), line.kwargs)
    chat = prompts(line.call_id)["several turns"]
    options = {"add_generation_prompt": True, "tokenize": False}
    assert t.apply_chat_template(chat, chat_template=exported, **options) == asked(line, chat)
    for key in line.kwargs:
        other = {key: "high" if key == "reasoning_effort" else not line.kwargs[key]}
        again = t.apply_chat_template(chat, chat_template=exported, **options, **other)
        told = t.apply_chat_template(chat, chat_template=dated(line.file), **options, **other)
        assert again == told != asked(line, chat)


def test_a_template_that_strips_thoughts_and_opens_none_is_refused() -> None:
    t = copy.deepcopy(tokenizer("qwen2_5"))
    t.chat_template = t.chat_template.replace("m.content }}{%- endif", "m.content.split('</think>')[-1] }}{%- endif")
    thoughts = {"reasoning": THOUGHT, "text": TEXT}, {"text": f"<think>No.</think>{WORSE}"}
    (fault,) = audit(DataSet(("A",), (made([USER], *thoughts),)), t)[1]
    assert "drops the reasoning" in fault.message and "data.reasoning=drop" in fault.message


def test_options_that_a_template_never_reads_are_named() -> None:
    assert variables(tokenizer("qwen3")) == ["enable_thinking"]
    assert variables(tokenizer("llama3_1")) == ["date_string"]
    with pytest.raises(ConfigError, match=r"never reads thinking, .*it reads enable_thinking"):
        refuse_unread({"thinking": True, "enable_thinking": True}, tokenizer("qwen3"))
    with pytest.raises(ConfigError, match=r"never reads messages, .*it reads none"):
        refuse_unread({"messages": []}, tokenizer("gemma2"))


@pytest.mark.parametrize("value", [True, None, 3, 'a "quoted"\n\\ word é', ["x", {"y": False}]])
def test_defaults_of_any_kind(value: Any) -> None:
    t = tokenizer("gemma2")
    template = "{{ x | tojson }}{% for m in messages %}{{ x | tojson }}{% endfor %}"
    chat = [USER]
    told = t.apply_chat_template(chat, chat_template=template, tokenize=False, x=value)
    assert t.apply_chat_template(chat, chat_template=with_defaults(template, {"x": value}), tokenize=False) == told


def test_options_of_a_template_may_be_true_or_false_and_a_model_is_a_key() -> None:
    kwargs = {"enable_thinking": False, "effort": "low"}
    asked, same = (Model(path="m", template_kwargs=dict(kwargs)) for _ in range(2))
    assert asked == same and hash(asked) == hash(same) != hash(Model(path="m"))
    tree = {"name": "x", "model": {"path": "m", "template_kwargs": kwargs}, "data": {"train": "d"}}
    assert not list(_misread_booleans(tree, Config))
    assert list(_misread_booleans({"seed": True}, Config))
