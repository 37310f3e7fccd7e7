"""The loss that balances experts, against transformers' own over separate sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from dpeer import config
from dpeer.data.layout import Layout
from dpeer.data.packing import build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model.balance import balance, occurrences, routed
from dpeer.model.lm import build_lm
from dpeer.toyworld.model import tiny_model

EXPERTS, CHOSEN = 6, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Routers that are far from even."""
    path = tmp_path_factory.mktemp("moe") / "model"
    sizes = {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": 48}
    tiny_model(path, "qwen3_moe", 1, vocab=300, **sizes)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data.mul_(40)
    model.save_pretrained(path)
    return path


def expected(model: Any, trees: list[TokenTree]) -> Tensor:
    """Each prompt + response by itself, its last token left out; all tokens in one call of transformers' function."""
    found = [
        model.model(torch.tensor([t.prompt + r[:-1]]), output_router_logits=True).router_logits
        for t in trees
        for r in t.responses
    ]
    layers = tuple(torch.cat(layer) for layer in zip(*found, strict=True))
    loss: Tensor = load_balancing_loss_func(layers, EXPERTS, CHOSEN)
    return loss


@pytest.mark.parametrize("layout", ["tree", "sequences"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_equals_transformers_on_separate_sequences_however_it_is_packed(
    folder: Path, trees: list[TokenTree], layout: Layout, recomputed: bool
) -> None:
    spec = config.Model(
        path=str(folder), dtype="fp32", layout=layout, router_aux_loss=0.1, gradient_checkpointing=recomputed
    )
    lm, plain = build_lm(spec, 0), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    packs = [build_pack(trees[:2], [0, 1]), build_pack(trees[2:], range(2, len(trees))), dummy_pack()]
    with torch.no_grad():
        counted = [(lm(pack), routed(lm.router_logits, occurrences(pack, layout), CHOSEN))[1] for pack in packs]
    everywhere: Any = sum(counted)
    layers = plain.config.num_hidden_layers
    tokens = sum(len(t.prompt) + len(r) - 1 for t in trees for r in t.responses)
    assert everywhere[-1] == layers * tokens and everywhere[:-1].sum() == CHOSEN * everywhere[-1]
    found = 0.0
    for pack in packs:
        lm(pack)
        term = balance(lm.router_logits, occurrences(pack, layout), everywhere)
        term.backward()
        found += float(term.detach())
    loss = expected(plain, trees)
    loss.backward()
    assert float(loss) > 1.05 * CHOSEN  # even routers give the number of experts that a token is sent to
    assert found == pytest.approx(float(loss), rel=1e-6)
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    named = dict(plain.named_parameters())
    error = max(
        float((p.grad - named[name.removeprefix("model.")].grad).abs().max())
        for name, p in lm.named_parameters()
        if named[name.removeprefix("model.")].grad is not None
    )
    print(f"{layout}: loss {found:.6f}, gradient error {error / scale:.1e}")
    assert error < 3e-5 * scale


def test_a_dense_model_and_adapters_are_refused(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="no routers that transformers balances"):
        build_lm(config.Model(path=str(checkpoint("qwen3")), dtype="fp32", router_aux_loss=0.1), 0)
    with pytest.raises(ValueError, match=r"router_aux_loss \(0.1\) trains routers, which adapters leave as they are"):
        config.Model(path="x", router_aux_loss=0.1, lora=config.Lora())
