"""A recipe and a cluster in, one `Plan` out; and which changes would make a plan fit that does not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from transformers import PretrainedConfig

from dpeer import config as settings
from dpeer.config import ADAPTERS_LR, Config
from dpeer.config_io import load_config
from dpeer.data.layout import Layout
from dpeer.errors import ConfigError
from dpeer.estimate.footprint import Activations, Weights, count_activations, count_weights
from dpeer.estimate.memory import BYTES, GIB, Host, Memory, Zero, host, largest_budget, per_gpu, scoring
from dpeer.estimate.throughput import (
    Batching,
    Machine,
    Time,
    Traffic,
    batching,
    break_even,
    reference_time,
    step_time,
    traffic,
)
from dpeer.launcher.plan.inputs import GivenLengths, Gpu, Records, gpu, model_config, records
from dpeer.launcher.recipe import RECIPES
from dpeer.model.cut import obstacle, refuse_uncut, sizes
from dpeer.model.families import refuse_unsupported
from dpeer.model.flops import typical
from dpeer.model.probe import layout_of
from dpeer.model.recompute import refuse_untiled
from dpeer.model.towers import text_part, tower_parameters
from dpeer.training.choice import TRAINED, Choice, choose, plain_reference, team_size
from dpeer.training.engine import model_settings

HFU = 0.35
LINKS = 0.8  # share of a link's rated speed that collectives reach
MOST_NODES = 64
TILE = 4096  # tokens of an MLP's tile that is tried: a product of so many rows still fills a GPU


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    recipe: Path
    overrides: tuple[str, ...]
    nodes: int
    gpus: int
    gpu: str
    gpu_memory: float | None = None
    """GiB, instead of the table's."""
    network: float | None = None
    """Gbit/s of one node, instead of the table's."""
    hfu: float = HFU
    node_memory: float | None = None
    """Host GiB of one node; None: not checked."""
    model_config: Path | None = None
    lengths: GivenLengths = field(default_factory=GivenLengths)


@dataclass(frozen=True)
class Plan:
    request: Request
    config: Config
    gpu: Gpu
    machine: Machine
    ranks: int
    reference_ranks: int
    weights: Weights
    engine: Choice
    zero: Zero
    tokens: int
    """Forward tokens of the pack that memory is planned for."""
    memory: Memory
    reference_memory: Memory | None
    """Of a rank of the reference group; None where there is none beside the policy."""
    largest_record: Memory | None
    host: Host
    budget: int
    """Largest training.tokens_per_pack that fits; 0 when none does."""
    records: Records
    batch: Batching
    steps: int
    time: Time
    traffic: Traffic
    break_even: float
    reference: Time | None
    """Time to compute the reference once; None when that is part of the steps or not needed."""
    sources: tuple[str, ...]
    team: int = 1
    """Ranks that share a pack."""
    contexts: tuple[tuple[int, int], ...] = ()
    """Most tokens of one record that so many GPUs compute together: (GPUs, tokens)."""
    towers: int = 0
    """Parameters beside the text part of a model that sees or hears: frozen, not loaded."""

    @property
    def usable(self) -> float:
        return self.gpu.memory_gib * GIB

    @property
    def fits_gpu(self) -> bool:
        return self.memory.high <= self.usable and self.fits_reference

    @property
    def fits_reference(self) -> bool:
        return self.reference_memory is None or self.reference_memory.high <= self.usable

    @property
    def fits_host(self) -> bool:
        return self.request.node_memory is None or self.host.high <= self.request.node_memory * GIB

    @property
    def fill(self) -> float:
        """Share of a step in which the mean rank computes: all wait for the busiest."""
        return self.batch.tokens / (self.ranks * self.batch.busiest)

    @property
    def run_hours(self) -> tuple[float, float]:
        """Wall-clock hours of one run's steps."""
        return self.steps * self.time.low / 3600, self.steps * self.time.high / 3600

    @property
    def reference_hours(self) -> tuple[float, float]:
        return (self.reference.low / 3600, self.reference.high / 3600) if self.reference else (0.0, 0.0)

    def gpu_hours(self, cells: int) -> tuple[float, float]:
        """Of `cells` runs that share one reference cache."""
        low, high = ((a * cells + b) for a, b in zip(self.run_hours, self.reference_hours, strict=True))
        return low * self.machine.gpus, high * self.machine.gpus


def make_plan(request: Request) -> Plan:
    """Everything that `dpeer plan` shows. Raises ConfigError / DataError for what cannot be planned."""
    config = load_config(request.recipe, request.overrides, shipped=RECIPES)
    card = _card(request)
    everything, source = model_config(config.model, request.model_config)
    shape = text_part(everything, config.model.path)
    refuse_unsupported(shape, config.model.path)
    refuse_untiled(shape, config.model.path, config.model.mlp_tile)
    ranks, reference_ranks = _ranks(config, request)
    if reference_ranks and config.training.sequence_parallel != "auto":
        team_size(config, reference_ranks, "cluster.reference_workers")
    layout = layout_of(shape, config.model.path, config.model.layout)
    lengths = records(config, request.lengths).laid_out(layout)
    weights = _weights(config.model, _Shape(shape))
    engine = choose(
        config,
        ranks,
        float(weights.total * BYTES[config.model.dtype] + weights.trained * TRAINED),
        card.memory_gib * GIB,
    )
    zero = Zero.plain() if engine.name == "plain" else Zero.of(model_settings(config, shape, trained=True))

    def counted(team: int) -> Activations:
        return _activations(config.model, _Shape(shape), *typical(lengths.lengths), layout, team)

    on_node, usable = min(request.gpus, ranks), card.memory_gib * GIB

    def held(tokens: float) -> bool:
        """Whether a host, where its memory is known, holds the activations of so many tokens of each rank."""
        if request.node_memory is None or not config.model.offload_activations:
            return True
        return host(config, weights, zero, ranks, on_node, tokens).high <= request.node_memory * GIB

    for team in _teams(config, shape, layout, ranks, request.gpus):
        batch = batching(config, lengths.lengths, ranks, team)
        tokens = max(config.training.tokens_per_pack, batch.largest_pack)
        memory = per_gpu(config, weights, counted(team), zero, ranks, tokens)
        if memory.high <= usable and held(tokens / team):
            break
    activations = counted(team)
    machine = _machine(config, request, card)
    time = step_time(config, weights, zero, ranks, machine, batch, team)
    shared = dict.fromkeys((*_possible(shape, layout, ranks, request.gpus), team))

    def largest(team: int) -> int:
        def also(tokens: int) -> bool:
            return held(tokens / team)

        return largest_budget(config, weights, counted(team), zero, ranks, usable, also=also)

    contexts = [(n, largest(n)) for n in shared]
    preference = config.objective.kind == "preference"
    cached = preference and config.cluster.reference == "cache"
    return Plan(
        request=request,
        config=config,
        gpu=card,
        machine=machine,
        ranks=ranks,
        reference_ranks=reference_ranks,
        weights=weights,
        engine=engine,
        zero=zero,
        tokens=tokens,
        memory=memory,
        reference_memory=_reference_memory(config, weights, activations, reference_ranks, tokens, shape),
        largest_record=_if_smaller(batch.largest_pack, tokens, config, weights, activations, zero, ranks),
        host=host(config, weights, zero, ranks, on_node, tokens / team),
        budget=dict(contexts)[team],
        records=lengths,
        batch=batch,
        steps=config.training.total_steps(len(lengths.lengths)),
        time=time,
        traffic=traffic(config, weights, zero, ranks, machine),
        break_even=break_even(time, batch),
        reference=reference_time(config, weights, lengths.lengths, ranks, machine, team) if cached else None,
        sources=(f"model: {source}", f"data: {lengths.source}"),
        team=team,
        contexts=tuple(contexts),
        towers=tower_parameters(everything),
    )


def _teams(config: Config, shape: PretrainedConfig, layout: Layout, ranks: int, gpus: int) -> Sequence[int]:
    """Numbers of ranks that may share a pack, in the order in which they are tried: the first that fits is taken."""
    if config.training.sequence_parallel == "auto":
        return _possible(shape, layout, ranks, gpus)
    size = team_size(config, ranks, "the GPUs of the policy")
    refuse_uncut(shape, config.model.path, layout, size, ranks)
    return [size]


def _possible(shape: PretrainedConfig, layout: Layout, ranks: int, gpus: int) -> list[int]:
    """Within a node."""
    found = [n for n in sizes(int(shape.num_attention_heads), min(ranks, gpus)) if ranks % n == 0]
    return [1] if len(found) > 1 and obstacle(shape, layout) else found


def _card(request: Request) -> Gpu:
    """The GPU that was asked for, with what the request says of it instead of the table."""
    card = gpu(request.gpu)
    if request.gpu_memory:
        card = replace(card, memory_gib=request.gpu_memory)
    if request.network:
        card = replace(card, node_link_gbit_s=request.network)
    return card


def _machine(config: Config, request: Request, card: Gpu) -> Machine:
    peak = card.bf16_tflops if config.model.dtype == "bf16" else card.fp32_tflops
    return Machine(
        request.nodes,
        request.gpus,
        peak * 1e12,
        request.hfu,
        card.node_link_gbit_s / 8 * 1e9 * LINKS,
        card.gpu_link_gbyte_s * 1e9 * LINKS,
    )


def _reference_memory(
    config: Config, weights: Weights, activations: Activations, ranks: int, tokens: int, shape: PretrainedConfig
) -> Memory | None:
    if not ranks:
        return None
    zero = Zero.of(model_settings(config, shape, trained=False))
    zero = Zero.plain() if plain_reference(config, ranks) else zero
    return scoring(config, weights, activations, zero, ranks, tokens)


def _if_smaller(
    pack: int, tokens: int, config: Config, weights: Weights, activations: Activations, zero: Zero, ranks: int
) -> Memory | None:
    """Memory with the packs that the data really fill, where they stay below the budget."""
    return per_gpu(config, weights, activations, zero, ranks, pack) if pack < tokens else None


def _ranks(config: Config, request: Request) -> tuple[int, int]:
    """(policy, reference) ranks when the whole cluster is used."""
    gpus = request.nodes * request.gpus
    if config.cluster.reference != "workers" or config.objective.kind != "preference":
        return gpus, 0
    reference = config.cluster.reference_workers
    if reference >= gpus:
        raise ConfigError(
            f"cluster.reference_workers = {reference} leaves none of the {gpus} GPUs to the policy: lower it, or set "
            "cluster.reference to cache."
        )
    return gpus - reference, reference


class _Shape:
    """A model config as a key of the caches below."""

    def __init__(self, shape: PretrainedConfig) -> None:
        self.shape, self.key = shape, shape.to_json_string(use_diff=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@cache
def _weights(spec: settings.Model, shape: _Shape) -> Weights:
    return count_weights(spec, shape.shape)


@cache
def _activations(
    spec: settings.Model, shape: _Shape, prompt: int, responses: tuple[int, ...], layout: Layout, team: int
) -> Activations:
    return count_activations(spec, shape.shape, prompt, responses, layout, team)


@dataclass(frozen=True)
class Remedy:
    change: str
    peak_gib: float


def remedies(plan: Plan) -> tuple[Remedy, ...]:
    """Changes after which the plan fits GPU and host, each tried out; the first ones cost least."""
    remedies = []
    for changes in _candidates(plan):
        try:
            changed = make_plan(replace(plan.request, overrides=(*plan.request.overrides, *changes)))
        except ConfigError:
            continue
        if changed.fits_gpu and changed.fits_host:
            remedies.append(Remedy(" ".join(f"--set {c}" for c in changes), changed.memory.high / GIB))
    nodes, larger = 2 * plan.request.nodes, None
    while nodes <= MOST_NODES:
        with suppress(ConfigError):  # where groups of ranks do not come out even
            larger = make_plan(replace(plan.request, nodes=nodes))
        if larger and larger.fits_gpu and larger.fits_host:
            remedies.append(Remedy(f"--nodes {nodes}", larger.memory.high / GIB))
            break
        nodes *= 2
    return tuple(remedies)


def _candidates(plan: Plan) -> Sequence[tuple[str, ...]]:
    config = plan.config
    recompute = () if config.model.gradient_checkpointing else ("model.gradient_checkpointing=true",)
    candidates: list[tuple[str, ...]] = []
    if plan.budget >= plan.batch.largest_pack or plan.budget >= max(r.tokens for r in plan.records.lengths):
        candidates.append((f"training.tokens_per_pack={plan.budget}",))
    if recompute:
        candidates.append(recompute)
    tiles = () if config.model.mlp_tile else (f"model.mlp_tile={TILE}",)
    away = () if config.model.offload_activations else ("model.offload_activations=true",)
    candidates += [(*recompute, *changes) for changes in dict.fromkeys((tiles, away, (*tiles, *away))) if changes]
    if config.training.sequence_parallel != "auto" and len(plan.contexts) > 1:
        candidates.append(("training.sequence_parallel=auto",))
    if config.cluster.reference == "colocated" or not plan.fits_reference:
        candidates.append(("cluster.reference=cache",))
    if not plan.zero.optimizer_on_host:
        offload = ("cluster.deepspeed=zero3_offload", "training.optimizer.name=cpu_adam", "cluster.engine=deepspeed")
        candidates.append((*recompute, *(offload if config.cluster.engine == "plain" else offload[:2])))
    if config.model.lora is None:
        slow = config.training.optimizer.lr < ADAPTERS_LR
        rate = (f"training.optimizer.lr={ADAPTERS_LR:g}",) if slow else ()
        candidates.append((*recompute, "model.lora.rank=16", *rate))
    return candidates
