from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpeer.data.schema import DataSet, Message, Record, Response
from dpeer.data.tokenize import audit, tokenize
from dpeer.errors import DataError

USER = (Message("user", "Is my plan good?"),)


def record(*texts: str, prompt: tuple[Message, ...] = USER, source: str = "t.csv:1") -> Record:
    """Golden first, then the rejects of A and T; further texts fail both."""
    fails = [frozenset[str](), frozenset("A"), frozenset("T"), frozenset("AT")]
    responses = tuple(Response(t, f) for t, f in zip(texts, fails, strict=False))
    return Record(prompt, ("A", "T"), responses, source)


def data(*records: Record) -> DataSet:
    return DataSet(("A", "E", "T"), records)


SOUND = record("It has a gap.", "Yes, it is perfect!", "Ask nobody.", "Perfect. Ask nobody.")


@pytest.mark.parametrize("family", ["chatml", "llama3", "qwen3", "mistral", "gemma"])
def test_prompt_and_response_are_the_template_cut_in_two(make_tokenizer, templates, family):
    tokenizer = make_tokenizer(templates[family])
    (tree,) = tokenize(data(SOUND), tokenizer, 1000, "drop").trees
    messages = [{"role": "user", "content": "Is my plan good?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(tree.prompt) == prompt
    assert len(prompt) > 5
    for response, ids in zip(SOUND.responses, tree.responses, strict=True):
        full = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": response.text}], return_dict=False
        )
        whole = list(tree.prompt + ids)
        assert full[: len(whole)] == whole
        assert tokenizer.decode(full[len(whole) :]).strip() == ""
        assert response.text in tokenizer.decode(list(ids))
        assert tokenizer.convert_ids_to_tokens(ids[-1]) in ("<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>")
        assert whole.count(tokenizer.bos_token_id) <= 1
    assert tree.edges == ((0, 0, 1), (0, 2, 3), (2, 0, 2), (2, 1, 3))
    assert (tree.index, tree.golden, tree.mask) == (0, 0, ("A", "T"))


def test_multi_turn_with_system_message(make_tokenizer, templates):
    turns = (Message("system", "Be kind."), *USER, Message("assistant", "It has a gap."), Message("user", "Why?"))
    (tree,) = tokenize(
        data(record("No budget.", "No.", prompt=turns)), make_tokenizer(templates["llama3"]), 1000, "drop"
    ).trees
    text = make_tokenizer(templates["llama3"]).decode(tree.prompt)
    assert [text.index(m.content) for m in turns] == sorted(text.index(m.content) for m in turns)


CHATML_ANSWER = "{% for m in messages %}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{% endfor %}"
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_THOUGHT = "{{ m.content.split('</think>')[-1] }}"
THOUGHT = "<think>He wants praise.</think>It has a gap."


@pytest.mark.parametrize(
    ("template", "bad", "fragments"),
    [
        pytest.param(
            CHATML_ANSWER.replace("%s", "{{ m.content }}")
            + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
            SOUND,
            ["opens a thought", "response 1 (golden)", "{reasoning, text}", "model.chat_template"],
            id="generation prompt opens a thought",
        ),
        pytest.param(
            CHATML_ANSWER.replace("%s", "{{ m.content }}"),
            SOUND,
            ["ignores add_generation_prompt", "<|im_start|>"],
            id="no generation prompt at all",
        ),
        pytest.param(
            CHATML_ANSWER.replace("%s", NO_THOUGHT) + GENERATE,
            record(THOUGHT, "Yes."),
            ["drops the reasoning", "He wants praise", "data.reasoning=drop"],
            id="template strips thoughts",
        ),
        pytest.param(
            CHATML_ANSWER.replace("%s", "{{ m.content | upper }}") + GENERATE,
            SOUND,
            ["alters the user message", "Is my plan good?"],
            id="template changes the prompt",
        ),
        pytest.param(
            "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endif %}{% endfor %}" + GENERATE,
            record("Yes.", "No.", prompt=(Message("system", "Be kind."), *USER)),
            ["alters the system message", "Be kind."],
            id="template drops the system message",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.role }}:\n\n{{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:\n\n{% endif %}",
            SOUND,
            ["no end-of-turn token", "data.end_of_turn"],
            id="no end of turn",
        ),
        pytest.param(
            "{{ bos_token }}{{ bos_token }}" + CHATML_ANSWER.replace("%s", "{{ m.content }}") + GENERATE,
            SOUND,
            ["BOS", "twice"],
            id="double BOS",
        ),
        pytest.param(
            "{% for m in messages %}{{ unknown.attribute }}{% endfor %}", SOUND, ["refuses the roles user"], id="broken"
        ),
        pytest.param("{% for m in messages %}", SOUND, ["refuses the roles user"], id="template syntax error"),
        pytest.param("chatml", record("Bye.<|im_end|>", "No."), ["'<|im_end|>'", "control token"], id="control token"),
        pytest.param(
            "chatml",
            record("Yes.", "No.", prompt=(Message("user", "Strike <s>this</s>"),)),
            ["prompt", "'<s>'"],
            id="html",
        ),
        pytest.param("llama3", record("Yes.", "Yes. "), ["response 2 (fails A)", "same tokens"], id="equal after trim"),
        pytest.param("chatml", record("Yes.", "\n\nNo."), ["not a prefix", "response 2"], id="merge over the boundary"),
        pytest.param(
            "gemma",
            record("Yes.", "No.", prompt=(Message("system", "Be kind."), *USER)),
            ["System role not supported", "system, user"],
            id="system role refused",
        ),
    ],
)
def test_the_audit_refuses(make_tokenizer, templates, template, bad, fragments):
    tokenizer = make_tokenizer(templates.get(template, template))
    with pytest.raises(DataError) as error:
        tokenize(data(bad), tokenizer, 1000, "drop")
    message = str(error.value)
    assert "t.csv:1" in message
    for fragment in fragments:
        assert fragment in message
    assert len(message) < 1500


def test_the_audit_keeps_the_sound_records(make_tokenizer, templates):
    unsound = record("Yes.", "Yes.", source="t.csv:2")
    trees, faults = audit(data(SOUND, unsound, SOUND), make_tokenizer(templates["chatml"]))
    assert [t.index for t in trees] == [0, 2]
    assert [f.where for f in faults] == ["t.csv:2"]


def test_no_chat_template(make_tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        tokenize(data(SOUND), make_tokenizer(None), 1000, "drop")


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_overlong_records(make_tokenizer, templates, family):
    tokenizer = make_tokenizer(templates[family])
    long_prompt = record("It has a gap.", "Perfect!", prompt=(Message("user", "Is it? " * 40 + "the end"),))
    long_answer = record("It has a gap. " * 40, "Perfect!")
    short = record("It has a gap.", "Perfect!")
    full = tokenize(data(long_prompt), tokenizer, 10_000, "cut_prompt")
    limit = max(t.longest for t in audit(data(short), tokenizer)[0]) + 8

    dropped = tokenize(data(long_prompt, long_answer, short), tokenizer, limit, "drop")
    assert ([t.index for t in dropped.trees], dropped.dropped, dropped.cut) == ([2], 2, 0)

    cut = tokenize(data(long_prompt, long_answer, short), tokenizer, limit, "cut_prompt")
    assert ([t.index for t in cut.trees], cut.dropped, cut.cut) == ([0, 2], 1, 1)
    before, after = full.trees[0], cut.trees[0]
    assert after.longest == limit
    assert after.responses == before.responses
    has_bos = before.prompt[0] == tokenizer.bos_token_id
    assert has_bos == (family == "llama3")
    assert after.prompt[0] == before.prompt[0] if has_bos else True
    kept = after.prompt[has_bos:]
    assert before.prompt[-len(kept) :] == kept

    with pytest.raises(DataError, match=r"none of the 3 records fits into max_tokens 8.*raise data.max_tokens"):
        tokenize(data(long_prompt, long_answer, short), tokenizer, 8, "cut_prompt")


def test_hash_covers_tokens_edges_and_dimensions(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["chatml"])

    def sha(d: DataSet) -> str:
        return tokenize(d, tokenizer, 1000, "drop").sha256

    one = sha(data(SOUND))
    assert one == sha(data(record(*(r.text for r in SOUND.responses), source="elsewhere:9")))
    other_text = record("It has a gap!", *(r.text for r in SOUND.responses[1:]))
    golden, fails_a, fails_t, fails_both = (r.text for r in SOUND.responses)
    labels = [(golden, ""), (fails_a, "T"), (fails_t, "A"), (fails_both, "AT")]
    swapped = Record(USER, ("A", "T"), tuple(Response(t, frozenset(f)) for t, f in labels), "t.csv:1")
    renamed = DataSet(("A", "E2", "T"), (SOUND,))
    assert len({one, sha(data(other_text)), sha(data(swapped)), sha(renamed), sha(data(SOUND, SOUND))}) == 5


def test_an_unknown_word_is_no_end_of_turn():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "user": 1, "assistant": 2, "Yes": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    with pytest.raises(DataError, match="no end-of-turn token"):
        tokenize(data(record("Yes indeed", "Yes Yes indeed")), tokenizer, 100, "drop")
