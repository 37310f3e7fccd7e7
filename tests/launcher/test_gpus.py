"""Which recipes use GPUs, on clusters with and without them; Ray's answer is given."""

from __future__ import annotations

from typing import Any

import pytest

from dpeer.config import Config
from dpeer.config_io import resolved
from dpeer.errors import ConfigError
from dpeer.launcher.demo import fitted
from dpeer.launcher.export import placed_here
from dpeer.launcher.gpus import device_line, resolved_gpus
from dpeer.launcher.group import Groups, bundle, wanted
from dpeer.launcher.preflight import judge
from dpeer.launcher.preflight.checklist import Warn
from dpeer.launcher.recipe import training_config
from dpeer.launcher.slurm import Request, idle_gpus
from dpeer.training.run_dir import same_recipe


def shown_by_ray(monkeypatch: pytest.MonkeyPatch, gpus: float) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": gpus} if gpus else {}))


@pytest.mark.parametrize(
    ("resources", "on_gpus", "ranks"),
    [
        ({"GPU": 8.0, "CPU": 64.0}, True, 16),
        ({"CPU": 64.0}, False, 16),
        ({"CPU": 5.0}, False, 2),
        ({"CPU": 1.0}, False, 1),
    ],
)
def test_a_run_of_gpus_is_exported_where_there_are_none(
    resources: dict[str, float], on_gpus: bool, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["cluster.gpus_per_worker=1", "cluster.policy_workers=16", "cluster.cpus_per_worker=2"]
    found = placed_here(training_config("demo", changes), resources)
    assert (found.cluster.on_gpus, found.cluster.policy_workers) == (on_gpus, ranks)
    assert wanted(found) == {"policy": ranks} or on_gpus
    assert ("exported on the CPU" in capsys.readouterr().out) != on_gpus
    trained_here = training_config("demo", ["cluster.gpus_per_worker=0"])
    assert placed_here(trained_here, resources) is trained_here


@pytest.mark.parametrize(("given", "gpus", "chosen"), [("auto", 4, 1), ("auto", 0, 0), ("0", 4, 0), ("1", 0, 1)])
def test_auto_is_one_gpu_per_worker_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, given: str, gpus: int, chosen: int
) -> None:
    shown_by_ray(monkeypatch, gpus)
    config = training_config("demo", [f"cluster.gpus_per_worker={given}"])
    found = resolved_gpus(config)
    assert resolved(found)["cluster"]["gpus_per_worker"] == chosen  # what the manifest records
    assert bundle(found.cluster) == {"CPU": 0.5} | ({"GPU": 1.0} if chosen else {})
    line = device_line(config, found)
    assert ("one GPU per worker" in line) == (given == "auto" and gpus > 0)
    assert ("trains on the CPU" in line) == (given == "auto" and gpus == 0)
    assert same_recipe(resolved(found), config)


def test_groups_and_placement_see_the_resolved_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    shown_by_ray(monkeypatch, 2)
    monkeypatch.setattr("dpeer.launcher.group.check_feasible", lambda *asked: seen.append(asked))
    groups = Groups(training_config("demo"))
    assert seen == [({"policy": 2, "reference": 1}, {"CPU": 0.5, "GPU": 1.0})] and groups.spec.on_gpus


@pytest.mark.parametrize("value", ["0.5", "2", "8", "-1"])
def test_shares_of_gpus_and_idle_ones_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"a rank uses one GPU.*cluster.policy_workers"):
        training_config("demo", [f"cluster.gpus_per_worker={value}"])


def test_manifests_of_earlier_versions_are_read() -> None:
    old = resolved(training_config("demo"))
    old["cluster"]["gpus_per_worker"] = 0.0
    assert Config.model_validate(old).cluster.gpus_per_worker == 0


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        (["cluster.reference=cache"], {"policy": 2}),
        (["cluster.reference=cache", "model.reference_path=other"], {"policy": 8}),
        (["cluster.reference=colocated"], {"policy": 2}),
        (["cluster.reference=workers"], {"policy": 2, "reference": 8}),
    ],
)
def test_a_cache_that_the_policy_fills_asks_for_no_reference_workers(
    changes: list[str], workers: dict[str, int]
) -> None:
    assert wanted(training_config("demo", [*changes, "cluster.reference_workers=8"])) == workers


def test_demo_fits_the_gpus_that_are_there() -> None:
    config = training_config("demo")
    assert fitted(config, 0) is config and fitted(config, 3) is config
    few = fitted(config, 1)
    assert wanted(few) == {"policy": 1} and same_recipe(resolved(few), config)


@pytest.mark.parametrize(("dtype", "gpus", "tokens", "warns"), [
    ("fp32", 1, 4096, True), ("fp32", 1, 2048, False), ("bf16", 1, 4096, False), ("fp32", 0, 4096, False),
])  # fmt: skip
def test_long_records_in_fp32_on_gpus_are_warned_of(dtype: str, gpus: int, tokens: int, warns: bool) -> None:
    sets = [f"model.dtype={dtype}", f"cluster.gpus_per_worker={gpus}", f"data.max_tokens={tokens}"]
    assert isinstance(judge.precision(training_config("demo", sets)), Warn) == warns


def test_slurm_jobs_with_gpus_use_them() -> None:
    request = Request(1, 8, "1:00:00", None, None, "USR1", 600, ())
    assert idle_gpus(training_config("demo"), request) == 5
    assert idle_gpus(training_config("demo", ["cluster.gpus_per_worker=0"]), request) == 0
