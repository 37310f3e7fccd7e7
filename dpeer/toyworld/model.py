"""Tiny language models for the toy world and the tests: tokenizer, base model, sampling, random checkpoints."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from dpeer.files import follow_umask

VOCAB = 1024
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_base(
    folder: str | Path,
    corpus: Sequence[tuple[str, str]],
    seed: int,
    steps: int = 600,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train the toy base model on (prompt, reply) pairs; write it to `folder`, where it replaces an earlier model.

    A Qwen3-like model (two layers, 64 wide) in fp32. `progress` is called with (step, mean token loss in nats).
    """
    rng = random.Random(seed)
    tokenizer = bpe((text for pair in corpus for text in pair), VOCAB)
    model = _random_model(tokenizer, "qwen3", seed, {"initializer_range": 0.05})
    chats = [_chat(tokenizer, prompt, reply) for prompt, reply in corpus]
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, steps))
    for step in range(steps):
        loss = _reply_loss(model, rng.choices(chats, k=16))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    with _replacing(Path(folder)) as temporary:
        _save(model, tokenizer, temporary)
    return Path(folder)


@torch.inference_mode()
def sample(
    model_path: str | Path, prompts: Sequence[str], seed: int, max_new_tokens: int = 80, temperature: float = 1.0
) -> list[str]:
    """One sampled reply per prompt, the same for the same arguments; torch's own random state is left as it was."""
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    replies: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), 256):
            texts = [_prompt_text(tokenizer, p) for p in prompts[start : start + 256]]
            batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
            tokens = model.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
            )
            replies += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def tiny_model(
    folder: str | Path,
    family: str = "qwen3",
    seed: int = 0,
    vocab: int = 512,
    texts: Iterable[str] = (),
    **config: Any,
) -> Path:
    """Write a random, untrained checkpoint with its tokenizer to `folder`; a model that is already there is replaced.

    `family` is a transformers model type of a decoder: "qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3_text"
    (or "gemma3"). `texts` trains the tokenizer's merges; without it the tokens are bytes. `config` overrides fields of
    the model's configuration. Weights have std 0.2, so that attention and logits are far from uniform.
    """
    tokenizer = bpe(texts, vocab)
    shape = {"num_hidden_layers": 2, "initializer_range": 0.2, "vocab_size": vocab} | config
    model = _random_model(tokenizer, {"gemma3": "gemma3_text"}.get(family, family), seed, shape)
    with _replacing(Path(folder)) as temporary:
        _save(model, tokenizer, temporary)
    return Path(folder)


def bpe(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most `vocab` tokens and a ChatML template; a reply ends with <|im_end|>, which is EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _prompt_text(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    chat = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def _chat(tokenizer: PreTrainedTokenizerFast, prompt: str, reply: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the reply with its end-of-turn token."""
    ids = tokenizer([_prompt_text(tokenizer, prompt), reply + END], add_special_tokens=False)["input_ids"]
    return ids[0], ids[1]


def _reply_loss(model: PreTrainedModel, batch: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Mean negative log-likelihood of the reply tokens, in nats; right-padded, so causal attention needs no mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(p + r) for p, r in batch], batch_first=True)
    labels = pad([torch.tensor([-100] * len(p) + r) for p, r in batch], batch_first=True, padding_value=-100)[:, 1:]
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    return cross_entropy(model.lm_head(hidden[labels != -100]), labels[labels != -100])


def _warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    rise = min(1.0, (step + 1) / max(1, round(warmup * steps)))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _random_model(
    tokenizer: PreTrainedTokenizerFast, family: str, seed: int, config: dict[str, Any]
) -> PreTrainedModel:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(shape | config)), dtype=torch.float32)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` that takes its name when the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(exist_ok=True)
    try:
        yield temporary
        if (folder / "config.json").exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
