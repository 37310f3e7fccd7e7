"""`training.sequence_parallel`: what `auto` becomes, and what is refused before anything starts."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError
from dpeer.launcher.teams import Case, _together, fewest, with_teams
from dpeer.toyworld.model import tiny_model
from dpeer.training import preflight, world
from dpeer.training.prepare import Prepared

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


def with_size(config: Config, size: int, **cluster: int) -> Config:
    training = config.training.model_copy(update={"sequence_parallel": size})
    return config.model_copy(update={"training": training, "cluster": config.cluster.model_copy(update=cluster)})


def test_auto_takes_the_fewest_ranks_that_hold_the_longest_record(recipe: Config) -> None:
    case = Case.of(recipe, 4, plain=True, reference=False)
    assert case.possible() == [1, 2, 4] and replace(case, ranks=6).possible() == [1, 2]
    one, two, four = (case.needed(TREE, 3_998, n) for n in (1, 2, 4))
    assert one > two > four
    for memory, size in ((1.01 * one, 1), ((one + two) / 2, 2), ((two + four) / 2, 4)):
        assert fewest(case, case.possible(), TREE, memory) == size
    with pytest.raises(ConfigError, match=r"auto: a pack of 3,998 tokens does not fit; shared by 4 ranks.*max_tokens"):
        fewest(case, case.possible(), TREE, four / 2)


def test_ranks_make_auto_a_number(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collective, here of one rank; the recipe says all else as before."""
    monkeypatch.setattr("dpeer.launcher.teams.device_memory", lambda world: 1e12)
    prepared = Prepared(TokenizedSet(("A",), (TREE,), 0, 0), None, None, {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = world.start(0, 1, "127.0.0.1", port, 60, gpu=False)
    try:
        found = [with_teams(recipe, here, role, prepared) for role in ("policy", "reference")]
        monkeypatch.setattr("dpeer.launcher.teams.device_memory", lambda world: 1e6)
        with pytest.raises(ConfigError, match="auto: a pack of 3,998 tokens does not fit; shared by 1 ranks"):
            with_teams(recipe, here, "policy", prepared)
    finally:
        world.stop()
    assert found == [with_size(recipe, 1)] * 2 and with_teams(found[0], here, "policy") is found[0]


def test_groups_lie_on_one_host_each() -> None:
    hosts = ["a", "a", "b", "b", "b", "b"]
    assert [n for n in range(1, 7) if _together(hosts, n)] == [1, 2]
    assert _together(["a"] * 4, 4) and not _together(["a"] * 4, 3)


def test_what_cannot_work_is_refused_before_anything_starts(recipe: Config) -> None:
    preflight.settings(recipe)
    preflight.settings(with_size(recipe, 2))
    with pytest.raises(ConfigError, match=r"4 ranks \(cluster.policy_workers\) cannot work in groups of 3.*1, 2, 4"):
        preflight.settings(with_size(recipe, 3))
    with pytest.raises(ConfigError, match=r"1 ranks \(cluster.reference_workers\) cannot work in groups of 2"):
        preflight.settings(with_size(recipe, 2, reference_workers=1))
    with pytest.raises(ConfigError, match=r"4 attention heads.*Set it to 1, 2 or 4"):
        preflight.settings(with_size(recipe, 8), ranks=8)
