"""`training.sequence_parallel`: what `auto` becomes, and what is refused before anything starts."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dpeer.config import Config, Lora
from dpeer.config_io import load_config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError
from dpeer.launcher.teams import Case, _together, fewest, share, with_teams
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.choice import check_settings
from dpeer.training.prepare import Prepared
from tests.launcher.conftest import Lab, Launched
from tests.launcher.test_torchrun import drivers

TREE = TokenTree(0, (5,) * 3000, ((6,) * 400, (7,) * 600), (), 0, ())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("teams") / "model"
    tiny_model(path, "llama", 1, vocab=300, num_attention_heads=4, num_key_value_heads=2)
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": str(path), "dtype": "fp32"},
            "data": {"train": "d.jsonl"},
            "training": {"steps": 1, "tokens_per_pack": 100, "sequence_parallel": "auto"},
            "cluster": {"policy_workers": 4, "reference_workers": 4},
        }
    )


def with_size(config: Config, size: int, **cluster: Any) -> Config:
    training = config.training.model_copy(update={"sequence_parallel": size})
    return config.model_copy(update={"training": training, "cluster": config.cluster.model_copy(update=cluster)})


def test_auto_takes_the_fewest_ranks_that_hold_the_longest_record(recipe: Config) -> None:
    case = Case.of(recipe, 4, plain=True, reference=False)
    assert case.possible() == [1, 2, 4] and replace(case, ranks=6).possible() == [1, 2]
    (one, held), (two, _), (four, _) = (case.needed(TREE, 3_998, n) for n in (1, 2, 4))
    assert one > two > four and held == 0
    for memory, size in ((1.01 * one, 1), ((one + two) / 2, 2), ((two + four) / 2, 4)):
        assert fewest(case, case.possible(), TREE, memory, 0) == size
    with pytest.raises(ConfigError, match=r"auto: a pack of 3,998 tokens does not fit; shared by 4 ranks.*max_tokens"):
        fewest(case, case.possible(), TREE, four / 2, 0)


def test_auto_takes_as_many_as_their_hosts_can_hold_activations_of(recipe: Config) -> None:
    """A device that has room for all of it does not help; a reference keeps nothing there."""
    model = recipe.model.model_copy(update={"gradient_checkpointing": True, "offload_activations": True})
    moved = recipe.model_copy(update={"model": model})
    case = Case.of(moved, 4, plain=True, reference=False)
    layers, width, size = case.shape.num_hidden_layers, case.shape.hidden_size, 4
    whole = 3_998 * layers * width * size
    for room, ranks in ((whole, 1), (whole - 1, 2), (whole / 2, 2), (whole / 2 - 1, 4), (whole / 4, 4)):
        assert fewest(case, case.possible(), TREE, 1e12, room) == ranks
        assert fewest(replace(case, reference=True), case.possible(), TREE, 1e12, room) == 1
    with pytest.raises(ConfigError, match=r"shared by 4 ranks it needs .*the host's memory for each.*as its share"):
        fewest(case, case.possible(), TREE, 1e12, whole / 4 - 1)
    assert share(["a", "a", "b", "b", "b"], [8, 8, 9, 9, 9]) == 3


def test_ranks_make_auto_a_number(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collective, here of one rank; the recipe says all else as before."""
    monkeypatch.setattr("dpeer.launcher.teams.device_memory", lambda world: 1e12)
    prepared = Prepared(TokenizedSet(("A",), (TREE,), 0, 0), None, None, {})
    here = world.alone(60)
    try:
        found = [with_teams(recipe, here, role, prepared) for role in ("policy", "reference")]
        monkeypatch.setattr("dpeer.launcher.teams.device_memory", lambda world: 1e6)
        with pytest.raises(ConfigError, match="auto: a pack of 3,998 tokens does not fit; shared by 1 ranks"):
            with_teams(recipe, here, "policy", prepared)
        monkeypatch.setattr("dpeer.launcher.teams.device_memory", lambda world: 1e12)
        monkeypatch.setattr("dpeer.launcher.teams.psutil.virtual_memory", lambda: SimpleNamespace(total=1000))
        moved = {"gradient_checkpointing": True, "offload_activations": True}
        spared = recipe.model_copy(update={"model": recipe.model.model_copy(update=moved)})
        with pytest.raises(ConfigError, match="of the host's memory for each"):
            with_teams(spared, here, "policy", prepared)
    finally:
        world.stop()
    assert found == [with_size(recipe, 1)] * 2 and with_teams(found[0], here, "policy") is found[0]


def test_groups_lie_on_one_host_each() -> None:
    hosts = ["a", "a", "b", "b", "b", "b"]
    assert [n for n in range(1, 7) if _together(hosts, n)] == [1, 2]
    assert _together(["a"] * 4, 4) and not _together(["a"] * 4, 3)


def test_what_cannot_work_is_refused_before_anything_starts(recipe: Config) -> None:
    check_settings(recipe)
    check_settings(with_size(recipe, 2))
    with pytest.raises(ConfigError, match=r"4 ranks \(cluster.policy_workers\) cannot work in groups of 3.*1, 2, 4"):
        check_settings(with_size(recipe, 3))
    few = with_size(recipe, 2, reference_workers=1)
    check_settings(few)  # the policy fills the cache
    beside = with_size(few, 2, reference="workers")
    adapter = few.model.model_copy(update={"lora": Lora(path="adapter")})
    for own in (beside, few.model_copy(update={"model": adapter})):
        with pytest.raises(ConfigError, match=r"1 ranks \(cluster.reference_workers\) cannot work in groups of 2"):
            check_settings(own)
    with pytest.raises(ConfigError, match=r"4 attention heads.*Set it to 1, 2 or 4"):
        check_settings(with_size(recipe, 8), ranks=8)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_whole_runs_with_shared_packs_are_those_of_ranks_by_themselves(lab: Lab, colocated: Launched) -> None:
    """Cache, steps, a stop, a resumption with `auto`, certificate and export under torchrun; the same under Ray beside
    reference workers who share packs too."""
    shared = "training.sequence_parallel=2"
    run = lab.torchrun(2, "team", shared, "cluster.reference=cache")
    run.until(lambda: lab.steps("team") > 5, 400)
    drivers(lab)[0].send_signal(signal.SIGUSR1)
    assert run.wait(200) == 1 and "saved step" in run.output and "; 2 ranks to a pack" in run.output, run.output
    auto = "training.sequence_parallel=auto", f"training.tokens_per_pack={needs_two(lab)}"
    again = lab.torchrun(2, "team", *auto, "cluster.reference=cache")
    assert again.wait(600) == 0 and "; 2 ranks to a pack" in again.output, again.output
    ray = lab.train("team-ray", shared, "cluster.reference_workers=2")
    assert ray.wait(600) == 0 and "; 2 ranks to a pack" in ray.output, ray.output

    alone = lab.ledger("colocated")
    verdicts = json.loads((lab.run("colocated") / "certificate.json").read_text())["constraints"]
    for name in ("team", "team-ray"):
        files = lab.run(name)
        assert json.loads((files / "manifest.json").read_text())["sequence_parallel"] == 2
        assert all((files / f).is_file() for f in ("export/model.safetensors", "report.html")), name
        rows = lab.ledger(name)
        assert len(rows) == len(alone)
        for mine, theirs in zip(rows, alone, strict=True):
            for key in ("objective", "golden_logp", "rejected_logp", "grad_norm", "tokens", "dual_tokens"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-3), (name, mine["step"], key)
        found = json.loads((files / "certificate.json").read_text())["constraints"]
        assert [v["verdict"] for v in found] == [v["verdict"] for v in verdicts]


def needs_two(lab: Lab) -> int:
    """Tokens of a pack that only two ranks of this machine hold together, by the estimate."""
    config = load_config(lab.folder / "recipe.yaml", ["training.sequence_parallel=auto"])
    case, memory = Case.of(config, 2, plain=False, reference=False), psutil.virtual_memory().total / 2
    few, many = (case.needed(TREE, tokens, 1)[0] for tokens in (10**6, 2 * 10**6))
    return int(10**6 + (1.4 * memory - few) / (many - few) * 10**6)
