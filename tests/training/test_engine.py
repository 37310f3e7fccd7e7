"""The engine's settings, and the start-up canary of the policy in one process without Ray."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from dpeer.config import Config, Optimizer
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError
from dpeer.model import lm, tree_attention
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.engine import DS_CONFIGS, deepspeed_config, learning_rate
from dpeer.training.policy import Policy, allowance, canaries
from dpeer.training.prepare import Prepared
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


# Settings


@pytest.mark.parametrize("name", sorted(p.stem for p in DS_CONFIGS.glob("*.json")))
def test_every_shipped_config_is_accepted(name: str) -> None:
    for dtype in ("fp32", "bf16"):
        for trained in (True, False):
            config = recipe(dtype=dtype)
            if "offload" in name:
                adam = config.training.optimizer.model_copy(update={"name": "cpu_adam"})
                training = config.training.model_copy(update={"optimizer": adam})
                config = config.model_copy(update={"training": training})
            settings = deepspeed_config(name, config, trained=trained)
            assert settings["zero_optimization"]["stage"] == 3
            assert settings["train_micro_batch_size_per_gpu"] == settings["gradient_accumulation_steps"] == 1
            assert ("bf16" in settings) == (dtype == "bf16")
            assert settings.get("gradient_clipping") == (0.7 if trained else None)
            if trained and dtype == "bf16":
                assert settings["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "must be an object that sets zero_optimization.stage to 3"),
        ("{}", "zero_optimization.stage to 3"),
        ('{"zero_optimization": 3}', "zero_optimization.stage to 3"),
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage to 3"),
        ('{"zero_optimization": {"stage": 3}, "fp16": {"enabled": true}}', "sets fp16, which the recipe decides"),
        ('{"zero_optimization": {"stage": 3}, "scheduler": {}, "optimizer": {}}', "sets optimizer, scheduler"),
        ('{"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}', "train_batch_size"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    for trained, field in ((True, "cluster.deepspeed"), (False, "cluster.reference_deepspeed")):
        with pytest.raises(ConfigError) as caught:
            deepspeed_config(str(path), recipe(), trained=trained)
        assert says in str(caught.value) and str(caught.value).startswith(f"{field} = ")


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster.deepspeed = zero4: no such file.*zero3, zero3_hpz"):
        deepspeed_config("zero4", recipe(), trained=True)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for name, says in (("folder", "cannot be read"), ("latin", "is not JSON")):
        with pytest.raises(ConfigError, match=says):
            deepspeed_config(str(tmp_path / f"{name}.json"), recipe(), trained=True)


def test_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 12345}}))
    assert deepspeed_config(str(path), recipe(), trained=True)["zero_optimization"]["reduce_bucket_size"] == 12345


# Learning rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_linearly_to_the_peak(schedule: str) -> None:
    spec = Optimizer.model_validate({"lr": 2.0, "warmup": 0.2, "schedule": schedule})
    rates = [learning_rate(s, 20, spec) for s in range(20)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[0] > 0 and max(rates) == 2.0
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_schedules_by_hand() -> None:
    def rates(schedule: str, total: int, warmup: float = 0.0) -> list[float]:
        spec = Optimizer.model_validate({"lr": 1.0, "warmup": warmup, "schedule": schedule})
        return [learning_rate(s, total, spec) for s in range(total + 1)]

    assert rates("constant", 4) == [1, 1, 1, 1, 1]
    assert rates("linear", 4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    half = math.sqrt(0.5)
    assert rates("cosine", 4) == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])
    assert rates("linear", 6, 1 / 3)[2:] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert rates("cosine", 1, 0.9) == pytest.approx([1, 0], abs=1e-12)


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


@pytest.mark.parametrize(
    ("optimizer", "gpus", "name", "says"),
    [
        ("adamw", 0, "zero3_offload", "set training.optimizer.name to cpu_adam"),
        ("adamw", 1, "zero3_offload", "set training.optimizer.name to cpu_adam"),
        ("cpu_adam", 1, "zero3", "set cluster.deepspeed to zero3_offload"),
        ("cpu_adam", 1, "zero3_offload", None),
        ("cpu_adam", 0, "cpu", None),
    ],
)
def test_optimizer_must_work_where_its_state_lives(optimizer: str, gpus: int, name: str, says: str | None) -> None:
    config = Config.model_validate(
        {
            "name": "x",
            "model": {"path": "m"},
            "data": {"train": "d"},
            "training": {"steps": 1, "optimizer": {"name": optimizer}},
            "cluster": {"gpus_per_worker": gpus},
        }
    )
    if says is None:
        deepspeed_config(name, config, trained=True)
        return
    with pytest.raises(ConfigError, match=says):
        deepspeed_config(name, config, trained=True)


def test_every_process_group_inherits_the_timeout(here: world.World) -> None:
    """DeepSpeed clones the world group without a timeout; the default must then be ours."""
    import torch.distributed as dist

    clone = dist.new_group([0])
    assert clone._get_backend(torch.device("cpu")).options._timeout.total_seconds() == pytest.approx(TIMEOUT_S)
