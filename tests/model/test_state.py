"""State handed from a prompt to its responses, against each response after its own prompt, token by token."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import use_kernel_func_from_hub_with_fallback
from transformers.models.lfm2 import modeling_lfm2 as lfm2
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

from dpeer.data.layout import Layout
from dpeer.data.packing import Pack, build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model import state
from dpeer.model.miniature import miniature
from dpeer.model.probe import VALUES, probe
from dpeer.model.tree_lm import TreeLM

HEADS, KEYS, VALUES_OF, CHANNELS = 2, 4, 3, 5
SHAPES = st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=5), min_size=1, max_size=3)
RULE, CONVOLUTION = state.RULES[0], state.CONVOLUTIONS[0]


def original(name: str) -> Callable[..., Any]:
    function = getattr(qwen, name)
    return getattr(function, "of_sequences", function)


def pack_of(shapes: Sequence[Sequence[int]]) -> Pack:
    trees = [TokenTree(i, (1,) * p, tuple((2,) * r for r in rest), (), 0, ()) for i, (p, *rest) in enumerate(shapes)]
    return build_pack(trees, range(len(trees)))


def paths(pack: Pack) -> list[tuple[list[int], list[int]]]:
    """Of each segment, the places of its whole sequence in the pack, and its own."""
    found = []
    for s in pack.segments:
        own = list(range(s.start, s.start + s.length))
        found.append((list(range(s.prompt_start, s.prompt_start + s.prompt_length)) + own, own))
    return found


def by_recurrence(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, pack: Pack) -> Tensor:
    """Gated delta rule (Yang et al. 2024, arXiv:2412.06464, eq. 10) of every sequence, token by token."""
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query[0], key[0]))
    rows: dict[int, Tensor] = {}
    for path, own in paths(pack):
        memory = torch.zeros(HEADS, KEYS, VALUES_OF, dtype=q.dtype)
        for t in path:
            memory = memory * g[0, t].exp()[:, None, None]
            change = (value[0, t] - torch.einsum("hkv,hk->hv", memory, k[t])) * beta[0, t][:, None]
            memory = memory + torch.einsum("hk,hv->hkv", k[t], change)
            if t in own:
                rows[t] = torch.einsum("hkv,hk->hv", memory, q[t]) / KEYS**0.5
    return torch.stack([rows[t] for t in range(pack.tokens)])[None]


@settings(deadline=None, max_examples=30)
@given(shapes=st.lists(st.lists(st.integers(1, 900), min_size=2, max_size=9), min_size=1, max_size=3))
@example(shapes=[[300, 4_000, *[30] * 131]])
def test_padding_is_bounded(shapes: list[list[int]]) -> None:
    """A row is padded to at most twice its tokens, or to a chunk; calls grow with the logarithm of the longest row."""
    pack = pack_of(shapes)
    states = pack.states()
    for batches, after in ((states.prompts, False), (states.responses, True)):
        lengths = [s.length for s in pack.segments if bool(s.prompt_length) == after]
        assert sum(rows for rows, _ in batches) == len(lengths)
        assert sum(math.prod(x) for x in batches) <= sum(max(2 * n, 64) for n in lengths)
        assert len(batches) <= 1 + math.ceil(math.log2(max(64, *lengths, 0) / 64))


def by_taps(inputs: Tensor, weight: Tensor, pack: Pack) -> Tensor:
    rows: dict[int, Tensor] = {}
    width = weight.shape[1]
    for path, own in paths(pack):
        for t in own:
            seen = path[max(0, path.index(t) + 1 - width) : path.index(t) + 1]
            rows[t] = (inputs[0][:, seen] * weight[:, width - len(seen) :]).sum(1)
    return torch.stack([rows[t] for t in range(pack.tokens)], dim=1)[None]


def agree(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Values and gradients of an uneven sum."""
    weights = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).view(found.shape)
    both = [torch.autograd.grad((x * weights).sum(), leaves, retain_graph=True) for x in (found, expected)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(shapes=SHAPES)
@example(shapes=[[3, 5, 66, 2], [70, 135, 4]])  # several batches of each kind
def test_a_delta_rule_over_trees_is_that_of_each_sequence(shapes: list[list[int]]) -> None:
    pack, generator = pack_of(shapes), torch.Generator().manual_seed(1)
    sizes = [(HEADS, KEYS), (HEADS, KEYS), (HEADS, VALUES_OF), (HEADS,), (HEADS,)]
    leaves = [torch.randn(1, pack.tokens, *s, generator=generator).requires_grad_() for s in sizes]
    query, key, value, a, b = leaves
    given = {"g": -torch.nn.functional.softplus(a - 2), "beta": b.sigmoid()}
    handed = state.of_rule(original(RULE))
    found, last = handed(query, key, value, **given, initial_state=None, use_qk_l2norm_in_kernel=True, tree=pack)
    assert last is None
    agree(found, by_recurrence(query, key, value, pack=pack, **given), leaves)


@settings(deadline=None, max_examples=30)
@given(shapes=SHAPES, width=st.integers(1, 5), keyword=st.sampled_from(["tree", "seq_idx"]))
def test_a_convolution_over_trees_is_that_of_each_sequence(shapes: list[list[int]], width: int, keyword: str) -> None:
    """Prompts and responses shorter than the kernel too; the tree comes under either name."""
    pack, generator = pack_of(shapes), torch.Generator().manual_seed(1)
    inputs = torch.randn(1, CHANNELS, pack.tokens, generator=generator).requires_grad_()
    weight = torch.randn(CHANNELS, width, generator=generator).requires_grad_()
    found = state.of_convolution(original(CONVOLUTION))(inputs, weight, **{keyword: pack})
    agree(found, by_taps(inputs, weight, pack), (inputs, weight))


def test_without_a_tree_nothing_changes() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, weight = torch.randn(2, CHANNELS, 9, generator=generator), torch.randn(CHANNELS, 4, generator=generator)
    plain = original(CONVOLUTION)
    found = state.of_convolution(plain)(inputs, weight=weight, activation="silu", seq_idx=None)
    assert torch.equal(found, plain(inputs, weight, activation="silu"))
    q = torch.randn(2, 9, HEADS, KEYS, generator=generator)
    options = {"g": -q[..., 0].abs(), "beta": q[..., 1].sigmoid(), "output_final_state": True}
    for ours, theirs in zip(
        state.of_rule(original(RULE))(q, q, q, **options), original(RULE)(q, q, q, **options), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("option", [{"output_final_state": True}, {"initial_state": torch.zeros(1, HEADS, KEYS, KEYS)}])
def test_a_tree_is_never_computed_with_a_cache(option: dict[str, Any]) -> None:
    q = torch.zeros(1, 2, HEADS, KEYS)
    with pytest.raises(ValueError, match="no cache"):
        state.of_rule(original(RULE))(q, q, q, g=q[..., 0], beta=q[..., 0], tree=dummy_pack(), **option)


def test_a_layer_whose_state_is_not_handed_over_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions alone: names are not trusted, the probe measures."""
    monkeypatch.setattr(qwen, RULE, original(RULE))
    monkeypatch.setattr(state, "RULES", ())
    found = probe(AutoConfig.for_model("qwen3_5_text"), "tree")
    assert not found.failure and found.values > 10 * VALUES


@pytest.mark.parametrize(
    ("module", "family", "layout"), [(qwen, "qwen3_5_text", "tree"), (lfm2, "lfm2", "sequences")], ids=["delta", "conv"]
)
def test_kernels_of_packages_get_no_tensors_of_a_host(
    module: Any, family: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound by transformers itself, to stubs that refuse what the kernels refuse: probe and its oracle, generation with
    a cache, the meta device."""
    bound = stub_kernels(module, monkeypatch)
    with pytest.raises(RuntimeError, match="is_cuda"):
        getattr(module, CONVOLUTION)(torch.zeros(1, 2, 3), torch.zeros(2, 3))
    layers = [{qwen: "linear_attention", lfm2: "conv"}[module], "full_attention"]
    shape = AutoConfig.for_model(family, num_hidden_layers=2, layer_types=layers)
    found = probe(shape, layout)
    assert found.exact, found
    model = AutoModelForCausalLM.from_config(miniature(shape)).eval()
    begun = torch.tensor([[5, 6, 7]])
    assert model.generate(begun, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 6)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(miniature(shape), attn_implementation="tree")
    assert TreeLM(model)(pack_of([[3, 4, 2]]).to("meta")).shape == (2,)
    for kernel in bound:
        with pytest.raises(RuntimeError, match="is_cuda"):  # what is on an accelerator goes to the kernel
            state.of_device(kernel)(torch.zeros(1).as_subclass(Elsewhere))


class Elsewhere(Tensor):
    device = SimpleNamespace(type="cuda")  # type: ignore[assignment]


def stub_kernels(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """The functions of a module, bound anew while their packages are there."""
    found = {n: getattr(module, n) for n in state.KERNELS if hasattr(module, n)}

    def kernel(x: Tensor, *args: Any, **options: Any) -> Any:
        raise RuntimeError("Expected x.is_cuda() to be true, but got false.")

    packages = {"causal_conv1d_fn": "causal_conv1d", "causal_conv1d_update": "causal_conv1d"}
    kernels = {"torch_chunk_gated_delta_rule": "chunk_gated_delta_rule",
               "torch_recurrent_gated_delta_rule": "fused_recurrent_gated_delta_rule"}  # fmt: skip
    for name, function in found.items():
        called, package = kernels.get(name, name), packages.get(name, "fla")
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{called: kernel}))
        plain = inspect.unwrap(function)
        monkeypatch.setattr(module, name, use_kernel_func_from_hub_with_fallback(called, package)(plain))
    return [getattr(module, name) for name in found]


def test_functions_are_replaced_once(checkpoint: Callable[[str], Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("qwen3_5"))
    state.hand_over(model)
    names = vars(sys.modules[type(model).__module__])
    before = names[RULE], names[CONVOLUTION]
    state.hand_over(model)
    assert (names[RULE], names[CONVOLUTION]) == before
    assert not hasattr(before[0].of_sequences, "of_sequences")
