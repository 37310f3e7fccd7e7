"""Which engine a model runs on: `cluster.engine`, and what `auto` means.

A driver asks before it starts workers, so torch and transformers are imported where they are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psutil

from dpeer import config as settings
from dpeer.config import Config
from dpeer.errors import ConfigError
from dpeer.integrity import read_state
from dpeer.training.grace import grace_s
from dpeer.training.run_dir import RunDir
from dpeer.training.together import way_back
from dpeer.training.zero_file import deepspeed_config, deepspeed_file

if TYPE_CHECKING:
    from dpeer.training.engine import Engine
    from dpeer.training.world import World

SHARE = 0.6  # of a device's memory that may be taken by what is always there; activations need the rest
TRAINED = 16  # bytes of a trained parameter beside its weight: fp32 master weight, gradient and two moments


@dataclass(frozen=True, slots=True)
class Choice:
    name: Literal["plain", "deepspeed"]
    why: str


def check_settings(config: Config, ranks: int | None = None) -> str:
    """The engine can do what the recipe asks for, and the DeepSpeed files fit it. `ranks`: of the one group that there
    is, where the recipe's numbers do not count."""
    spec = config.cluster
    choose(config, ranks or spec.policy_workers, None, math.inf)
    if config.training.sequence_parallel != "auto":
        refuse_team(config, ranks or spec.policy_workers)
        if ranks is None and config.reference_group:
            refuse_team(config, spec.reference_workers, "cluster.reference_workers")
    grace_s(config)
    deepspeed_config(config.cluster.deepspeed, config, trained=True)
    deepspeed_config(config.cluster.reference_deepspeed, config, trained=False)
    return f"recipe {config.name}; DeepSpeed {config.cluster.deepspeed} and {config.cluster.reference_deepspeed}"


def choose(config: Config, ranks: int, states: float | None, memory: float) -> Choice:
    """The engine of a policy on `ranks` ranks of `memory` bytes, of which `states` are taken by a rank that holds the
    whole model (None: not known). ConfigError for what the plain engine cannot do."""
    spec, elsewhere = config.cluster, _host_states(config)
    if spec.engine == "plain" and elsewhere:
        raise ConfigError(
            f"cluster.engine = plain keeps optimizer state on the device, but {elsewhere}: set cluster.engine to "
            "deepspeed, or training.optimizer.name to adamw and cluster.deepspeed to zero3."
        )
    if config.model.load_in_4bit:
        if spec.engine == "deepspeed" or elsewhere:
            raise ConfigError(
                f"model.load_in_4bit keeps the whole 4-bit model on every rank, but "
                f"{elsewhere or 'cluster.engine = deepspeed shares weights'}: leave cluster.engine at auto, with "
                "training.optimizer.name=adamw and cluster.deepspeed=zero3. For a model that does not fit so, set "
                "model.load_in_4bit=false, which shares 16-bit weights over the ranks."
            )
        return Choice("plain", "4-bit weights are whole on every rank")
    if spec.engine != "auto":
        return Choice(spec.engine, "as cluster.engine says")
    if elsewhere:
        return Choice("deepspeed", elsewhere)
    if ranks == 1:
        return Choice("plain", "one rank has nothing to share")
    if config.model.lora is None:
        return Choice("deepspeed", f"weights and optimizer state are shared by {ranks} ranks")
    if states is not None and states > SHARE * memory:
        return Choice("deepspeed", f"the model would take {states / memory:.0%} of a rank's memory")
    return Choice("plain", "adapters are small, and every rank has room for the whole model")


def policy_choice(config: Config, world: World) -> Choice:
    """Collective. The same on every rank; a run that began with one engine stays with it."""
    import torch.distributed as dist

    mine = one_choice(config, world.size, device_memory(world))
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    choice: Choice = next((c for c in everyone if c.name == "deepspeed"), everyone[0])
    return choice


def one_choice(config: Config, ranks: int, memory: float) -> Choice:
    """What one of the ranks, with so many bytes, takes for right."""
    if config.cluster.engine == "auto" and (began := began_with(config)):
        return Choice(began, "as the run began")
    lora = ranks > 1 and config.model.lora is not None and config.cluster.engine == "auto"
    return choose(config, ranks, model_states(config.model) if lora else None, memory)


def team_size(config: Config, ranks: int, field: str = "cluster.policy_workers") -> int:
    """Ranks of `ranks` that compute a pack together. ConfigError where these cannot be shared out so."""
    size = config.training.sequence_parallel
    assert size != "auto"
    if ranks % size:
        fitting = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise ConfigError(
            f"training.sequence_parallel = {size}: {ranks} ranks ({field}) cannot work in groups of {size}. For so "
            f"many ranks it may be {fitting}; or take a multiple of {size} ranks."
        )
    return size


def refuse_team(config: Config, ranks: int, field: str = "cluster.policy_workers") -> None:
    """ConfigError where so many ranks, or the model or its reference, cannot do what training.sequence_parallel asks
    for."""
    if (size := team_size(config, ranks, field)) == 1:
        return
    from dpeer.model.cut import refuse_uncut
    from dpeer.model.lm import load_shape
    from dpeer.model.probe import layout_of

    spec = config.model
    for path, revision in dict.fromkeys((spec.reference, (spec.path, spec.revision))):
        shape = load_shape(path, revision)
        refuse_uncut(shape, path, layout_of(shape, path, spec.layout), size, ranks)


def policy_engine(config: Config, choice: Choice, world: World) -> Engine:
    """The engine of a policy that is to be trained."""
    from dpeer.training.plain import Plain
    from dpeer.training.zero3 import Zero3

    return Plain(config, world) if choice.name == "plain" else Zero3(config, world)


def reference_engine(config: Config, world: World) -> Engine:
    """The engine of the frozen reference: both give the same log-probabilities."""
    from dpeer.training.plain import Plain
    from dpeer.training.zero3 import Zero3

    plain = plain_reference(config, world.size)
    return Plain(config, world, reference=True) if plain else Zero3(config, world, reference=True)


def plain_reference(config: Config, ranks: int) -> bool:
    """Whether each of the ranks holds all of the frozen reference."""
    spec = config.cluster
    if config.model.load_in_4bit:
        return True
    if spec.engine == "auto" and ranks == 1:
        return not _offloads(deepspeed_file(spec.reference_deepspeed, "cluster.reference_deepspeed"), "offload_param")
    return spec.engine == "plain"


def model_states(spec: settings.Model) -> float:
    """Bytes of weights, gradients and optimizer state of a model that is not shared; counted on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    from dpeer.model.lm import DTYPES, add_lora, load_parts, load_shape

    shape = load_shape(spec.path, spec.revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=DTYPES[spec.dtype])
        part = load_parts(spec.path, spec.revision) if spec.start else None
        model = add_lora(model, spec.lora, 0, part) if spec.lora else model
    return sum(float(p.numel() * (p.itemsize + TRAINED * p.requires_grad)) for p in model.parameters())


def _host_states(config: Config) -> str:
    """Why optimizer state or weights must lie in the host's memory; empty where they need not."""
    if config.training.optimizer.name == "cpu_adam":
        return "training.optimizer.name is cpu_adam"
    zero = deepspeed_file(config.cluster.deepspeed, "cluster.deepspeed")
    offloads = _offloads(zero, "offload_optimizer") or _offloads(zero, "offload_param")
    return f"cluster.deepspeed = {config.cluster.deepspeed} keeps states in the host's memory" if offloads else ""


def _offloads(deepspeed: dict[str, Any], what: str) -> bool:
    return bool((deepspeed["zero_optimization"].get(what) or {}).get("device", "none") != "none")


def began_with(config: Config) -> Literal["plain", "deepspeed"] | None:
    """The engine in the manifest of the run of this name; before there was a choice it was DeepSpeed."""
    files = RunDir(config.run_dir)
    if saved := files.saved_steps():
        state = read_state(files.checkpoint(saved[-1]) / "state.json", way_back(files, saved[-1]))
        return "plain" if state.get("engine") == "plain" else "deepspeed"
    manifest = files.manifest
    if not manifest.exists():
        return None
    return "plain" if files.read_manifest().get("engine") == "plain" else "deepspeed"


def device_memory(world: World) -> float:
    """Bytes of the rank's GPU, or its share of the host's memory if all ranks are on one host."""
    import torch

    if world.device.type == "cuda":
        return float(torch.cuda.mem_get_info(world.device)[1])
    return float(psutil.virtual_memory().total) / world.size
