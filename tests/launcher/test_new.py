"""`dpeer new`: what it writes loads, holds what was asked for, and promises no tolerance that the file cannot prove."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dpeer.config import Certificate, Config
from dpeer.config_io import load_config
from dpeer.data.facts import ModelFacts
from dpeer.data.load import load
from dpeer.errors import ConfigError
from dpeer.launcher import new as made
from dpeer.launcher.cli import app
from dpeer.launcher.new import Facts, Mode, Wish, choose_mode, compose, heldout_share, lines, provable_tolerance
from dpeer.objective.bounds import provable
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model
from dpeer.training.prepare import split_records

FACTS = Facts(
    records=2000,
    prompts={"A": 900, "T": 60, "rare": 5},
    heldout=None,
    longest=700,
    tree=1500,
    typical=(200, 300, 1),
    positions=40960,
    parameters=600_000_000,
)
WISH = Wish("mine.jsonl", "model", "mine")
CPU = Mode(lora=False, recompute=False, gpus=0, why="no GPU here")


def recipe(facts: Facts = FACTS, wish: Wish = WISH, mode: Mode = CPU) -> tuple[Config, str]:
    text = "\n".join(lines(*compose(wish, facts, mode)))
    return Config.model_validate(yaml.safe_load(text)), text


def test_tolerances_are_those_that_the_held_out_prompts_can_prove() -> None:
    config, text = recipe()
    tolerance = config.objective.constraint.tolerance
    assert isinstance(tolerance, dict) and config.data.heldout == "20%"
    assert tolerance == {"A": 0.5, "T": math.inf, "rare": math.inf}
    assert "A: 0.5  # 180 held-out prompts of 900" in text and "1 held-out prompts of 5: too few" in text
    certificate = Certificate()
    for prompts in (0, 5, 30, 40, 60, 1000):
        found = provable_tolerance(prompts, 0.3)
        best = provable(prompts, certificate.bound, 1 - certificate.confidence)
        assert best > made.UNTRAINED - 2 * made.STEP if math.isinf(found) else best < found < made.UNTRAINED


@given(st.dictionaries(st.sampled_from("ABCD"), st.integers(0, 3000), min_size=1), st.floats(0.1, 0.69))
def test_a_larger_share_is_taken_only_where_a_smaller_one_proves_less(
    prompts: Mapping[str, int], tolerance: float
) -> None:
    share, needed = heldout_share(prompts, tolerance), made._likely(tolerance)

    def proven(part: float) -> set[str]:
        return {d for d, n in prompts.items() if round(part * n) >= needed}

    assert proven(share) == proven(made.SHARES[-1])
    assert all(proven(smaller) < proven(share) for smaller in made.SHARES if smaller < share)


def test_a_test_split_is_the_held_out_data() -> None:
    config, text = recipe(replace(FACTS, heldout={"A": 300, "T": 200, "rare": 0}))
    assert config.data.heldout is None
    tolerance = config.objective.constraint.tolerance
    assert tolerance == {"A": 0.5, "T": 0.5, "rare": math.inf} and "300 held-out prompts" in text


def test_lengths_and_steps_follow_from_the_records() -> None:
    config, _ = recipe()
    assert config.data.max_tokens == 704 and config.training.tokens_per_pack == 2048
    assert config.training.total_steps(1400) >= made.LEAST_STEPS
    small, _ = recipe(replace(FACTS, records=100, positions=512, tree=9000))
    assert small.data.max_tokens == 512 and small.training.tokens_per_pack == 9000
    assert small.training.records_per_step == 4


def test_names_that_are_no_plain_yaml_survive() -> None:
    odd = {"1e3": 900, "no: yes # really": 900, "été": 900, "null": 900}
    config, _ = recipe(replace(FACTS, prompts=odd), replace(WISH, data="a # b.jsonl", name="1.5"))
    tolerance = config.objective.constraint.tolerance
    assert isinstance(tolerance, dict) and set(tolerance) == set(odd) and config.data.train == "a # b.jsonl"
    assert config.name == "1.5"


WAYS = ((False, False), (False, True), (True, False), (True, True))
"""Adapters, recomputed activations: in the order in which they are tried."""


@pytest.mark.parametrize(
    ("asked", "fitting", "chosen"),
    [
        (None, WAYS, (False, False)),
        (None, WAYS[1:], (False, True)),
        (None, WAYS[2:], (True, False)),
        (None, WAYS[3:], (True, True)),
        (True, WAYS, (True, False)),
        (False, WAYS[1:], (False, True)),
        (False, WAYS[2:], None),
        (None, (), None),
    ],
)
def test_the_first_way_that_fits_and_is_wanted_is_taken(
    asked: bool | None, fitting: tuple[Any, ...], chosen: tuple[bool, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_fits", lambda wish, facts, lora, recompute, memory, gpus: (lora, recompute) in fitting)
    wish = replace(WISH, lora=asked, gpu="rtx4090", gpus=2)
    if chosen is None:
        advice = "--lora" if asked is False else "dpeer plan"
        with pytest.raises(ConfigError, match=rf"does not fit 2 x rtx4090.*{advice}"):
            choose_mode(wish, FACTS)
        return
    mode = choose_mode(wish, FACTS)
    config, _ = recipe(wish=wish, mode=mode)
    assert (config.model.lora is not None, config.model.gradient_checkpointing) == chosen
    assert (config.model.dtype, config.cluster.policy_workers) == ("bf16", 2)
    assert config.training.optimizer.lr == (2e-5 if chosen[0] else 1e-6)


def test_adapters_of_4b_fit_one_card_of_24_gb_and_all_weights_do_not() -> None:
    mode = choose_mode(replace(WISH, model="Qwen/Qwen3-4B", gpu="rtx4090"), FACTS)
    assert mode.lora and "all weights do not fit 1 x rtx4090" in mode.why


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    toyworld.write_world(folder / "world", 0, n_train=200, n_heldout=5, n_prompts=1, n_pretrain=1)
    tiny_model(folder / "model", vocab=300)
    return folder


def run(place: Path, *arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["new", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_the_recipe_is_written_once_and_its_splits_have_every_dimension(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = place / "world" / "train.jsonl", place / "model"
    given = ("--data", data, "--model", model, "--gpus", 0, "--set", "training.epochs=1", "--set", "seed=3")
    code, output = run(place, *given)
    assert code == 0 and "train.yaml is written" in output, output
    config = load_config(Path("train.yaml"))
    assert (config.name, config.seed, config.training.epochs, config.model.dtype) == ("train", 3, 1, "fp32")
    splits = split_records(config)
    assert set(splits) == {"train", "dual", "heldout"}
    assert all({d for r in part.records for d in r.mask} == set(load(str(data)).dimensions) for part in splits.values())
    before = Path("train.yaml").read_bytes()
    code, output = run(place, *given)
    assert code == 1 and "is not overwritten" in output and Path("train.yaml").read_bytes() == before
    code, output = run(place, *given, "--name", "other", "--set", "training.epoch=1")
    assert code == 1 and "did you mean training.epochs?" in output and not Path("other.yaml").exists()


def test_without_a_terminal_what_is_missing_is_named(place: Path) -> None:
    code, output = run(place, "--data", place / "world" / "train.jsonl")
    assert code == 1 and "--model is not given, and there is no terminal to ask on" in output


def test_on_a_terminal_it_asks_for_what_is_missing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpeer.launcher.commands.new._terminal", lambda: True)
    answers = f"{place / 'world' / 'train.jsonl'}\n{place / 'model'}\nmine\n"
    result = CliRunner().invoke(app, ["new", "--gpus", "0"], input=answers)
    assert result.exit_code == 0 and "Name of the run [train]" in result.output, result.output
    assert load_config(Path("mine.yaml")).model.path == str(place / "model")


def test_data_that_training_would_refuse_is_refused(place: Path, tmp_path: Path) -> None:
    row = {"prompt": "Hello <|im_end|>?", "mask": ["A"], "golden": "Yes.", "reject_A": "No."}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    code, output = run(place, "--data", tmp_path / "bad.jsonl", "--model", place / "model", "-o", tmp_path / "x.yaml")
    assert code == 1 and "<|im_end|>" in output and not (tmp_path / "x.yaml").exists()


def test_data_are_looked_at_as_the_settings_say(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    recipe = tmp_path / "x.yaml"
    given = ("--data", place / "world" / "train.jsonl", "--model", place / "model", "--gpus", 0, "-o", recipe)
    template = ("--set", f"model.chat_template={tmp_path / 'chat.jinja'}")
    code, output = run(place, *given, *template)
    assert code == 1 and "data.end_of_turn" in output and "--set KEY=VALUE" in output and not recipe.exists()
    code, output = run(place, *given, *template, "--set", "data.end_of_turn=<|im_start|>")
    assert code == 0 and load_config(recipe).data.end_of_turn == "<|im_start|>", output
    code, output = run(place, *given[:-1], tmp_path / "y.yaml", "--set", "model.template_kwargs={clam: true}")
    assert code == 1 and "clam" in output and not (tmp_path / "y.yaml").exists()
    seen = ModelFacts("model", media=frozenset(range(300)))
    monkeypatch.setattr("dpeer.model.shape.model_facts", lambda *_: seen)
    code, output = run(place, *given[:-1], tmp_path / "y.yaml")
    assert code == 1 and "image" in output and not (tmp_path / "y.yaml").exists()
