"""The toy judges are trained on what they are said to be trained on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpeer.eval import toy_judges
from dpeer.eval.questions.readout import rating_token_ids
from dpeer.eval.questions.rubric import load_rubric
from dpeer.model.lm import load_tokenizer
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    records = toyworld.generate(24, 3).records
    return [(r.prompt[0].content, r.responses[k].text) for r in records for k in (0, 1)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> Path:
    return tiny_model(tmp_path_factory.mktemp("judge") / "base", texts=[t for p in pairs for t in p], head_dim=32)


@pytest.mark.parametrize("severity", [-0.8, 0.0, 0.8])
@pytest.mark.parametrize("quality", [-2.0, 0.3, 1.5])
def test_score_distribution_has_the_planted_log_odds(quality: float, severity: float) -> None:
    p = toy_judges.score_distribution(quality, severity)
    assert sum(p) == pytest.approx(1)
    for k, threshold in enumerate(toy_judges.THRESHOLDS):
        assert math.log(p[k + 1] / p[k]) == pytest.approx(quality - severity - threshold)


def test_a_judge_sees_clean_damaged_and_sampled_texts(pairs: list[tuple[str, str]]) -> None:
    texts = toy_judges.training_texts(pairs, [("p", "sampled")], seed=0)
    assert len(texts) == len(pairs) + 1 + len(pairs) // 4
    clean = {reply for _, reply in pairs}
    damaged = [t.response for t in texts if t.response not in clean | {"sampled"}]
    assert damaged and all(sorted(d.split()) in [sorted(c.split()) for c in clean] for d in damaged)


def test_batched_loss_equals_plain_forward_passes(base: Path, pairs: list[tuple[str, str]]) -> None:
    tokenizer, rubric = load_tokenizer(str(base)), load_rubric(toy_judges.RUBRIC)
    digits = torch.tensor(rating_token_ids(tokenizer, rubric))
    trees = toy_judges._trees([toy_judges.Text(*p) for p in pairs[:3]], rubric, tokenizer)
    judge = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    losses = []
    for tree in trees:
        for branch, quality in zip(tree.branches, tree.quality, strict=True):
            with torch.no_grad():
                logits = plain(torch.tensor([tree.prefix + branch])).logits[0, -1]
            target = torch.tensor(toy_judges.score_distribution(quality, 0.8))
            losses.append(-(target * torch.log_softmax(logits, -1)[digits]).sum())
    batched = toy_judges._loss(judge, trees, digits, 0.8)
    assert batched.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_each_judge_learns_its_own_severity(
    base: Path, pairs: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_judges, "_BATCH", 8)
    texts = [toy_judges.Text(*p) for p in pairs[:8]]
    stages: dict[str, int] = {}
    made = toy_judges.train_judges(base, texts, tmp_path, 0, steps=30, tuning_steps=25, progress=stages.__setitem__)
    assert stages == {"reading": 30} | dict.fromkeys(toy_judges.SEVERITIES, 25)
    tokenizer, rubric = load_tokenizer(str(base)), load_rubric(toy_judges.RUBRIC)
    digits = torch.tensor(rating_token_ids(tokenizer, rubric))
    trees = toy_judges._trees(texts, rubric, tokenizer)
    means = []
    for name in toy_judges.SEVERITIES:
        judge = AutoModelForCausalLM.from_pretrained(made[name], dtype=torch.float32)
        with torch.no_grad():
            scores = toy_judges.next_token_logprobs(judge, trees)[:, digits].softmax(-1)
        means.append(float((scores @ torch.arange(1.0, 6.0)).mean()))
    assert means[0] > means[1] + 0.1 > means[2] + 0.2, means
