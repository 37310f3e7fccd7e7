"""One rank in this process: replies, and engines behind one protocol, what they compute, save and free."""

from __future__ import annotations

import gc
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from dpeer.config import Config, Dual, Objective
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import CheckpointError, ClusterError, ConfigError
from dpeer.integrity import read_state, write_state
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, world
from dpeer.training.export import export
from dpeer.training.plain import FOLDER
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared, model_facts_of
from dpeer.training.rank import TrainingRank
from dpeer.training.reference import Reference
from dpeer.training.samples import LONGEST
from dpeer.training.snapshot import Snapshot
from tests.training.conftest import gradients, recipe, sft


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


# Engines

LORA: dict[str, Any] = {"lora": {"rank": 4}}
DORA: dict[str, Any] = {"lora": {"rank": 4, "dora": True, "rslora": True}}
ENGINES = ("deepspeed", "plain")
MODELS = pytest.mark.parametrize("model", [{}, LORA | {"dtype": "bf16"}, DORA], ids=["full", "lora-bf16", "dora"])


def gathered(policy: Policy) -> dict[str, Tensor]:
    lm = policy.engine.module
    with policy.engine.whole(list(lm.parameters())):
        return {name: tensor.detach().clone() for name, tensor in lm.state_dict().items()}


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


@pytest.mark.parametrize(
    "model",
    [{}, LORA | {"gradient_checkpointing": True}, DORA, DORA | {"gradient_checkpointing": True}],
    ids=["full", "lora", "dora", "dora-recomputed"],
)
def test_engines_compute_the_same(
    make: Callable[[Config], Policy], models: dict[str, str], model: dict[str, Any]
) -> None:
    found, steps = [], []
    for engine in ENGINES:
        policy = make(sft(models["plain"], engine, **model))
        whole = [m for m in policy.engine.module.modules() if getattr(m, "_z3_leaf", False)]
        gathers = engine == "deepspeed" and (not model or "gradient_checkpointing" in model)
        assert {type(m).__name__ for m in whole} == ({"Qwen3DecoderLayer"} if gathers else set())
        before: list[dict[str, Tensor]] = []
        step = policy.engine.step
        policy.engine.step = lambda lr, p=policy, s=step, b=before: (b.append(gradients(p)), s(lr))[1]  # type: ignore
        steps.append([policy.train_step(None) for _ in range(3)])
        found.append((before[0], {k: v for k, v in gathered(policy).items() if not model or "lora_" in k}))
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


def test_experts_are_balanced_alike_however_a_step_is_cut(make: Callable[[Config], Policy], tmp_path: Path) -> None:
    """Two packs or one, either engine: the shares of experts are those of the whole batch."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    folder = str(tiny_model(tmp_path / "moe", "qwen3_moe", 1, vocab=300, **sizes))
    found = []
    for engine, budget, weight in (
        ("plain", 10_000, 9.0),
        ("plain", 10, 9.0),
        ("deepspeed", 10, 9.0),
        ("plain", 10, 0.0),
    ):
        config = sft(folder, engine, router_aux_loss=weight)
        config = config.model_copy(update={"training": config.training.model_copy(update={"tokens_per_pack": budget})})
        policy = make(config)
        step, kept = policy.engine.step, list[dict[str, Tensor]]()
        policy.engine.step = lambda lr, p=policy, s=step, k=kept: (k.append(gradients(p)), s(lr))[1]  # type: ignore
        found.append((policy.train_step(None), kept[0]))
    (whole, expected), *others, (without, bare) = found
    assert whole["packs"] == 1 and whole["router_aux_loss"] > 2 and "router_aux_loss" not in without
    scale = max(float(g.abs().max()) for g in expected.values())
    for entry, gradient in others:
        assert entry["packs"] == 2 and entry["router_aux_loss"] == pytest.approx(whole["router_aux_loss"], rel=1e-6)
        assert entry["objective"] == pytest.approx(without["objective"], rel=1e-6)
        assert max(float((gradient[k] - g).abs().max()) for k, g in expected.items()) < 1e-5 * scale
    assert max(float((bare[k] - g).abs().max()) for k, g in expected.items()) > 0.01 * scale


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


@pytest.mark.parametrize(("engine", "dtype"), [("deepspeed", "fp32"), ("plain", "fp32"), ("plain", "bf16")])
def test_a_run_from_an_adapter_begins_at_ln_2(
    make: Callable[[Config], Policy],
    here: world.World,
    models: dict[str, str],
    data: TokenizedSet,
    tmp_path: Path,
    engine: str,
    dtype: str,
) -> None:
    """By a reference in a group of its own (it fills the cache too) or beside it; the bare base is found out."""
    first = make(sft(models["plain"], "plain", lora={"rank": 4}))
    for _ in range(5):
        first.train_step(None)
    first.engine.module.model.save_pretrained(tmp_path / "adapter")
    config = sft(models["plain"], engine, dtype=dtype, lora={"path": str(tmp_path / "adapter")}).model_copy(
        update={"objective": Objective(dual=Dual(evidence="batch"))}
    )
    beside = config.model_copy(update={"cluster": config.cluster.model_copy(update={"reference": "colocated"})})
    separate, rank = Reference(config, here), TrainingRank(beside, here, Prepared(data, None, None, {}))
    batch = rank.prepared.train_batch(config, 0)
    for entry in (make(config).train_step(separate.score(batch)), rank.train_step()):
        assert entry["dimensions"]["A"]["loss"] == pytest.approx(math.log(2), abs=1e-6 if dtype == "fp32" else 1e-3)
    again = make(config)
    bare = Reference(config, here, beneath=again.engine)
    with pytest.raises(ClusterError, match="policy and reference differ"):
        again.train_step(bare.score(batch))
    separate.close()
    rank.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_keeps_fp32_masters_and_sums(
    make: Callable[[Config], Policy], models: dict[str, str], engine: str
) -> None:
    policy = make(sft(models["plain"], engine, dtype="bf16", **LORA))
    policy.train_step(None)
    assert {p.dtype for p in policy.engine.module.parameters()} == {torch.bfloat16}
    optimizer = policy.engine.optimizer if engine == "plain" else policy.engine._engine.optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups)
    held = policy.engine.held()
    assert all(len(tensors) > 0 and {t.dtype for t in tensors} == {torch.float32} for tensors in held.values())
    master, computing = held["master weights"][0], gathered(policy)
    small = [v.float().flatten() for k, v in computing.items() if "lora_" in k]
    assert not torch.equal(master.bfloat16().float(), master)  # more digits than the model computes with
    assert sum(float(v.square().sum()) for v in small) == pytest.approx(float(master.square().sum()), rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@MODELS
def test_a_loaded_checkpoint_goes_on_to_the_bit(
    make: Callable[[Config], Policy],
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    model: dict[str, Any],
) -> None:
    """Written while training went on; of another one beside it the disk is lost meanwhile."""
    config, folder = sft(models["plain"], engine, **model), tmp_path / "saved"
    policy = make(config)
    checkpoint.save(policy, tmp_path / "fresh", {})  # before the optimizer has any moments
    first = policy.train_step(None)
    held_up = threading.Event()
    monkeypatch.setattr(Snapshot, "write", lambda self, write=Snapshot.write: (held_up.wait(), write(self)))
    saving, lost = (checkpoint.begin(policy, f, {}, background=True) for f in (folder, tmp_path / "lost"))
    rest = [policy.train_step(None) for _ in range(2)]
    assert saving.writing and lost.writing
    shutil.rmtree(lost.folder, ignore_errors=True)
    lost.folder.touch()
    held_up.set()
    with pytest.raises(CheckpointError, match=r"lost: rank 0 on .* could not write its part.*Earlier checkpoints are"):
        checkpoint.finish(lost)
    cost = checkpoint.finish(saving)
    assert cost["background"] and cost["bytes"] == sum(
        p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "state.json"
    )
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
    state = read_state(tmp_path / "state.json", "")
    write_state(tmp_path / "state.json", state | {"world_size": 7})
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


@pytest.mark.parametrize("kind", [LORA, DORA], ids=["lora", "dora"])
def test_an_adapter_is_exported_alone_and_a_run_starts_from_it(
    make: Callable[[Config], Policy],
    models: dict[str, str],
    data: TokenizedSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
) -> None:
    policy = make(sft(models["plain"], "plain", export_dtype="fp32", **kind))
    for _ in range(3):
        policy.train_step(None)
    expected = policy.score(data.trees)
    export(policy, tmp_path / "merged")
    export(policy, tmp_path / "alone", adapter=True)
    assert not (tmp_path / "alone" / "config.json").exists() and (tmp_path / "alone" / "tokenizer.json").exists()
    ids, load = torch.tensor([[5, 6, 7, 8, 40]]), AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        merged = load(tmp_path / "merged", dtype=torch.float32)(ids).logits
        for adapter in (tmp_path / "alone", tmp_path / "merged" / "adapter"):
            base: Any = load(models["plain"], dtype=torch.float32)
            assert (base(ids).logits - merged).abs().max() > 1e-3
            torch.testing.assert_close(PeftModel.from_pretrained(base, adapter)(ids).logits, merged, rtol=0, atol=2e-5)
            stops = GenerationConfig.from_pretrained(adapter).eos_token_id
            assert {t.responses[t.golden][-1] for t in data.trees} <= {*(stops if isinstance(stops, list) else [stops])}
    endless = GenerationConfig(eos_token_id=1)
    monkeypatch.setattr("dpeer.training.export.generation", lambda *_: (endless, []))
    with pytest.raises(CheckpointError, match="generates without an end"):
        export(policy, tmp_path / "endless", adapter=True)
    again = make(sft(models["plain"], "plain", lora={"path": str(tmp_path / "alone")}))
    assert again.score(data.trees) == expected


def test_adapters_over_4_bits_are_exported_on_the_weights_that_these_were_made_of(
    make: Callable[[Config], Policy],
    here: world.World,
    models: dict[str, str],
    data: TokenizedSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a stand-in for bitsandbytes that rounds the linear layers to 15 values when transformers is asked to."""
    load, asked = AutoModelForCausalLM.from_pretrained, []

    def rounding(path: str, *, quantization_config: Any = None, **options: Any) -> Any:
        model, info = load(path, **options)
        asked.append(quantization_config is not None and quantization_config.load_in_4bit)
        for layer in model.model.layers.modules() if asked[-1] else ():
            if isinstance(layer, torch.nn.Linear):
                step = layer.weight.detach().abs().max() / 7
                layer.weight.data = (layer.weight / step).round() * step
        return model, info

    config = sft(models["plain"], "auto", load_in_4bit=True, export_dtype="fp32", **LORA)
    with pytest.raises(ConfigError, match=r"model.load_in_4bit = true needs .* bitsandbytes.*load_in_4bit=false"):
        model_facts_of(config)
    monkeypatch.setattr("dpeer.model.four_bits.is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr("dpeer.model.lm.AutoModelForCausalLM.from_pretrained", rounding)
    policy, reference = make(config), Reference(config, here)
    assert policy.engine.name == "plain" and asked == [True, True]
    assert reference.score(data.trees) == policy.score(data.trees)
    reference.close()
    policy.train_step(None)
    (note,) = (n for n in export(policy, tmp_path / "export")["notes"] if "4-bit" in n)
    assert asked[2:] == [False, False] and "The certificate is of the 4-bit model" in note
    ids = torch.tensor([[5, 6, 7, 8, 40]])
    base, merged = (load(f, dtype=torch.float32) for f in (models["plain"], tmp_path / "export"))
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "export" / "adapter")(ids).logits
        torch.testing.assert_close(adapted, merged(ids).logits, rtol=0, atol=2e-5)
