"""The start-up check: a record must score the same as a tree and response by response."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError
from dpeer.model import lm, tree_attention
from dpeer.training import world
from dpeer.training.policy import Policy, allowance, canaries
from dpeer.training.prepare import Prepared
from tests.training.conftest import recipe


def causal_over_everything(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """A leak: later responses see earlier ones, as in a model that ignores the tree."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=options["scaling"])
    return out.transpose(1, 2), None


@pytest.fixture
def leak() -> Iterator[None]:
    AttentionInterface.register(tree_attention.NAME, causal_over_everything)
    yield
    AttentionInterface.register(tree_attention.NAME, tree_attention.tree_attention)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_canary_passes_a_sound_model(
    here: world.World, models: dict[str, str], data: TokenizedSet, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[tuple[int, ...]]] = []
    original = torch.nn.Embedding.forward
    record: Callable[[Any, Tensor], Tensor] = lambda m, ids: (scored.append(ids.tolist()), original(m, ids))[1]  # noqa: E731
    monkeypatch.setattr(torch.nn.Embedding, "forward", record)
    policy = Policy(recipe(models["plain"], dtype=dtype), Prepared(data, None, None, {}), here)
    assert policy.pulse.phase == "ready" and policy.step == 0
    assert policy.engine.module.training
    expected = [33, 32, 31, 30, 34, 33, 30]  # the second record: tree, each response alone, and with copies after it
    expected += [14, 9, 11, 6, 15, 16, 6]  # the third, as the second has too few tokens to tell much
    assert sorted(len(ids[0]) for ids in scored) == sorted(expected)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_canary_refuses_a_leak(
    here: world.World, models: dict[str, str], data: TokenizedSet, leak: None, dtype: str
) -> None:
    with pytest.raises(ConfigError, match=r"keeps state across positions.*cannot be trained as a tree"):
        Policy(recipe(models["plain"], dtype=dtype), Prepared(data, None, None, {}), here)


def test_canary_refuses_length_dependent_positions(
    here: world.World, models: dict[str, str], data: TokenizedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the list of rope types would miss if a new one appeared."""
    monkeypatch.setattr(lm, "refuse_unsupported", lambda *_: None)
    with pytest.raises(ConfigError, match="positions depend on the sequence length"):
        Policy(recipe(models["dynamic"]), Prepared(data, None, None, {}), here)


def test_canary_takes_records_of_median_length() -> None:
    """Responses of 40 tokens: two records have 160. The shortest, of single tokens, are left alone."""
    sizes = [(1, 1), (1, 1), (1, 2), (40, 40), (40, 41), (60, 60), (90, 90)]
    trees = [TokenTree(i, (1,), tuple((2,) * n for n in s), (), 0, ("A",)) for i, s in enumerate(sizes)]
    assert [t.index for t in canaries(trees)] == [3, 4]
    assert [t.index for t in canaries(trees[:3])] == [1, 2, 0]
    alone = [replace(trees[0], responses=((2,),))]
    assert canaries(alone) == [] and canaries(alone, least=1) == alone  # what a team is checked with


def test_noise_of_few_tokens_is_allowed_for() -> None:
    assert allowance("bf16", 400) == allowance("bf16", 100) == 2e-2
    assert allowance("bf16", 1) == pytest.approx(0.2) and allowance("fp32", 25) == pytest.approx(2e-4)


@pytest.mark.parametrize(("shift", "sound"), [(0.004, True), (0.02, True), (0.4, False)])
def test_canary_measures_its_tolerance(
    here: world.World,
    models: dict[str, str],
    data: TokenizedSet,
    monkeypatch: pytest.MonkeyPatch,
    shift: float,
    sound: bool,
) -> None:
    """A model that gives a pack of n tokens shift x (n mod 2) nats more per token: rounding by shape, up to a limit."""
    policy = Policy(recipe(models["plain"], dtype="bf16"), Prepared(data, None, None, {}), here)

    def rough(pack: Any) -> Tensor:
        counts: Tensor = torch.as_tensor(pack.response_tokens)
        found: Tensor = -counts.double() + shift * counts * (pack.tokens % 2)
        return found

    rough.eval = rough.train = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(policy, "engine", rough)
    if sound:
        policy.check_tree()
        return
    with pytest.raises(ConfigError, match="rounding makes"):
        policy.check_tree()


def test_canary_has_nothing_to_compare(
    here: world.World, models: dict[str, str], data: TokenizedSet, leak: None
) -> None:
    """Single responses only: no sibling, no leak."""
    lonely = TokenizedSet(("A",), data.trees[:1], 0, 0)
    assert Policy(recipe(models["plain"]), Prepared(lonely, None, None, {}), here).pulse.phase == "ready"
