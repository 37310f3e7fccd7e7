"""Judges for the toy world whose severity is known: tiny language models that learned to rate as a rating model does.

The label of a text is the distribution over scores of an adjacent-category model (Masters 1982) whose latent quality is
what the oracle reads and whose severity is planted. So whatever the ratings later say about severity can be checked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpeer.files import follow_umask
from dpeer.toyworld import world as toyworld

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dpeer.eval.questions.rubric import Rubric

QUALITY = {"good": 1.5, "bad": -1.5, "none": 0.0}
"""Latent quality of a clause in logits, by what the oracle reads; one that it cannot read is neither good nor bad."""
THRESHOLDS = (-1.5, -0.5, 0.5, 1.5)
SEVERITIES = {"lenient": -0.8, "neutral": 0.0, "severe": 0.8}
RUBRIC = "toyworld"
READING_STEPS, TUNING_STEPS = 600, 80
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Text:
    prompt: str
    response: str


def score_distribution(quality: float, severity: float) -> list[float]:
    """P(score = 1 .. 5) of the adjacent-category model."""
    logits = [0.0]
    for threshold in THRESHOLDS:
        logits.append(logits[-1] + quality - severity - threshold)
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def training_texts(pairs: Sequence[tuple[str, str]], sampled: Sequence[tuple[str, str]], seed: int) -> list[Text]:
    """Clean replies, replies with damaged clauses, and a model's own samples: a judge must have seen all three."""
    rng = random.Random(seed)
    damaged = []
    for prompt, reply in rng.sample(list(pairs), len(pairs) // 4):
        words = reply.split()
        at = rng.randrange(len(words))
        cut = words[:at] + rng.sample(words[at : at + 8], len(words[at : at + 8])) + words[at + 8 :]
        damaged.append(Text(prompt, " ".join(cut)))
    return [Text(*pair) for pair in (*pairs, *sampled)] + damaged


def train_judges(
    base: Path,
    texts: Sequence[Text],
    folder: Path,
    seed: int,
    steps: int = READING_STEPS,
    tuning_steps: int = TUNING_STEPS,
    progress: Callable[[str, int], None] = lambda name, step: None,
) -> dict[str, Path]:
    """Write one judge per entry of SEVERITIES to folder/name: all learn to read from one start, then each its severity.

    `progress` is called with a stage's name and its finished steps.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from dpeer.eval.questions.readout import rating_token_ids
    from dpeer.eval.questions.rubric import load_rubric
    from dpeer.model.lm import load_tokenizer

    rubric, tokenizer = load_rubric(RUBRIC), load_tokenizer(str(base))
    trees = _trees(texts, rubric, tokenizer)
    digits = torch.tensor(rating_token_ids(tokenizer, rubric))
    judge = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    _train(judge, trees, digits, 0.0, steps, 4e-3, seed, partial(progress, "reading"))
    start = {name: value.clone() for name, value in judge.state_dict().items()}
    made = {}
    for name, severity in SEVERITIES.items():
        judge.load_state_dict(start)
        _train(judge, trees, digits, severity, tuning_steps, 1e-3, seed + 1, partial(progress, name))
        made[name] = _save(judge, tokenizer, folder / name)
    return made


@dataclass(frozen=True, slots=True)
class _Tree:
    """A conversation once, one branch per dimension behind it; `quality` per dimension as the oracle reads it."""

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    quality: tuple[float, ...]


def _trees(texts: Sequence[Text], rubric: Rubric, tokenizer: PreTrainedTokenizerBase) -> list[_Tree]:
    from dpeer.eval.questions.prompting import encode_chat, judge_segments

    trees = []
    for text in texts:
        calls = [
            encode_chat(tokenizer, judge_segments(rubric, text.prompt, text.response, d, c, "up", "logprob"))
            for d, dimension in rubric.dimensions.items()
            for c in dimension.criteria
        ]
        shared = _common_prefix(calls)
        reading = toyworld.oracle(text.response)
        quality = tuple(QUALITY[reading[d]] for d in rubric.dimensions)
        trees.append(_Tree(tuple(calls[0][:shared]), tuple(tuple(c[shared:]) for c in calls), quality))
    return trees


def _common_prefix(calls: Sequence[Sequence[int]]) -> int:
    return next((i for i, column in enumerate(zip(*calls, strict=False)) if len(set(column)) > 1), len(calls[0]))


def _train(
    judge: PreTrainedModel,
    trees: Sequence[_Tree],
    digits: Tensor,
    severity: float,
    steps: int,
    peak: float,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    import torch

    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = _loss(judge, rng.choices(trees, k=_BATCH), digits, severity)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1)


def _loss(judge: PreTrainedModel, trees: Sequence[_Tree], digits: Tensor, severity: float) -> Tensor:
    """Mean cross-entropy between the planted score distributions and the judge's next token, over all vocabulary."""
    import torch

    logprobs = next_token_logprobs(judge, trees)[:, digits]
    target = torch.tensor([score_distribution(q, severity) for t in trees for q in t.quality])
    return -(target * logprobs).sum(dim=1).mean()


def next_token_logprobs(judge: PreTrainedModel, trees: Sequence[_Tree]) -> Tensor:
    """Log-probabilities [branches of all trees, V] in nats after each branch, as if it alone followed the prefix.

    One row per tree: prefix and branches side by side, with positions that restart and a mask between siblings.
    """
    import torch

    width = max(len(t.prefix) + sum(map(len, t.branches)) for t in trees)
    ids, positions = (torch.zeros(len(trees), width, dtype=torch.int64) for _ in range(2))
    owner = torch.full((len(trees), width), -2)  # -1: prefix, k: branch k, -2: padding
    ends = []
    for row, tree in enumerate(trees):
        at = 0
        for k, tokens in enumerate((tree.prefix, *tree.branches), start=-1):
            span = slice(at, at + len(tokens))
            ids[row, span], owner[row, span] = torch.tensor(tokens), k
            start = 0 if k < 0 else len(tree.prefix)
            positions[row, span] = torch.arange(start, start + len(tokens))
            at += len(tokens)
            ends += [(row, at - 1)] if k >= 0 else []
    own, other = owner[:, :, None], owner[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = ((own == other) | ((other == -1) & (own >= 0))) & causal
    hidden = judge.model(input_ids=ids, position_ids=positions, attention_mask=seen[:, None], use_cache=False)[0]
    rows, columns = torch.tensor(ends).T
    return torch.log_softmax(judge.lm_head(hidden[rows, columns]), dim=-1)


def _save(judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)
    return folder
