"""A pack of trees computes what separate sequences compute, and nothing passes between responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dpeer import config
from dpeer.data.packing import Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.lm import build_lm
from dpeer.model.tree_attention import tree_attention
from dpeer.model.tree_lm import TreeLM

Make = Callable[[Sequence[int], int], TokenTree]
TOLERANCE = 1e-5
DECAYS = 3e-5
"""Of gradients through decays: of separate sequences too, they are that far from those of fp64."""


def coefficients(pack: Pack) -> Tensor:
    """Fixed loss weights [R] of mixed sign, as margins give."""
    return torch.sin(torch.arange(len(pack.response_tokens), dtype=torch.float64) * 1.7 + 0.5)


def separate(model: nn.Module, trees: Sequence[TokenTree]) -> Tensor:
    """Oracle: log-probabilities [R], each response after its prompt as one sequence, full log-softmax."""
    found = []
    for prompt, response in ((t.prompt, r) for t in trees for r in t.responses):
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].float()
        table = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        found.append(table[torch.arange(len(response)), list(response)].double().sum())
    return torch.stack(found)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad for k, p in module.named_parameters() if p.requires_grad and p.grad is not None}


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).detach())


def spec(
    folder: Path, *, lora: bool = False, checkpointing: bool = False, dtype: Literal["fp32", "bf16"] = "fp32"
) -> config.Model:
    adapters = config.Lora(rank=4) if lora else None
    return config.Model(
        path=str(folder), dtype=dtype, lora=adapters, gradient_checkpointing=checkpointing, head_chunk=7
    )


def eager_twin(lm: TreeLM, folder: Path, lora: bool) -> nn.Module:
    """The oracle's model: loaded anew with eager attention, with copies of the adapters."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=4,
                lora_alpha=32,
                target_modules="all-linear",
                target_parameters=lm.model.peft_config["default"].target_parameters,  # experts that are one weight
                task_type="CAUSAL_LM",
            ),
        )
        model.load_state_dict(lm.model.state_dict())
    return model


def warm_adapters(lm: TreeLM) -> None:
    """B starts at zero, which would hide every error in A's gradient."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3", "qwen3_5", "lfm2", "gpt_oss"]
)
def test_tree_equals_separate_sequences(
    checkpoint: Callable[[str], Path], trees: list[TokenTree], name: str, lora: bool
) -> None:
    folder = checkpoint(name)
    lm = build_lm(spec(folder, lora=lora), seed=1)
    if lora:
        warm_adapters(lm)
    oracle = eager_twin(lm, folder, lora)
    pack = build_pack(trees, range(len(trees)))

    found, expected = lm(pack), separate(oracle, trees)
    (found * coefficients(pack)).sum().backward()
    (expected * coefficients(pack)).sum().backward()
    grads, reference = gradients(lm.model), gradients(oracle)
    assert set(grads) == set(reference) and len(grads) > 10
    errors = {k: relative(grads[k], v) for k, v in reference.items()}
    worst = max(errors, key=lambda k: errors[k])
    value_error = relative(found, expected)
    print(f"{name}{' LoRA' if lora else ''}: log-prob {value_error:.1e}, gradient {errors[worst]:.1e} ({worst})")
    assert value_error < TOLERANCE
    assert errors[worst] < (DECAYS if name == "qwen3_5" else TOLERANCE)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "qwen3_5", "lfm2"])
def test_gradient_checkpointing_changes_nothing(
    checkpoint: Callable[[str], Path], trees: list[TokenTree], name: str, lora: bool
) -> None:
    pack, results = build_pack(trees, range(len(trees))), []
    for checkpointing in (False, True):
        lm = build_lm(spec(checkpoint(name), lora=lora, checkpointing=checkpointing), seed=1)
        if lora:
            warm_adapters(lm)
        forwards: list[int] = []
        lm._backbone[0].layers[0].register_forward_pre_hook(lambda *_, calls=forwards: calls.append(1))
        logps = lm(pack)
        (logps * coefficients(pack)).sum().backward()
        results.append((logps.detach(), gradients(lm.model)))
        assert len(forwards) == (2 if checkpointing else 1)  # recomputed, or not
    (plain, grads), (recomputed, again) = results
    assert torch.equal(plain, recomputed)
    assert set(grads) == set(again) and all(torch.equal(grads[k], again[k]) for k in grads)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "qwen3_5", "lfm2"])
def test_records_of_a_pack_do_not_meet(checkpoint: Callable[[str], Path], trees: list[TokenTree], name: str) -> None:
    """Alone, in any company and in any order, a record has the same log-probabilities."""
    lm = build_lm(spec(checkpoint(name)), seed=1)
    with torch.no_grad():
        together = lm(build_pack(trees, range(len(trees))))
        backwards = lm(build_pack(trees[::-1], range(len(trees)))).split([len(t.responses) for t in trees[::-1]])
        alone = [lm(build_pack([t], [0])) for t in trees]
    assert relative(together, torch.cat(alone)) < 1e-6
    assert relative(torch.cat(backwards[::-1]), torch.cat(alone)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3", "qwen3_5", "lfm2"])
def test_changing_one_response_changes_no_other(checkpoint: Callable[[str], Path], tree_of: Make, name: str) -> None:
    lm = build_lm(spec(checkpoint(name)), seed=1)
    left, right = tree_of((11, 9, 12, 8), 1), tree_of((4, 10, 6), 2)
    changed = TokenTree(
        1, left.prompt, (left.responses[0], tuple(3 + i for i in range(12)), left.responses[2]), (), 0, ()
    )
    with torch.no_grad():
        before = lm(build_pack([left, right], [0, 1]))
        after = lm(build_pack([changed, right], [0, 1]))
    others = torch.tensor([0, 2, 3, 4])
    assert abs(float(before[1] - after[1])) > 1.0
    assert torch.equal(before[others], after[others])


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3", "qwen3_5", "lfm2"])
def test_gradient_of_a_response_reaches_only_its_own_tokens(
    checkpoint: Callable[[str], Path], tree_of: Make, name: str
) -> None:
    """d lp_i / d input embedding: zero, exactly, at every position that is neither i's nor its prompt's."""
    lm = build_lm(spec(checkpoint(name)), seed=1).requires_grad_(False)
    trees = [tree_of((6, 5, 4, 3), 1), tree_of((3, 7, 2), 2)]
    pack = build_pack(trees, [0, 1])
    embedded: list[Tensor] = []

    def leaf(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    lm._backbone[0].embed_tokens.register_forward_hook(leaf)
    logps = lm(pack)
    owner, prompt_of = [], {0: "p0", 1: "p0", 2: "p0", 3: "p1", 4: "p1"}
    response = 0
    for record, tree in enumerate(trees):
        owner += [f"p{record}"] * len(tree.prompt)
        for tokens in tree.responses:
            owner += [str(response)] * (len(tokens) - 1)
            response += 1
    for i in range(len(logps)):
        (grad,) = torch.autograd.grad(logps[i], embedded[0], retain_graph=True)
        reached = grad[0].abs().amax(dim=-1) > 0
        allowed = torch.tensor([o in (str(i), prompt_of[i]) for o in owner])
        assert not (reached & ~allowed).any()
        assert torch.equal(reached, allowed)  # every position counts: rows are short enough for the window of 16


def test_bf16_tree_is_close(checkpoint: Callable[[str], Path], trees: list[TokenTree]) -> None:
    pack, tokens = build_pack(trees, range(len(trees))), torch.tensor([len(r) for t in trees for r in t.responses])
    with torch.no_grad():
        exact, half = (build_lm(spec(checkpoint("qwen3"), dtype=d), seed=1)(pack) for d in ("fp32", "bf16"))
    gap = ((exact - half).abs() / tokens).max()
    print(f"bf16 against fp32: {gap:.3f} nats per token")
    assert gap < 0.3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tree": None}, "tree=None"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "mask=given"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"softcap": 50.0}, "softcap"),
        ({"is_causal": False}, "is_causal"),
        ({"query": torch.zeros(2, 2, 4, 8)}, "batch=2"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_refuses_what_it_would_ignore(tree_of: Make, change: dict[str, object], says: str) -> None:
    pack = build_pack([tree_of((2, 3), 0)], [0])
    x = torch.zeros(1, 2, 4, 8)
    arguments: dict[str, Any] = {"query": x, "key": x, "value": x, "attention_mask": None, "tree": pack}
    with pytest.raises(ValueError, match=says):
        tree_attention(nn.Identity(), **(arguments | change))


def test_accepts_options_without_effect(tree_of: Make) -> None:
    pack = build_pack([tree_of((2, 3), 0)], [0])
    x = torch.randn(1, 2, 4, 8)
    out, weights = tree_attention(
        nn.Identity(), x, x, x, None, tree=pack, position_ids=pack.position_ids, use_cache=False, softcap=None
    )
    assert out.shape == (1, 4, 2, 8) and weights is None
