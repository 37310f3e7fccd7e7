"""Between two steps a rank's host never waits for its device: on the meta device a value cannot be read at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from dpeer.config import Config
from dpeer.data.layout import computed
from dpeer.data.packing import Pack, build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.tree_lm import TreeLM
from dpeer.objective.lagrangian import Lagrangian
from dpeer.training import policy as training_policy
from dpeer.training.policy import BatchPlan, Policy, golden_first
from dpeer.training.pulse import Pulse
from dpeer.training.world import World

META = torch.device("meta")
TREES = [
    TokenTree(i, (1,) * (3 + i), ((2, 3), (4, 5, 6), (7,)), ((0, 1, 0), (1, 1, 2)), 1, ("A", "B")) for i in range(4)
]


class Engine:
    """Answers packs with log-probabilities on the meta device, and counts what it was asked for."""

    def __init__(self) -> None:
        self.weight = torch.ones((), dtype=torch.float64, device=META, requires_grad=True)
        self.backwards = 0

    def __call__(self, pack: Pack) -> Tensor:
        return self.weight * torch.ones(len(pack.response_tokens), dtype=torch.float64, device=META)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        self.backwards += 1

    def eval(self) -> None: ...
    def train(self) -> None: ...


class Transfers(TorchDispatchMode):
    """Counts copies from the host to the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        moved = isinstance(out, Tensor) and out.device == META and out.numel()
        given = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.numel() and x.dim()]
        self.count += bool(moved and func is torch.ops.aten._to_copy.default and given[0].device.type == "cpu")
        return out


def policy(form: str, evidence: str = "split") -> Policy:
    made: Any = object.__new__(Policy)
    made.layout = "tree"
    recipe = {
        "name": "x",
        "model": {"path": "m"},
        "data": {"train": "d"},
        "objective": {
            "length_normalised": True,
            "golden_nll": 0.1,
            "constraint": {"form": form},
            "dual": {"evidence": evidence, "controller": "ascent"},
        },
        "training": {"steps": 3, "tokens_per_pack": 20, "records_per_step": 4},
    }
    made.config = Config.model_validate(recipe)
    made.data = SimpleNamespace(dimensions=("A", "B"))
    made.prepared = SimpleNamespace(dual_batch=lambda *_: TREES)
    made.world, made.engine, made.pulse, made.step = World(0, 1, META), Engine(), Pulse(), 0
    made.meter = SimpleNamespace(mark=lambda *_: None)
    made.lagrangian = Lagrangian(made.config.objective, ("A", "B"))
    return made


@pytest.mark.parametrize("form", ["threshold", "margin", "winrate"])
def test_forward_and_backward_of_a_step_read_no_value(form: str) -> None:
    rank = policy(form)
    counts = torch.tensor([4, 4])
    batch = BatchPlan(TREES, counts, sum(len(t.responses[1]) for t in TREES))
    references = {i: [-1.0, -2.0, -3.0] for i in range(8)}
    with Transfers() as transfers:
        totals = rank.forward_backward(batch, rank.lagrangian.weights(counts), references)
        trained = transfers.count
        totals = totals + rank.dual_totals(4, references)
    packs = rank.engine.backwards
    assert packs > 1
    assert totals.scalars.device == totals.table.device == META
    own = form != "threshold"  # such forms compare edges with their tolerances
    assert trained == packs * (4 + own)  # the pack, its references, two rows of weights
    assert transfers.count == trained + packs * (2 + own)


@pytest.mark.parametrize("layout", ["tree", "sequences"])
def test_tokens_are_counted_by_expert_without_reading_a_value(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device until all ranks share the counts."""
    rank: Any = policy("threshold")
    rank.layout, rank.config = (
        layout,
        Config.model_validate(
            {
                "name": "x",
                "model": {"path": "m", "router_aux_loss": 0.1},
                "data": {"train": "d"},
                "training": {"steps": 1},
            }
        ),
    )
    lm = SimpleNamespace(model=SimpleNamespace(num_experts_per_tok=2), router_logits=())

    def forward(pack: Pack) -> None:
        lm.router_logits = (torch.zeros(computed(pack, layout), 5, device=META),) * 3

    forward.module = lm  # type: ignore[attr-defined]
    rank.engine, shared = forward, []
    monkeypatch.setattr(training_policy, "sum_over_ranks", lambda total: shared.append(total) or total)
    found = rank.routed([build_pack(TREES[:2], range(2)).to(META), build_pack(TREES[2:], range(2)).to(META)])
    assert [(t.device, t.shape) for t in shared] == [(META, (5 + 1,))] and found is shared[0]


def test_a_pack_travels_as_one_buffer() -> None:
    pack = build_pack(TREES, range(4))
    with Transfers() as transfers:
        moved = pack.to(META)
        moved.varlen(), moved.parts()
    assert transfers.count == 1
    here = (pack.input_ids, pack.golden_at, *pack.varlen(), *pack.parts().own)
    there = (moved.input_ids, moved.golden_at, *moved.varlen(), *moved.parts().own)
    for a, b in zip(here, there, strict=True):
        if isinstance(a, Tensor):
            assert isinstance(b, Tensor) and (b.device, b.shape, b.dtype) == (META, a.shape, a.dtype)
        else:
            assert a == b


def test_the_backbone_reads_no_value() -> None:
    """transformers asks whether positions are those of packed sequences, unless it has no mask to make."""
    shape = AutoConfig.for_model(
        "gemma3_text", hidden_size=16, intermediate_size=16, num_hidden_layers=6, vocab_size=32, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    with META:
        model = AutoModelForCausalLM.from_config(shape, attn_implementation="tree")
    assert TreeLM(model)(build_pack(TREES, range(4)).to(META)).shape == (12,)


def by_hand(pack: Pack, logps: Tensor) -> int:
    found, start = 0, 0
    for count in pack.response_counts:
        values = [float(logps[i] / pack.response_tokens[i]) for i in range(start, start + count)]
        golden = next(i for i in range(count) if start + i in pack.golden_at)
        found += all(values[golden] > v for i, v in enumerate(values) if i != golden)
        start += count
    return found


def test_golden_first_by_hand() -> None:
    single = TokenTree(9, (1,), ((2, 3),), (), 0, ())
    pack = build_pack([*TREES, single], range(5))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logps = -torch.randint(1, 5, (13,), generator=generator).double()  # ties are common, and no win
        assert int(golden_first(pack, logps)) == by_hand(pack, logps)
    assert int(golden_first(pack, torch.full((13,), torch.nan, dtype=torch.float64))) == 0
