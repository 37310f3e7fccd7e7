"""The step computes one thing, however it is cut up (ranks, micro-batches, recomputation): what the oracle computes.

The oracle is written here from scratch: every preference edge as two separate padded-free sequences through the plain
Hugging Face model with eager attention, full log-softmax, and autograd.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpeer.config_io import load_config
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model
from dpeer.training.prepare import prepare
from tests.multimodal import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOLERANCE = 1e-5
# Adam's first step is a sign: with the usual eps it would blow rounding errors of tiny gradients up in step 2.
RECIPE = """
name: x
output_dir: {folder}/runs
model: {{path: {folder}/model, dtype: fp32}}
data: {{train: {folder}/world/train.jsonl, dual: {folder}/world/test.jsonl, heldout: none, max_tokens: 512}}
objective: {{beta: 0.5, golden_nll: 0.7, label_smoothing: 0.1, constraint: {{tolerance: 0.25}}}}
training:
  steps: 6
  records_per_step: 7
  tokens_per_pack: 100000
  optimizer: {{lr: 1.0e-3, warmup: 0, grad_clip: 0, eps: 0.1}}
cluster: {{reference: colocated, deepspeed: cpu, reference_deepspeed: cpu}}
"""
SMALL, MEDIUM = "training.tokens_per_pack=200", "training.tokens_per_pack=700"
LORA = "model.lora={rank: 4}"
POOLED = "pooled:objective.primary=pooled,objective.constraint.tolerance=inf"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo": ("olmo3", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
    "sinks": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "delta": (
        "qwen3_5_text",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
    ),
}  # fmt: skip
"""Architectures with norms after each part, with experts, with attention sinks, with a recurrent state."""
WIDE = ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False})
"""Heads for four ranks to share, which are more than the key heads."""
BALANCED = "model.path={folder}/moe,model.router_aux_loss=0.5"
SHARED = "training.sequence_parallel"
SPARED = "model.gradient_checkpointing=true,model.offload_activations=true,model.mlp_tile=16"
SEEING = "seeing"
"""Gemma 3 as a model that sees: its text part is trained."""
OTHERS = [f"{name}:model.path={{folder}}/{name}" for name in (*FAMILIES, SEEING)]
OTHERS += [f"{name}lora:model.path={{folder}}/{name},{LORA},cluster.engine=auto" for name in ("moe", "delta")]
SCENARIOS = {
    1: [
        "base:",
        f"small:{SMALL}",
        f"medium:{MEDIUM}",
        "checkpointing:model.gradient_checkpointing=true",
        f"lora:{LORA}",
        "sharded:cluster.engine=deepspeed",
        POOLED,
        "fullhead:model.head_chunk=100000",
        f"normalised:objective.length_normalised=true,{MEDIUM}",
        "sequences:model.layout=sequences",
        "wide:model.path={folder}/wide",
        f"balanced:{BALANCED}",
        *OTHERS,
    ],
    2: [
        "base:",
        POOLED,
        f"small:{SMALL}",
        f"lora:{LORA}",
        f"shardedlora:{LORA},cluster.engine=deepspeed",
        f"checkpointing:model.gradient_checkpointing=true,{SMALL}",
        f"sequences:model.layout=sequences,{MEDIUM}",
        f"spared:{SPARED}",
        f"cut~1:{SHARED}=2",
        f"cutspared:{SHARED}=2,{SPARED}",
        f"cutplain:{SHARED}=2,cluster.engine=plain,model.gradient_checkpointing=true,{MEDIUM}",
        f"cutlora:{LORA},{SHARED}=2,cluster.engine=deepspeed,model.gradient_checkpointing=true",
        f"cutolmo:model.path={{folder}}/olmo,{SHARED}=2",
        f"cutsinks:model.path={{folder}}/sinks,{SHARED}=2,cluster.engine=plain",
        f"cutbalanced:{BALANCED},{SHARED}=2",
        *(text.replace(":", "+:", 1).replace("engine=auto", "engine=deepspeed") for text in OTHERS),
    ],
    4: [
        "base:",
        POOLED,
        f"small:{SMALL}",
        f"lora:{LORA}",
        f"cut:{SHARED}=2,{SMALL}",
        f"cutlora:{LORA},{SHARED}=2",
        f"cutwide~2:model.path={{folder}}/wide,{SHARED}=4",
        f"cutwideplain:model.path={{folder}}/wide,{SHARED}=4,cluster.engine=plain,model.gradient_checkpointing=true",
    ],
}
Result = tuple[dict[str, Any], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("invariants")
    world = toyworld.write_world(path / "world", 3, n_train=40, n_heldout=12, n_prompts=1, n_pretrain=5)
    tiny_model(path / "model", "qwen3", 1, vocab=400, texts=[r.responses[0].text for r in world.train.records])
    for name, (family, options) in FAMILIES.items():
        texts = [r.responses[0].text for r in world.train.records]
        tiny_model(path / name, family, 1, vocab=400, texts=texts, **options)
    tiny_model(path / "wide", WIDE[0], 1, vocab=400, texts=texts, **WIDE[1])
    tiny(path / SEEING, "gemma3", 400, [r.responses[0].text for r in world.train.records])
    (path / "recipe.yaml").write_text(RECIPE.format(folder=path))
    return path


@pytest.fixture(scope="module")
def result(folder: Path) -> Callable[[int, str], Result]:
    for ranks, scenarios in SCENARIOS.items():
        out = folder / str(ranks)
        out.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        program = str(Path(__file__).with_name("program.py"))
        root = str(Path(__file__).parents[2])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "DS_ACCELERATOR": "cpu"}
        texts = [text.replace("{folder}", str(folder)) for text in scenarios]
        done = subprocess.run(
            [*launch, program, str(out), str(folder / "recipe.yaml"), *texts],
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def read(ranks: int, name: str) -> Result:
        base = folder / str(ranks)
        return json.loads((base / f"{name}.json").read_text()), load_file(base / f"{name}.safetensors")

    return read


def gap(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Worst gradient error of any parameter, relative to that parameter's largest gradient."""
    assert set(found) == set(expected)
    return max(float((found[k] - v).abs().max() / v.abs().max().clamp(min=1e-12)) for k, v in expected.items())


def ledger_gaps(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Worst relative errors of the ledgers. The later steps come after an update, which adds rounding of its own."""
    worst = {"step 1": 0.0, "later": 0.0, "multipliers": 0.0}
    for i, (a, b) in enumerate(zip(found["entries"], expected["entries"], strict=True)):
        step = "later" if i else "step 1"
        for d in b["dimensions"]:
            ours, theirs = a["dimensions"][d], b["dimensions"][d]
            pairs = [(ours[key], theirs[key]) for key in ("loss", "margin", "weight")]
            pairs += [(ours["dual"][key], theirs["dual"][key]) for key in ("loss", "margin", "accuracy")]
            for value, x in pairs:
                if x is not None:
                    worst[step] = max(worst[step], abs(value - x) / max(1.0, abs(x)))
            apart = abs(a["constraints"][d]["multiplier"] - b["constraints"][d]["multiplier"])
            worst["multipliers"] = max(worst["multipliers"], apart)
    return worst


def within(gaps: dict[str, float]) -> bool:
    """The proportional gain of the default controller, 10, makes a multiplier of ten times a loss."""
    return gaps["step 1"] < TOLERANCE and gaps["later"] < 5 * TOLERANCE and gaps["multipliers"] < 10 * TOLERANCE


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(1, n) for n in ("small", "medium", "checkpointing", "fullhead", "sharded", "sequences")]
    + [(2, n) for n in ("base", "small", "checkpointing", "sequences", "spared")]
    + [(4, n) for n in ("base", "small")],
)
def test_same_gradients_losses_and_multipliers(result: Callable[[int, str], Result], ranks: int, name: str) -> None:
    (found, grads), (expected, reference) = result(ranks, name), result(1, "base")
    error, gaps = gap(grads, reference), ledger_gaps(found, expected)
    print(f"{ranks} ranks, {name}: gradient {error:.1e}, " + ", ".join(f"{k} {v:.1e}" for k, v in gaps.items()))
    assert error < TOLERANCE and within(gaps)


@pytest.mark.parametrize(("ranks", "name"), [(2, "lora"), (2, "shardedlora"), (4, "lora")])
def test_lora_gradients_do_not_depend_on_ranks(result: Callable[[int, str], Result], ranks: int, name: str) -> None:
    (found, grads), (expected, reference) = result(ranks, name), result(1, "lora")
    assert all("lora_" in name for name in grads)
    error = gap(*({k: v for k, v in g.items() if "lora_B" in k} for g in (grads, reference)))
    print(f"{ranks} ranks, LoRA: {error:.2e}")
    assert error < TOLERANCE and within(ledger_gaps(found, expected))


@pytest.mark.parametrize(
    ("ranks", "name", "alone"),
    [
        (2, "cut", "base"),  # goes on from a checkpoint with each rank by itself
        (2, "cutplain", "base"),
        (2, "cutspared", "base"),
        (2, "cutlora", "lora"),
        (2, "cutolmo", "olmo"),
        (2, "cutsinks", "sinks"),
        (2, "cutbalanced", "balanced"),
        (4, "cut", "base"),
        (4, "cutlora", "lora"),
        (4, "cutwide", "wide"),  # goes on with half as many ranks to a pack
        (4, "cutwideplain", "wide"),
    ],
)
def test_ranks_that_share_packs_compute_what_one_rank_does(
    result: Callable[[int, str], Result], ranks: int, name: str, alone: str
) -> None:
    """Gradients, three steps, and what policy and reference say afterwards; every record is counted once."""
    (found, grads), (expected, reference) = result(ranks, name), result(1, alone)
    if name.endswith("lora"):
        grads, reference = ({k: v for k, v in g.items() if "lora_B" in k} for g in (grads, reference))
    error, gaps = gap(grads, reference), ledger_gaps(found, expected)
    print(f"{ranks} ranks, {name}: gradient {error:.1e}, " + ", ".join(f"{k} {v:.1e}" for k, v in gaps.items()))
    assert error < TOLERANCE and gaps["step 1"] < TOLERANCE and gaps["later"] < 10 * TOLERANCE
    for ours, theirs in zip(found["entries"], expected["entries"], strict=True):
        assert ours["records"] == theirs["records"]
        assert 0 <= ours["tokens"] - theirs["tokens"] < ours["packs"]  # dummies
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * TOLERANCE)
        assert ("router_aux_loss" in ours) == ("router_aux_loss" in theirs)
        if "router_aux_loss" in theirs:
            assert ours["router_aux_loss"] == pytest.approx(theirs["router_aux_loss"], rel=10 * TOLERANCE)
    for ours, theirs in zip(found["scores"], expected["scores"], strict=True):
        assert ours == [pytest.approx(values, rel=10 * TOLERANCE) for values in theirs]


@pytest.mark.parametrize("name", [*FAMILIES, SEEING, "moelora", "deltalora"])
def test_other_architectures_do_not_depend_on_ranks(result: Callable[[int, str], Result], name: str) -> None:
    """ZeRO-3 on two ranks against one rank that holds all; what they export loads and answers."""
    (found, grads), (expected, reference) = result(2, name), result(1, name)
    if name.endswith("lora"):
        assert not any("mlp.gate." in k for k in grads)  # routers stay as they are
        grads, reference = ({k: v for k, v in g.items() if "lora_B" in k} for g in (grads, reference))
    error, gaps = gap(grads, reference), ledger_gaps(found, expected)
    print(f"{name}: gradient {error:.1e}, " + ", ".join(f"{k} {v:.1e}" for k, v in gaps.items()))
    assert error < TOLERANCE and gaps["step 1"] < TOLERANCE and gaps["later"] < 100 * TOLERANCE


@pytest.mark.parametrize("name", [*FAMILIES, SEEING, "moelora", "deltalora"])
def test_other_architectures_are_exported(folder: Path, result: Callable[[int, str], Result], name: str) -> None:
    result(2, name)
    export = folder / "2" / f"{name}-export"
    model: Any = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder / name.removesuffix("lora"), dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(model(ids).logits, base(ids).logits)
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 6)
    towers = [n for n, _ in base.named_parameters() if "vision" in n or "projector" in n]
    assert bool(towers) == (name == SEEING) and all(
        torch.equal(model.state_dict()[n], base.state_dict()[n]) for n in towers
    )


def oracle(folder: Path, primary: str) -> tuple[float, dict[str, torch.Tensor], list[torch.Tensor]]:
    """(objective, gradients, per-pair losses) of step 1, from pairs."""
    config = load_config(str(folder / "recipe.yaml"))
    prepared = prepare(config)
    data = prepared.train
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")

    def logp(prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([prompt + response])
        table = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return table.gather(1, torch.tensor(response)[:, None]).sum()

    trees = prepared.train_batch(config, 0)
    pairs = [(t, d, i, j) for t in trees for d, i, j in t.edges]
    counts = {d: sum(1 for _, e, _, _ in pairs if e == d) for _, d, _, _ in pairs}
    losses, total = [], torch.zeros(())
    for t, d, i, j in pairs:
        better, worse = logp(t.prompt, t.responses[i]), logp(t.prompt, t.responses[j])
        margin = 0.5 * ((better - better.detach()) - (worse - worse.detach()))
        loss = -0.9 * torch.nn.functional.logsigmoid(margin) - 0.1 * torch.nn.functional.logsigmoid(-margin)
        losses.append(loss.detach())
        total = total + loss * (1 / len(pairs) if primary == "pooled" else 1 / len(data.dimensions) / counts[d])
    tokens = sum(len(t.responses[t.golden]) for t in trees)
    for t in trees:
        total = total - 0.7 / tokens * logp(t.prompt, t.responses[t.golden])
    total = total / 1.7  # the anchor's weight stands beside the primary weights' 1
    total.backward()
    return total.item(), {f"model.{k}": v.grad for k, v in model.named_parameters()}, losses


@pytest.mark.parametrize(("name", "primary"), [("base", "uniform"), ("pooled", "pooled")])
def test_tree_step_equals_separate_pairs(
    folder: Path, result: Callable[[int, str], Result], name: str, primary: str
) -> None:
    """Objective and every gradient of step 1 against pairwise DPO; with `pooled` and no tolerance it IS plain DPO."""
    objective, expected, losses = oracle(folder, primary)
    found, grads = result(1, name)
    assert all(math.isclose(float(x), math.log(2), rel_tol=1e-6) for x in losses)
    assert found["entries"][0]["objective"] == pytest.approx(objective, rel=1e-6)
    error = gap(grads, expected)
    print(f"tree against pairs, {primary}: gradient {error:.2e}")
    assert error < TOLERANCE


def test_weights_change_and_second_loss_moves(result: Callable[[int, str], Result]) -> None:
    first, second, _ = result(1, "base")[0]["entries"]
    assert first["dimensions"]["A"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(second["dimensions"]["A"]["loss"] - math.log(2)) > 1e-3
    assert second["step"] == 2 and second["records"] == 14


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_constraints_add_no_collective(result: Callable[[int, str], Result], ranks: int) -> None:
    """One fp64 vector per step carries all statistics and the hash check; a run without multipliers has as many."""
    lagrangian, plain = (result(ranks, name)[0]["all_reduces"] for name in ("base", "pooled"))
    assert sum(1 for dtype, size in lagrangian if dtype == "torch.float64" and size > 1) == 1
    assert lagrangian == plain
    print(f"{ranks} ranks: all-reduces of a step {lagrangian}")


def test_forward_tokens_are_the_tree_formula(folder: Path, result: Callable[[int, str], Result]) -> None:
    """P + sum(R - 1) per record: below P + sum(R), so well within 1.02 x of it; dummies included."""
    config = load_config(str(folder / "recipe.yaml"))
    prepared = prepare(config)
    for ranks, name in ((1, "base"), (2, "base"), (4, "small")):
        for step, entry in enumerate(result(ranks, name)[0]["entries"]):
            trees = prepared.train_batch(config, step)
            formula = sum(len(t.prompt) + sum(map(len, t.responses)) for t in trees)
            print(f"{ranks} ranks: {entry['tokens']} tokens, tree formula {formula}: {entry['tokens'] / formula:.4f}")
            assert entry["tokens"] <= 1.02 * formula
