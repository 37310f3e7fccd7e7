"""Tokenizers of the kinds that chat models have, trained here on a few sentences, each with its chat template."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpeer.toyworld.model import bpe
from dpeer.toyworld.world import generate

KINDS = ("chatml", "llama3", "llama2", "gemma")

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@cache
def corpus() -> tuple[str, ...]:
    records = generate(120, seed=0).records
    return tuple(text for r in records for text in (r.prompt[0].content, r.responses[0].text))


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """chatml, llama3: byte-level BPE. llama2: sentencepiece-like with a dummy prefix space. gemma: without one."""
    made = {"chatml": _chatml, "llama3": _llama3, "llama2": _llama2, "gemma": _gemma}[kind]()
    made.clean_up_tokenization_spaces = False
    return made


def _chatml() -> PreTrainedTokenizerFast:
    made = bpe(corpus(), 700)
    made.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>", "<tool_call>", "  ")]
    )
    return made


def _llama3() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=specials[0], eos_token=specials[-1], chat_template=LLAMA3,
        additional_special_tokens=specials[1:4],
    )  # fmt: skip


def _llama2() -> PreTrainedTokenizerFast:
    prefix = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(prefix, LLAMA2, (), strip=True)


def _gemma() -> PreTrainedTokenizerFast:
    return _sentencepiece(normalizers.Replace(" ", "▁"), GEMMA, ("<start_of_turn>", "<end_of_turn>"), strip=False)


def _sentencepiece(
    normalizer: normalizers.Normalizer, template: str, turns: tuple[str, ...], strip: bool
) -> PreTrainedTokenizerFast:
    """BPE over text with ▁ for spaces, single digits, and bytes for unknown characters."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    alphabet = [*"▁0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,:;!?<>[]()/|-_'\""]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(corpus(), trainer)
    learned = json.loads(words.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>", *turns]
    entries = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(m) for m in learned["merges"]]
    inner = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(entries)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizer
    inner.add_special_tokens(specials)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template,
        additional_special_tokens=list(turns),
    )  # fmt: skip
