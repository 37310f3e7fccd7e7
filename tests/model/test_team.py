"""Ranks that share a pack compute what separate sequences compute; here they are threads of this process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig

from dpeer.data.packing import Pack, build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model.balance import balance, occurrences, routed
from dpeer.model.cut import obstacle, refuse_uncut
from dpeer.model.lm import build_lm
from dpeer.model.team import Team, copies, side_by_side
from dpeer.model.tree_lm import TreeLM
from dpeer.toyworld.model import tiny_model
from tests.model.test_tree_attention import (
    TOLERANCE,
    coefficients,
    eager_twin,
    gradients,
    relative,
    separate,
    spec,
    warm_adapters,
)


def together(lm: TreeLM, pack: Pack, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, the same on all ranks, and the sum of their gradients."""
    copied = [copy.deepcopy(lm) for _ in range(size)]

    def compute(team: Team) -> Tensor:
        mine = copied[team.rank]
        mine.team = team
        values: Tensor = mine(pack.cut(team.rank, team.size))
        torch.autograd.backward((values * coefficients(pack)).sum())
        return values.detach()

    found = side_by_side(size, compute)
    assert all(torch.equal(found[0], other) for other in found)
    shares = [gradients(x.model) for x in copied]
    assert all(share.keys() == shares[0].keys() for share in shares)
    return found[0], {k: torch.stack([share[k] for share in shares]).sum(0) for k in shares[0]}


CASES = [
    *((name, 2, lora, False) for name in ("llama", "qwen3", "mistral", "gpt_oss") for lora in (False, True)),
    *((name, 2, False, False) for name in ("qwen2", "gemma", "gemma3")),
    ("llama", 2, True, True),
    ("gemma3", 2, False, True),
    ("llama", 4, False, False),  # twice as many ranks as key heads
    ("llama", 4, True, True),
]


@pytest.mark.parametrize(("name", "size", "lora", "checkpointing"), CASES)
def test_a_team_computes_what_separate_sequences_compute(
    checkpoint: Callable[[str], Path],
    trees: list[TokenTree],
    name: str,
    size: int,
    lora: bool,
    checkpointing: bool,
) -> None:
    """Tied heads (qwen3, gemma), windows, grouped key heads, sinks; a team larger than the number of key heads."""
    folder = checkpoint(name)
    lm = build_lm(spec(folder, lora=lora, checkpointing=checkpointing), seed=1)
    if lora:
        warm_adapters(lm)
    oracle, pack = eager_twin(lm, folder, lora), build_pack(trees, range(len(trees)))
    found, grads = together(lm, pack, size)
    expected = separate(oracle, trees)
    torch.autograd.backward((expected * coefficients(pack)).sum())
    reference = gradients(oracle)
    assert set(grads) == set(reference) and len(grads) > 10
    errors = {k: relative(grads[k], v) for k, v in reference.items()}
    print(f"{name} by {size}: log-prob {relative(found, expected):.1e}, gradient {max(errors.values()):.1e}")
    assert relative(found, expected) < TOLERANCE and max(errors.values()) < TOLERANCE


def test_a_pack_of_fewer_tokens_than_ranks(checkpoint: Callable[[str], Path], trees: list[TokenTree]) -> None:
    """Ranks that have only padding take part in everything, and add nothing."""
    lm = build_lm(spec(checkpoint("llama")), seed=1)
    found, grads = together(lm, dummy_pack(), 4)
    assert found.shape == (1,) and bool(found.isfinite().all())
    expected = lm(dummy_pack())
    assert relative(found, expected) < TOLERANCE
    torch.autograd.backward((expected * coefficients(dummy_pack())).sum())
    assert max(relative(grads[k], v) for k, v in gradients(lm.model).items()) < TOLERANCE


def test_the_likeliest_tokens_are_the_same_on_all_ranks(
    checkpoint: Callable[[str], Path], trees: list[TokenTree]
) -> None:
    lm = build_lm(spec(checkpoint("llama")), seed=1)
    pack = build_pack(trees, range(len(trees)))

    def compute(team: Team) -> Tensor:
        mine = copy.deepcopy(lm)
        mine.team = team
        with torch.no_grad():
            return mine(pack.cut(team.rank, team.size), greedy=True)

    assert all(torch.equal(found, lm(pack, greedy=True)) for found in side_by_side(2, compute))


def test_experts_are_balanced_over_all_ranks(tmp_path: Path, trees: list[TokenTree]) -> None:
    """Tokens sent to experts and the loss add up over the team to those of one rank."""
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    folder = tiny_model(tmp_path / "moe", "qwen3_moe", 1, vocab=300, **sizes)
    moe = spec(folder).model_copy(update={"router_aux_loss": 0.1})
    pack = build_pack(trees, range(len(trees)))

    def parts(lm: TreeLM, pack: Pack) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        lm(pack)
        held, logits = occurrences(pack, "tree"), lm.router_logits
        return routed(logits, held, 2), lambda everywhere: balance(logits, held, everywhere)

    whole, *shared = [build_lm(moe, seed=1) for _ in range(3)]  # transformers loads no two models at once in threads

    def compute(team: Team) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        shared[team.rank].team = team
        return parts(shared[team.rank], pack.cut(team.rank, team.size))

    everywhere, loss = parts(whole, pack)
    shares = side_by_side(2, compute)
    assert torch.equal(sum(share for share, _ in shares), everywhere)
    assert sum(term(everywhere).item() for _, term in shares) == pytest.approx(loss(everywhere).item(), rel=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=3)), min_size=1, max_size=3),
    st.integers(2, 5),
)
def test_slices_are_the_pack(records: list[tuple[int, list[int]]], size: int) -> None:
    trees = [TokenTree(i, (5,) * p, tuple((i + 6,) * n for n in rs), (), 0, ()) for i, (p, rs) in enumerate(records)]
    pack = build_pack(trees, range(len(trees)))
    parts = [part for rank in range(size) if (part := pack.cut(rank, size).part)]
    assert len({part.tokens for part in parts}) == 1
    ids, positions = (torch.cat(x, dim=1)[:, : pack.tokens] for x in zip(*((p[1], p[2]) for p in parts), strict=True))
    assert torch.equal(ids, pack.input_ids) and torch.equal(positions, pack.position_ids)
    for whole, pieces in (
        (pack.rows, [p.rows + p.first for p in parts]),
        (pack.targets, [p.targets for p in parts]),
        (pack.row_response, [p.row_response for p in parts]),
    ):
        assert sorted(torch.cat(pieces).tolist()) == sorted(whole.tolist())
    assert sum(len(p.ends) for p in parts) == len(pack.response_tokens)
    values = torch.arange(1, pack.tokens + 1)
    assert torch.equal(torch.cat([p.of(values) for p in parts])[: pack.tokens], values)


@pytest.mark.parametrize(("shared", "size", "times"), [(8, 2, 1), (2, 4, 2), (1, 8, 8), (6, 4, 2), (3, 3, 1)])
def test_copies_of_key_heads(shared: int, size: int, times: int) -> None:
    assert copies(shared, size) == times and shared * times % size == 0


def test_a_fault_of_one_rank_is_told() -> None:
    def compute(team: Team) -> Tensor:
        if team.rank:
            raise ZeroDivisionError("of rank 1")
        return team.total(torch.zeros(1))

    with pytest.raises(ZeroDivisionError, match="of rank 1"):
        side_by_side(2, compute)


def test_models_that_cannot_be_shared_are_refused(checkpoint: Callable[[str], Path], trees: list[TokenTree]) -> None:
    llama, delta, conv = (AutoConfig.from_pretrained(checkpoint(name)) for name in ("llama", "qwen3_5", "lfm2"))
    refuse_uncut(llama, "m", "tree", 4)
    refuse_uncut(delta, "m", "tree", 1)
    with pytest.raises(ConfigError, match=r"sequence_parallel = 3.*4 attention heads.*Set it to 1, 2 or 4"):
        refuse_uncut(llama, "m", "tree", 3)
    with pytest.raises(ConfigError, match=r"4 attention heads.*Set it to 1 or 2"):
        refuse_uncut(llama, "m", "tree", 3, ranks=6)
    with pytest.raises(ConfigError, match=r"keeps a state across positions \(linear_attention in 1 of 2 layers\)"):
        refuse_uncut(delta, "m", "tree", 2)
    with pytest.raises(ConfigError, match=r"\(conv in 1 of 2 layers\)"):
        refuse_uncut(conv, "m", "tree", 2)
    with pytest.raises(ConfigError, match=r"separate sequences \(model.layout\)"):
        refuse_uncut(llama, "m", "sequences", 2)
    assert obstacle(AutoConfig.from_pretrained(checkpoint("gpt_oss")), "tree") == ""  # tried in small


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2"])
def test_a_state_is_never_cut_silently(checkpoint: Callable[[str], Path], trees: list[TokenTree], name: str) -> None:
    """Also where no config has said that there is one."""
    lm = build_lm(spec(checkpoint(name)), seed=1)
    with pytest.raises(ValueError, match="a state cannot be handed over to tokens that another rank has"):
        together(lm, build_pack(trees, range(len(trees))), 2)


def test_a_slice_needs_its_team(checkpoint: Callable[[str], Path], trees: list[TokenTree]) -> None:
    lm = build_lm(spec(checkpoint("llama")), seed=1)
    with pytest.raises(ValueError, match="4 heads cannot be shared by 3 ranks"):
        together(lm, build_pack(trees, range(len(trees))), 3)
