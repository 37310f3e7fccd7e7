"""`dpeer plan` as a whole: every shipped recipe, what is refused, and the arithmetic of tokens and traffic."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dpeer.config_io import load_config
from dpeer.data.packing import forward_tokens
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.estimate.throughput import HOST_LINK, batching, break_even
from dpeer.launcher.cli import app
from dpeer.launcher.plan.inputs import GivenLengths
from dpeer.launcher.plan.planning import Plan, Request, _candidates, make_plan, remedies
from dpeer.launcher.plan.show import as_data, show
from dpeer.launcher.recipe import RECIPES, recipe_names
from dpeer.model.flops import Lengths


def plan(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert "Traceback" not in result.output and "unexpected" not in result.output, result.output
    return result.exit_code, result.output


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_fits_eight_h200(name: str) -> None:
    nodes = "8" if "70b" in name else "1"
    code, output = plan(name, "--nodes", nodes, "--gpu", "h200", "--json")
    made = json.loads(output)
    assert code == 0 and made["fits"]
    memory = made["gpu_memory"]
    assert memory["high"] == pytest.approx(sum(p["high"] for p in memory["parts"]))
    assert made["tokens_per_step"]["tree"] < made["tokens_per_step"]["pairwise"]


@pytest.mark.parametrize("name", ["qwen3_0.6b_lora", "qwen3_4b_lora"])
def test_recipes_for_one_card_of_24_gb_fit_it(name: str) -> None:
    made = make_plan(Request(RECIPES / f"{name}.yaml", (), 1, 1, "rtx4090"))
    assert made.config.cluster.policy_workers == made.ranks == 1 and made.fits_gpu


def test_70b_on_64_h200_shows_its_tables() -> None:
    code, output = plan("llama3_70b", "--nodes", "8", "--gpus", "8", "--gpu", "h200", "--price", "3", "--cells", "15")
    assert code == 0
    for shown in (
        "up to 2.57B parameters gathered, kept if used again within 2.57B, 856M fetched ahead; layers of 856M at once",
        "Adam moments",
        "export: a layer, gathered",
        "break-even",
        "cost at 3",
        "15 runs",
        "HFU 0.35",
        "fits",
    ):
        assert shown in output


AUTO = "training.sequence_parallel=auto"
KEPT = "activations kept for backward"
LONG = GivenLengths(records=64, prompt=120_000, response=400, rejects=4)


def test_long_records_are_shared_by_as_many_gpus_as_they_need() -> None:
    """A record that one GPU cannot hold; `auto` takes the fewest that can, and memory falls with their number."""
    options = ("model.gradient_checkpointing=true",)
    alone = make_plan(Request(RECIPES / "llama3_8b.yaml", options, 1, 8, "h100", lengths=LONG))
    assert not alone.fits_gpu and any("sequence_parallel=auto" in fix.change for fix in remedies(alone))
    shared = make_plan(Request(RECIPES / "llama3_8b.yaml", (*options, AUTO), 1, 8, "h100", lengths=LONG))
    assert shared.fits_gpu and shared.team == 2 and shared.tokens == alone.tokens
    contexts = dict(shared.contexts)
    assert list(contexts) == [1, 2, 4, 8] and contexts[1] < shared.tokens <= contexts[2]
    assert all(contexts[n] == pytest.approx(n * contexts[1], rel=0.1) for n in contexts)
    whole, half = ({p.name: p.high for p in made.memory.parts}[KEPT] for made in (alone, shared))
    assert half == pytest.approx(whole / 2, rel=0.1)
    assert shared.time.exchange > alone.time.exchange == 0 and shared.batch.busiest == alone.batch.busiest
    cached = (*options, "training.sequence_parallel=2", "cluster.reference=cache")
    scored = make_plan(Request(RECIPES / "llama3_8b.yaml", cached, 1, 8, "h100", lengths=LONG)).reference
    assert scored and scored.high > scored.compute + scored.traffic  # its layers wait for one another too
    data = as_data(shared, 1, None, ())
    assert data["sequence_parallel"] == 2 and data["largest_record"]["8"] == contexts[8]
    screen = StringIO()
    show(shared, Console(file=screen, width=140), 1, None)
    assert "in groups of 2 to a pack" in screen.getvalue() and "largest record on 4 GPUs together" in screen.getvalue()


def test_activations_on_the_host_and_tiles_lengthen_records() -> None:
    """Each by itself, both together; the host's memory bounds the first, and copies take time."""
    base, room = ("model.gradient_checkpointing=true", "training.sequence_parallel=2"), 120
    away, tiles = ("model.offload_activations=true",), ("model.mlp_tile=2048",)

    def made(*changes: str, node_memory: float | None = None) -> Plan:
        return make_plan(
            Request(RECIPES / "llama3_8b.yaml", (*base, *changes), 1, 4, "h100", node_memory=node_memory, lengths=LONG)
        )

    plain, moved, tiled, both = made(), made(*away), made(*tiles), made(*away, *tiles)
    assert plain.budget < tiled.budget < moved.budget < both.budget
    assert moved.time.low - plain.time.low == pytest.approx(
        2 * 32 * 2 * 4096 * moved.batch.busiest / HOST_LINK, rel=1e-6
    )
    assert tiled.time == plain.time and KEPT not in {p.name for p in moved.memory.parts}
    (held,) = (p for p in moved.host.each_node if "activations" in p.name)
    assert held.low == 2 * 32 * 2 * 4096 * moved.tokens  # two pairs of ranks with a pack each
    bounded = made(*away, *tiles, node_memory=room)
    beside = bounded.host.high - held.low
    by_hand = (room * 2**30 - beside) / (2 * 32 * 2 * 4096)
    assert by_hand - 256 <= bounded.budget <= by_hand < both.budget
    screen = StringIO()
    show(both, Console(file=screen, width=160), 1, None)
    for shown in ("MLPs in tiles of 2048 tokens", "activations in the host's memory", "25 GB/s between", "pinned"):
        assert shown in screen.getvalue()
    tried = _candidates(plain)
    assert away in tried and ("model.mlp_tile=4096",) in tried and ("model.mlp_tile=4096", *away) in tried
    assert not any("model.mlp_tile" in change for changes in _candidates(both) for change in changes)


RECOMPUTED = "model.gradient_checkpointing=true"
AWAY = "model.offload_activations=true"


def on_one_node(*changes: str, gpu: float | None = None, node: float | None = None) -> Plan:
    """Of long records; gpu, node: GiB."""
    lengths = replace(LONG, prompt=60_000)
    changes = (RECOMPUTED, *changes)
    return make_plan(
        Request(RECIPES / "llama3_8b.yaml", changes, 1, 8, "h100", gpu_memory=gpu, node_memory=node, lengths=lengths)
    )


def test_auto_shares_what_a_node_does_not_hold_eight_times() -> None:
    alone, pairs = on_one_node(AWAY, AUTO), on_one_node(AWAY, "training.sequence_parallel=2")
    assert alone.team == 1 and alone.fits_gpu
    most, fewer = (plan.host.high / 2**30 for plan in (alone, pairs))
    assert on_one_node(AWAY, AUTO, node=most).team == 1
    bounded = on_one_node(AWAY, AUTO, node=(most + fewer) / 2)
    assert bounded.team == 2 and bounded.fits_gpu and bounded.fits_host
    assert on_one_node(AUTO, node=(most + fewer) / 2).team == on_one_node(AUTO).team


def test_what_would_fit_fits_the_host_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a change, and of more nodes."""
    moved, kept = on_one_node(AWAY), on_one_node()
    gpu, needed = (moved.memory.high + kept.memory.high) / 2**31, moved.host.high / 2**30
    monkeypatch.setattr("dpeer.launcher.plan.planning._candidates", lambda plan: [(AWAY,)])
    for room, changes in ((1.01 * needed, {f"--set {AWAY}", "--nodes 2"}), (0.9 * needed, {"--nodes 2"}), (10, set())):
        plan = on_one_node(gpu=gpu, node=room)
        assert not plan.fits_gpu and {fix.change for fix in remedies(plan)} == changes


@pytest.mark.parametrize(
    ("size", "says"),
    [(3, r"8 ranks \(the GPUs of the policy\) cannot work in groups of 3.*may be 1, 2, 4, 8"), (64, "cannot work")],
)
def test_groups_that_do_not_come_out_even_are_refused(size: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan(Request(RECIPES / "llama3_8b.yaml", (f"training.sequence_parallel={size}",), 1, 8, "h100"))
    odd = ("training.sequence_parallel=2", "cluster.reference=workers", "cluster.reference_workers=3")
    with pytest.raises(ConfigError, match=r"3 ranks \(cluster.reference_workers\) cannot work in groups of 2"):
        make_plan(Request(RECIPES / "llama3_8b.yaml", odd, 1, 9, "h100"))


def test_what_does_not_fit_ends_red_with_what_would() -> None:
    code, output = plan("llama3_70b", "--nodes", "1", "--gpus", "8", "--gpu", "h100")
    assert code == 1
    assert "does not fit" in output and "--nodes 4" in output and "model.lora.rank=16" in output
    code, output = plan("llama3_8b", "--gpu", "h200", "--node-memory", "20")
    assert code == 1 and "--node-memory" in output


def test_a_reference_group_must_fit_too() -> None:
    few = ["--set", "cluster.reference=workers", "--set", "cluster.reference_workers=1"]
    code, output = plan("llama3_70b", "--nodes", "8", "--gpus", "8", "--gpu", "h200", *few)
    assert code == 1 and "the reference needs up to" in output and "on each of its 1 GPUs" in output
    few[-1] = "cluster.reference_workers=8"
    code, output = plan("llama3_70b", "--nodes", "8", "--gpus", "8", "--gpu", "h200", *few)
    assert code == 0 and "8 of them; forward only" in output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["llama3_8b", "--gpu", "h300"], 1, "known: h200, h100"),
        (["llama3_8b", "--nodes", "0"], 2, "--nodes"),
        (["llama3_8b", "--set", "model.path=none/such"], 1, "--model-config"),
        (["llama3_8b", "--model-config", "gone.json"], 1, "not a readable model config"),
        (["llama3_8b", "--set", "data.train=gone.jsonl"], 1, "--prompt-tokens"),
        (["llama3_8b", "--set", "cluster.reference=workers", "--set", "cluster.reference_workers=8"], 1, "leaves none"),
    ],
)
def test_wrong_inputs_are_refused(arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found, output = plan(*arguments)
    assert found == code and says in output
    assert len(output.splitlines()) < 12


def test_sweep_shares_one_reference() -> None:
    made = make_plan(Request(RECIPES / "llama3_8b.yaml", (), 1, 8, "h100"))
    run, reference = (8 * x[0] for x in (made.run_hours, made.reference_hours))
    assert reference > 0
    assert made.gpu_hours(1)[0] == pytest.approx(run + reference)
    assert made.gpu_hours(10)[0] == pytest.approx(10 * run + reference)


def test_towers_are_shown_as_frozen(tmp_path: Path) -> None:
    """Gemma 3 4B, counted by hand."""
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    }  # fmt: skip
    eyes = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": eyes})
    )
    layer = 2560 * 256 * (8 + 4 + 4 + 8) + 3 * 2560 * 10240 + 4 * 2560 + 2 * 256
    seen = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    towers = 27 * seen + 3 * 14 * 14 * 1152 + 1152 + 64 * 64 * 1152 + 2 * 1152 + 1152 * 2560 + 1152
    made = make_plan(Request(RECIPES / "llama3_8b.yaml", (), 1, 8, "h200", model_config=tmp_path / "config.json"))
    assert made.weights.total == made.weights.trained == 34 * layer + 2560 + 262208 * 2560 and made.towers == towers
    assert as_data(made, 1, None, ())["parameters"]["towers"] == towers
    show(made, console := Console(file=StringIO(), width=200), 1, None)
    assert "3.88B parameters, all trained; 420M of towers frozen, not loaded" in console.file.getvalue()  # type: ignore


def test_traffic_and_break_even_by_hand() -> None:
    """ZeRO-3 in bf16 moves 6 bytes a parameter; over 8 nodes 7/8 of it enters a node."""
    made = make_plan(Request(RECIPES / "llama3_70b.yaml", (), 8, 8, "h100"))
    total = made.weights.total
    assert made.traffic.into_gpu == pytest.approx(6 * total * 63 / 64)
    assert made.traffic.into_node == pytest.approx(6 * total * 7 / 8)
    seconds = made.traffic.into_node / (400e9 * 0.8)
    by_hand = seconds * 989e12 * 0.35 / (8 * total)  # 8 FLOPs a parameter and token with recomputation
    assert break_even(made.time, made.batch) == pytest.approx(by_hand, rel=0.1)


def test_tokens_by_hand() -> None:
    """The design's example: P, R, K = 300, 100, 4 are 800 tokens as a tree (less the last ones) and 3200 as pairs."""
    record = Lengths(300, (100,) * 5, tuple((0, j) for j in range(1, 5)))
    assert record.tokens == 800 - 5 and record.pairwise == 3200
    tree = TokenTree(0, (0,) * 300, ((0,) * 100,) * 5, (), 0, ())
    assert record.tokens == forward_tokens(tree)
    config = load_config(RECIPES / "llama3_8b.yaml", ["training.records_per_step=20", "training.tokens_per_pack=1600"])
    batch = batching(config, [record] * 40, 8)
    assert (batch.tokens, batch.pairwise) == (20 * 795, 20 * 3200)
    assert (batch.busiest, batch.micro_steps, batch.largest_pack) == (3 * 795, 2, 1590)


def test_ranks_that_wait_are_told_what_helps() -> None:
    """Eight records of one length on 16 ranks: half of them have none, unless two share each."""
    records = ("training.records_per_step=8", "training.tokens_per_pack=8192")
    lengths = GivenLengths(records=64, prompt=300, response=100, rejects=4)
    found = {}
    for size in (1, 2):
        changes = (*records, f"training.sequence_parallel={size}", "cluster.reference_workers=16")
        found[size] = make_plan(Request(RECIPES / "llama3_8b.yaml", changes, 2, 8, "h100", lengths=lengths))
    assert (found[1].fill, found[2].fill) == (0.5, 1.0)
    show(found[1], console := Console(file=StringIO(), width=250), 1, None)
    told = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert (
        "of a step 50% the rest waits for the busiest rank: more records a step, or training.sequence_parallel" in told
    )
    assert as_data(found[1], 1, None, ())["fill"] == 0.5


def test_known_shapes_are_those_of_the_models() -> None:
    for name, parameters in (
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("qwen3_8b_lora", 8_190_735_360),
        ("qwen3_4b_lora", 4_022_468_096),
        ("qwen3_0.6b_lora", 596_049_920),
    ):
        made = make_plan(Request(RECIPES / f"{name}.yaml", ("model.lora=null",), 8, 8, "h200"))
        assert made.weights.total == parameters
