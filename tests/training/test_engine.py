"""One rank in this process: the start-up canary, replies, and engines behind one protocol, what they compute, save and
free."""

from __future__ import annotations

import gc
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import CheckpointError, ConfigError
from dpeer.model import lm, tree_attention
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, world
from dpeer.training.choice import Choice, policy_choice
from dpeer.training.export import export
from dpeer.training.plain import FOLDER
from dpeer.training.policy import Policy, allowance, canaries
from dpeer.training.prepare import Prepared
from dpeer.training.reference import Reference
from dpeer.training.samples import LONGEST, spread

TIMEOUT_S = 77.0


def recipe(path: str = "model", **model: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": path, "dtype": "fp32"} | model,
            "data": {"train": "d.jsonl"},
            "training": {"steps": 3, "records_per_step": 2, "optimizer": {"grad_clip": 0.7}},
            "cluster": {"deepspeed": "cpu", "reference_deepspeed": "cpu"},
        }
    )


# The canary


@pytest.fixture(scope="module")
def here() -> Iterator[world.World]:
    """A process group of this process alone."""
    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield world.start(0, 1, "127.0.0.1", port, TIMEOUT_S, gpu=False)
    world.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("canary")
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    made = {
        "plain": tiny_model(root / "plain", "qwen3", 3, vocab=300),
        "dynamic": tiny_model(
            root / "dynamic", "llama", 3, vocab=300, rope_parameters=dynamic, max_position_embeddings=8
        ),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.fixture
def data() -> TokenizedSet:
    """The shortest record with siblings is the third; the first has none."""
    trees = [
        TokenTree(0, (5, 6), ((7, 8),), (), 0, ("A",)),
        TokenTree(1, tuple(range(10, 40)), ((50, 51, 52), (53, 54), (55,)), ((0, 0, 1), (0, 0, 2)), 0, ("A",)),
        TokenTree(
            2, tuple(range(60, 66)), ((90, 91, 92, 93), (94, 95, 96, 97, 98, 99), (90,)), ((0, 0, 1),), 0, ("A",)
        ),
    ]
    return TokenizedSet(("A",), tuple(trees), 0, 0)


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
    assert canaries([replace(trees[0], responses=((2,),))]) == []


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


@pytest.mark.parametrize("budget", [1, 10_000])  # a forward for each prompt, and one for all
def test_replies_are_the_greedy_ones_up_to_the_end_of_turn(
    here: world.World, models: dict[str, str], budget: int
) -> None:
    """Against transformers' own generation, prompt by prompt with its cache."""
    prompts = [(5, 6), tuple(range(10, 40)), tuple(range(60, 66))]
    oracle = AutoModelForCausalLM.from_pretrained(models["plain"], dtype=torch.float32).eval()
    options = {"max_new_tokens": LONGEST, "min_new_tokens": LONGEST, "do_sample": False, "pad_token_id": 0}
    expected = [oracle.generate(torch.tensor([p]), **options)[0, len(p) :].tolist() for p in prompts]
    end = expected[0][4]
    trees = [TokenTree(i, p, ((7, end),), (), 0, ("A",)) for i, p in enumerate(prompts)]
    config = recipe(models["plain"]).model_copy(
        update={"training": recipe().training.model_copy(update={"tokens_per_pack": budget})}
    )
    policy = Policy(config, Prepared(TokenizedSet(("A",), tuple(trees), 0, 0), None, None, {}), here)
    found = policy.reply(trees)
    assert found == [reply[: reply.index(end) + 1] if end in reply else reply for reply in expected]
    assert len(found[0]) <= 5 and policy.engine.module.training
    assert policy.reply(trees) == found


def test_sampled_records_are_spread_over_the_split() -> None:
    trees = [TokenTree(i, (1,), ((2,),), (), 0, ("A",)) for i in range(10)]
    assert [t.index for t in spread(trees, 3)] == [0, 3, 6]
    assert [t.index for t in spread(trees[:2], 3)] == [0, 1]


def test_every_process_group_inherits_the_timeout(here: world.World) -> None:
    """DeepSpeed clones the world group without a timeout; the default must then be ours."""
    import torch.distributed as dist

    clone = dist.new_group([0])
    assert clone._get_backend(torch.device("cpu")).options._timeout.total_seconds() == pytest.approx(TIMEOUT_S)


# Engines

LORA: dict[str, Any] = {"lora": {"rank": 4}}
ENGINES = ("deepspeed", "plain")
MODELS = pytest.mark.parametrize("model", [{}, LORA | {"dtype": "bf16"}], ids=["full", "lora-bf16"])


def sft(path: str, engine: str, **model: Any) -> Config:
    """Steps of two micro-batches, without a reference."""
    base = recipe(path, **model)
    changes = {"tokens_per_pack": 10, "optimizer": {"lr": 1e-3, "warmup": 0, "grad_clip": 0.05, "weight_decay": 0.1}}
    return Config.model_validate(
        base.model_dump()
        | {"output_dir": Path(path).parent / "runs", "objective": {"kind": "sft"}}
        | {"training": base.training.model_dump() | changes, "cluster": base.cluster.model_dump() | {"engine": engine}}
    )


@pytest.fixture
def make(here: world.World, data: TokenizedSet) -> Iterator[Callable[[Config], Policy]]:
    """Policies that are closed when the test is over."""
    made: list[Policy] = []

    def build(config: Config) -> Policy:
        made.append(Policy(config, Prepared(data, None, None, {}), here))
        return made[-1]

    yield build
    for policy in made:
        policy.close()


def alive() -> int:
    """Bytes of all tensors that any Python object holds, also where only C++ holds that object."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    storages = [t.untyped_storage() for t in (*tensors, *(t.grad for t in tensors if t.is_leaf)) if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_builds_in_one_process_do_not_grow(
    here: world.World, models: dict[str, str], data: TokenizedSet, engine: str
) -> None:
    """DeepSpeed's own `destroy` leaves weights, master weights and moments: 16 bytes a parameter and build."""
    before, held = alive(), 0
    for model in ({}, LORA | {"dtype": "bf16"}, {}):
        config = sft(models["plain"], engine, **model)
        policy, reference = Policy(config, Prepared(data, None, None, {}), here), Reference(config, here)
        policy.train_step(None)
        reference.score(data.trees)
        held = held or alive()
        reference.close()
        policy.close()
    assert held > before + 200_000
    assert alive() < before + 1000


def gradients(policy: Policy) -> dict[str, Tensor]:
    """As the optimizer is about to use them."""
    from deepspeed.utils import safe_get_full_grad

    read = safe_get_full_grad if policy.engine.name == "deepspeed" else lambda p: p.grad
    named = policy.engine.module.named_parameters()
    return {name: read(p).detach().clone() for name, p in named if p.requires_grad}


@pytest.mark.parametrize("model", [{}, LORA | {"gradient_checkpointing": True}], ids=["full", "lora"])
def test_engines_compute_the_same(
    make: Callable[[Config], Policy], models: dict[str, str], model: dict[str, Any]
) -> None:
    found, steps = [], []
    for engine in ENGINES:
        policy = make(sft(models["plain"], engine, **model))
        before: list[dict[str, Tensor]] = []
        step = policy.engine.step
        policy.engine.step = lambda lr, p=policy, s=step, b=before: (b.append(gradients(p)), s(lr))[1]  # type: ignore
        steps.append([policy.train_step(None) for _ in range(3)])
        weights = policy.engine.gathered()
        assert weights is not None
        found.append((before[0], {k: v for k, v in weights.items() if not model or "lora_" in k}))
    (gradient, weights), (plain_gradient, plain_weights) = found
    assert gradient.keys() == plain_gradient.keys() and weights.keys() <= plain_weights.keys()
    scale = max(float(g.abs().max()) for g in gradient.values())
    for name, expected in gradient.items():
        assert torch.allclose(plain_gradient[name], expected, rtol=0, atol=1e-6 * scale), name
    for name, expected in weights.items():
        assert torch.allclose(plain_weights[name], expected, rtol=1e-5, atol=1e-5), name
    for ours, theirs in zip(steps[1], steps[0], strict=True):
        assert theirs["packs"] == 2 and theirs["grad_norm"] > 0.05  # clipped
        for key in ("objective", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


@pytest.mark.parametrize(("engine", "dtype"), [("deepspeed", "fp32"), ("plain", "bf16")])
def test_reference_beneath_the_adapters_is_the_reference(
    make: Callable[[Config], Policy],
    here: world.World,
    models: dict[str, str],
    data: TokenizedSet,
    engine: str,
    dtype: str,
) -> None:
    """To the bit, also once the adapters have moved, and without a trace in what is trained afterwards."""
    config = sft(models["plain"], engine, dtype=dtype, gradient_checkpointing=True, **LORA)
    policy, undisturbed = make(config), make(config)
    separate, beneath = Reference(config, here), Reference(config, here, beneath=policy.engine)
    expected = separate.score(data.trees)
    separate.close()
    for _ in range(2):
        assert beneath.score(data.trees) == expected
        assert policy.train_step(None) == undisturbed.train_step(None)
    beneath.close()
    assert policy.score(data.trees) == undisturbed.score(data.trees) != expected


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_keeps_fp32_masters_and_sums(
    make: Callable[[Config], Policy], models: dict[str, str], engine: str
) -> None:
    policy = make(sft(models["plain"], engine, dtype="bf16", **LORA))
    policy.train_step(None)
    assert {p.dtype for p in policy.engine.module.parameters()} == {torch.bfloat16}
    held = policy.engine.held()
    assert all(len(tensors) > 0 and {t.dtype for t in tensors} == {torch.float32} for tensors in held.values())
    master, computing = held["master weights"][0], policy.engine.gathered()
    assert computing is not None
    small = [v.float().flatten() for k, v in computing.items() if "lora_" in k]
    assert not torch.equal(master.bfloat16().float(), master)  # more digits than the model computes with
    assert sum(float(v.square().sum()) for v in small) == pytest.approx(float(master.square().sum()), rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@MODELS
def test_a_loaded_checkpoint_goes_on_to_the_bit(
    make: Callable[[Config], Policy], models: dict[str, str], tmp_path: Path, engine: str, model: dict[str, Any]
) -> None:
    config, folder = sft(models["plain"], engine, **model), tmp_path / "saved"
    policy = make(config)
    checkpoint.save(policy, tmp_path / "fresh", {})  # before the optimizer has any moments
    first = policy.train_step(None)
    checkpoint.save(policy, folder, {})
    rest = [policy.train_step(None) for _ in range(2)]
    checkpoint.load(policy, tmp_path / "fresh", {})
    assert policy.train_step(None) == first
    again = make(config)
    again.engine.blank()
    checkpoint.load(again, folder, {})
    assert [again.train_step(None) for _ in range(2)] == rest
    other = make(sft(models["plain"], *(e for e in ENGINES if e != engine), **model))
    with pytest.raises(CheckpointError, match=f"written by engine {engine}.*cluster.engine={engine}"):
        checkpoint.load(other, folder, {})


def test_plain_checkpoints_are_read_at_any_number_of_ranks_and_not_by_another_model(
    make: Callable[[Config], Policy], models: dict[str, str], tmp_path: Path
) -> None:
    policy = make(sft(models["plain"], "plain", **LORA))
    policy.train_step(None)
    checkpoint.save(policy, tmp_path, {})
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"world_size": 7}))
    checkpoint.convert(tmp_path, 1)
    expected = policy.train_step(None)
    checkpoint.load(policy, tmp_path, {})
    assert policy.train_step(None) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == [FOLDER, "state.json"]
    wider = make(sft(models["plain"], "plain", lora={"rank": 5}))
    with pytest.raises(CheckpointError, match=r"other trained parameters.*Restore model.path and model.lora"):
        checkpoint.load(wider, tmp_path, {})


@MODELS
def test_plain_weights_are_exported(
    make: Callable[[Config], Policy], models: dict[str, str], tmp_path: Path, model: dict[str, Any]
) -> None:
    """The export itself compares the reloaded folder with the policy."""
    policy = make(sft(models["plain"], "plain", **model))
    policy.train_step(None)
    export(policy, tmp_path / "export")
    changed = AutoModelForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    base = AutoModelForCausalLM.from_pretrained(models["plain"]).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    assert changed.keys() == base.keys() and not torch.equal(changed[name].float(), base[name].float())


@pytest.mark.parametrize(("recorded", "engine"), [({}, "deepspeed"), ({"engine": "plain"}, "plain"), (None, "plain")])
def test_auto_stays_with_the_engine_that_a_run_began_with(
    here: world.World, tmp_path: Path, recorded: dict[str, str] | None, engine: str
) -> None:
    """A manifest without an engine is from before there was a choice."""
    config = recipe().model_copy(update={"output_dir": tmp_path})
    if recorded is not None:
        config.run_dir.mkdir()
        (config.run_dir / "manifest.json").write_text(json.dumps(recorded))
    assert policy_choice(config, here).name == engine
    assert policy_choice(sft("m", "deepspeed"), here) == Choice("deepspeed", "as cluster.engine says")
