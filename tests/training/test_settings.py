"""What engines take from a recipe: which one, DeepSpeed's settings, the learning rate, where optimizer state lives."""

from __future__ import annotations

import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpeer.config import Config, Lora, Model, Optimizer
from dpeer.errors import ConfigError
from dpeer.launcher.plan.inputs import model_config
from dpeer.launcher.train import run
from dpeer.model.families import FAMILIES
from dpeer.model.lm import LayerShape, layer_shape
from dpeer.training.choice import check_settings, choose
from dpeer.training.engine import learning_rate, model_settings, sized
from dpeer.training.zero_file import DS_CONFIGS, deepspeed_config
from tests.training.conftest import recipe


def with_lora(config: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": Lora()})})


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
                lora = deepspeed_config(name, with_lora(config), trained=True)
                assert "communication_data_type" not in settings and lora["communication_data_type"] == "fp32"


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


WINDOW = "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size"


@pytest.mark.parametrize("path", ["meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-70B-Instruct"])
def test_the_window_of_gathered_weights_follows_from_the_layer(path: str) -> None:
    """70B: three layers and the next one ahead; 8B: a layer beside the head, which is larger than two."""
    shape, _ = model_config(Model(path=path), None)
    h, inner, kv = shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads * 128
    layer, head = 2 * h * h + 2 * h * kv + 3 * h * inner + 2 * h, h * shape.vocab_size
    window = {8192: 3 * layer, 4096: layer + head}[h]
    counted = layer_shape(shape)
    assert counted == LayerShape(("transformers.models.llama.modeling_llama.LlamaDecoderLayer",), layer, head)
    for name in ("zero3", "zero3_hpz", "reference"):
        given = deepspeed_config(name, recipe(), trained=False)
        for whole, ahead in ((True, layer), (False, layer // 2)):
            zero = sized(given, counted, whole=whole)["zero_optimization"]
            assert [zero[key] for key in WINDOW] == [window, window, ahead]
            assert ("leaf_module" in zero) == whole
            assert zero["stage3_param_persistence_threshold"] == 100_000
        assert given["zero_optimization"][WINDOW[2]] == "auto"


def test_the_window_is_bounded_and_a_users_own_is_kept() -> None:
    def window(**zero: Any) -> list[Any]:
        made = sized({"zero_optimization": zero}, shape, whole=True)["zero_optimization"]
        return [*(made[key] for key in WINDOW), made["leaf_module"]["classes"]]

    shape = LayerShape(("Layer",), 1000, 5000)
    assert window() == [10**8, 10**8, 10**7, ["Layer"]]
    shape = LayerShape(("Layer",), 3 * 10**9, 2 * 10**9)
    assert window() == [5 * 10**9, 5 * 10**9, 10**9, ["Layer"]]  # beyond the bound: a layer beside the head
    own = {WINDOW[1]: 7, "prefetch_bucket_size": 8, "leaf_module": {"classes": []}}
    assert window(**own) == [5 * 10**9, 7, 8, []]


def test_layers_are_whole_where_the_first_ones_input_has_a_gradient() -> None:
    """DeepSpeed takes a whole layer's gradients when its input's is there: too early where there is none."""
    shape, _ = model_config(Model(path="meta-llama/Meta-Llama-3-8B-Instruct"), None)
    for lora, recomputed in product((None, Lora()), (False, True)):
        config = recipe(lora=lora, gradient_checkpointing=recomputed)
        whole = ["leaf_module" in model_settings(config, shape, trained=t)["zero_optimization"] for t in (True, False)]
        assert whole == [lora is None or recomputed, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_take_hidden_states_by_position(family: str) -> None:
    """The hook that takes a whole layer's gradients waits for those of positional arguments alone."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "head_dim": 8}
    shape = AutoConfig.for_model(family, num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = AutoModelForCausalLM.from_config(shape)
    seen: list[int] = []
    for layer in FAMILIES[family].decoder_layers(model):
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].dim()))
    model(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)
    assert seen == [3, 3]


def test_what_the_plain_engine_cannot_do_is_refused_before_anything_starts(tmp_path: Path) -> None:
    def asked(**changes: Any) -> Config:
        tree = recipe("none/such").model_dump()
        adam = tree["training"]["optimizer"] | {"name": changes.pop("optimizer", "adamw")}
        return Config.model_validate(
            tree | {"cluster": tree["cluster"] | changes, "training": tree["training"] | {"optimizer": adam}}
        )

    check_settings(asked(engine="plain"))
    check_settings(asked(engine="auto", deepspeed="zero3_offload", optimizer="cpu_adam"))
    with pytest.raises(ConfigError, match=r"engine = plain keeps .* on the device, but training\.optimizer"):
        check_settings(asked(engine="plain", optimizer="cpu_adam"))
    offload = asked(engine="plain", deepspeed="zero3_offload")
    with pytest.raises(ConfigError, match=r"plain .*but cluster.deepspeed = zero3_offload keeps states in the host"):
        check_settings(offload)
    with pytest.raises(ConfigError, match="zero3_offload keeps states"):
        run(offload.model_copy(update={"output_dir": tmp_path}))  # before Ray is started
    assert not ray.is_initialized() and not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("changes", "ranks", "states", "chosen", "why"),
    [
        ({}, 1, None, "plain", "one rank"),
        ({}, 2, None, "deepspeed", "shared by 2 ranks"),
        ({"model": {"lora": {"rank": 4}}}, 8, 59.0, "plain", "adapters"),
        ({"model": {"lora": {"rank": 4}}}, 8, 61.0, "deepspeed", "61% of a rank's memory"),
        ({"offload": True}, 1, None, "deepspeed", "cpu_adam"),
        ({"engine": "deepspeed"}, 1, None, "deepspeed", "cluster.engine says"),
        ({"engine": "plain"}, 4, None, "plain", "cluster.engine says"),
        ({"model": {"lora": {}, "load_in_4bit": True}}, 8, 99.0, "plain", "4-bit weights are whole on every rank"),
    ],
)
def test_which_engine_auto_takes(
    changes: dict[str, Any], ranks: int, states: float | None, chosen: str, why: str
) -> None:
    offload = {"training": {"steps": 1, "optimizer": {"name": "cpu_adam"}}} if "offload" in changes else {}
    tree = recipe(**changes.get("model", {})).model_dump() | offload
    tree["cluster"] |= {"engine": changes.get("engine", "auto")} | ({"deepspeed": "zero3_offload"} if offload else {})
    config = Config.model_validate(tree)
    found = choose(config, ranks, states, 100.0)
    assert found.name == chosen and why in found.why
    if offload:
        tree["cluster"]["engine"] = "plain"
        with pytest.raises(ConfigError, match=r"set cluster.engine to deepspeed"):
            choose(Config.model_validate(tree), ranks, states, 100.0)
    if found.name == "plain" and config.model.load_in_4bit:
        tree["cluster"]["engine"] = "deepspeed"
        with pytest.raises(ConfigError, match=r"model.load_in_4bit keeps the whole 4-bit model on every rank.*=false"):
            choose(Config.model_validate(tree), ranks, states, 100.0)
