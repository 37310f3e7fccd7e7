"""Tokens, arithmetic, traffic and time of a training run, from lengths and counts alone. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpeer.config import Config
from dpeer.data.bins import plan_packs
from dpeer.data.layout import padded, plan_sequences
from dpeer.data.packing import batch_indices
from dpeer.estimate.footprint import Weights
from dpeer.estimate.memory import BYTES, Zero, offloaded
from dpeer.model.flops import Lengths, forward_flops, training_flops
from dpeer.model.team import copies

SAMPLED_STEPS = 64
TOKENISED_PER_S = 150_000
"""Tokens that a core renders, checks and encodes, of records of 150 (benchmarks/data_scale.py)."""
ABOUT_A_RECORD = 500
"""Bytes of a tokenised record beside its tokens: its last message as text, and what arrays say of it."""


HOST_LINK = 25e9
"""Bytes per second between a GPU and its host, each way: what PCIe 4.0 x16 reaches. Assumed."""


@dataclass(frozen=True)
class Batching:
    """What an optimizer step is made of, as means over the looked-at steps unless said otherwise."""

    tokens: float
    pairwise: float
    busiest: float
    """Tokens of the rank that has most of them: the others wait for it. Ranks that share a pack have a part each."""
    micro_steps: float
    largest_pack: int
    """Tokens of the largest pack of any looked-at step."""
    records: tuple[Lengths, ...]
    """All records of the looked-at steps."""

    @property
    def per_micro_step(self) -> float:
        """Tokens of the busiest rank per micro-step."""
        return self.busiest / self.micro_steps


def batching(config: Config, records: Sequence[Lengths], ranks: int, team: int = 1) -> Batching:
    """Plan the packs of the first steps of the run as the training step does, where `team` ranks share a pack."""
    size = config.training.records_per_step
    looked_at = min(config.training.total_steps(len(records)), SAMPLED_STEPS)
    tokens = pairwise = busiest = micro_steps = 0.0
    largest = 0
    seen: list[Lengths] = []
    for step in range(looked_at):
        batch = [records[i] for i in batch_indices(step * size, size, len(records), config.seed)]
        packs, loads = _packed(batch, ranks // team, config.training.tokens_per_pack)
        tokens += sum(map(sum, loads))
        pairwise += sum(r.pairwise for r in batch)
        busiest += max(map(sum, loads)) / team
        micro_steps += max(map(len, packs))
        largest = max(largest, *(load for mine in loads for load in mine))
        seen += batch
    n = looked_at
    return Batching(tokens / n, pairwise / n, busiest / n, micro_steps / n, largest, tuple(seen))


def _packed(batch: Sequence[Lengths], ranks: int, budget: int) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Packs of a batch by rank, and the tokens that each computes."""
    if batch[0].layout == "tree":
        costs = [r.tokens for r in batch]
        packs = plan_packs(costs, ranks, budget)
        return packs, [[sum(costs[i] for i in pack) for pack in mine] for mine in packs]
    sizes = [(len(r.responses), r.prompt + max(r.responses) - 1) for r in batch]
    packs = plan_sequences(sizes, ranks, budget)
    return packs, [[padded([sizes[i] for i in pack]) for pack in mine] for mine in packs]


@dataclass(frozen=True)
class Machine:
    """Rates of one GPU and its links: FLOP/s, bytes/s; links as they are used, not as they are sold."""

    nodes: int
    gpus_per_node: int
    peak: float
    hfu: float
    """Share of the peak that training reaches, recomputation counted as work."""
    node_link: float
    """Out of one node, all its network cards together."""
    gpu_link: float
    """Into one GPU within the node."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Traffic:
    """Bytes that move in one micro-step under ZeRO-3, in one optimizer step with the plain engine."""

    into_gpu: float
    into_node: float


def traffic(config: Config, weights: Weights, zero: Zero, ranks: int, machine: Machine) -> Traffic:
    """All-gathers of weights (forward, backward, and a colocated reference's) and reduce-scatter of gradients; one
    all-reduce of the plain engine's gradients. Balanced experts: one more gather, to count where tokens are sent."""
    size = BYTES[config.model.dtype]
    nodes = min(machine.nodes, -(-ranks // machine.gpus_per_node))
    if not zero.sharded:
        reduced = 2 * 4 * weights.trained
        return Traffic(reduced * (ranks - 1) / ranks, reduced * (nodes - 1) / nodes)
    gathers = 2 + (config.cluster.reference == "colocated" and config.objective.kind == "preference")
    gathers += config.model.router_aux_loss > 0
    reduced = weights.trained * (4 if config.model.lora else size)
    everything = gathers * weights.total * size + reduced
    between = everything - (weights.total * size if zero.hpz > 1 else 0)  # hpZ: backward gathers stay in the node
    return Traffic(everything * (ranks - 1) / ranks, between * (nodes - 1) / nodes)


def all_to_all(config: Config, weights: Weights, batch: Batching, team: int, machine: Machine) -> Traffic:
    """What ranks that share a pack exchange in one micro-step: queries, keys, values and outputs of every layer that
    attends, in both passes and once more where the forward pass is computed again."""
    colocated = config.cluster.reference == "colocated" and config.objective.kind == "preference"
    passes = 2 + config.model.gradient_checkpointing + colocated
    return _swapped(config, weights, passes * batch.per_micro_step, team, machine)


def _swapped(config: Config, weights: Weights, tokens: float, team: int, machine: Machine) -> Traffic:
    """What one pass exchanges around attention, in all layers, where a rank of a team has so many tokens."""
    keys = weights.attention_width * weights.key_heads / weights.heads * copies(weights.key_heads, team)
    width = 2 * (weights.attention_width + keys) * BYTES[config.model.dtype]
    moved = weights.attending * tokens * width * (team - 1) / team
    across = max(0.0, 1 - machine.gpus_per_node / team)  # a team lies within a node, unless it is larger than one
    return Traffic(moved, moved * across * machine.gpus_per_node)


@dataclass(frozen=True)
class Time:
    """Seconds of one optimizer step: all traffic of weights and gradients hidden behind arithmetic, and none of it.
    Layers wait for what ranks that share a pack exchange, and for copies of activations to the host and back."""

    compute: float
    traffic: float
    exchange: float = 0.0
    copies: float = 0.0

    @property
    def low(self) -> float:
        return max(self.compute, self.traffic) + self.exchange + self.copies

    @property
    def high(self) -> float:
        return self.compute + self.traffic + self.exchange + self.copies


def traffic_seconds(moved: Traffic, machine: Machine) -> float:
    """Seconds of one micro-step's traffic; links within and between nodes work at the same time."""
    return max(moved.into_gpu / machine.gpu_link, moved.into_node / machine.node_link)


def step_time(
    config: Config, weights: Weights, zero: Zero, ranks: int, machine: Machine, batch: Batching, team: int = 1
) -> Time:
    """Time of one optimizer step: that of the busiest rank. Records of the dual split are taken to be as long as those
    of training; they are scored by the policy, and by a colocated reference. Where experts are balanced by a loss, a
    forward pass counts beforehand where tokens are sent."""
    colocated = config.cluster.reference == "colocated" and config.objective.kind == "preference"
    scored = config.dual_records / config.training.records_per_step
    forward = sum(forward_flops(weights, batch.records))
    forwards = colocated + (config.model.router_aux_loss > 0) + scored * (1 + colocated)
    flops = training_flops(config.model, weights, batch.records) + forward * forwards
    per_token = flops / sum(r.tokens for r in batch.records)
    moved = traffic_seconds(traffic(config, weights, zero, ranks, machine), machine)
    gathered = traffic_seconds(_gather(config, weights, ranks, machine), machine) * (1 + colocated) * scored
    moving = batch.micro_steps * (moved + gathered) if zero.sharded else moved
    exchange = batch.micro_steps * traffic_seconds(all_to_all(config, weights, batch, team, machine), machine)
    copies = 2 * offloaded(config, weights, batch.busiest) / HOST_LINK
    return Time(per_token * batch.busiest / (machine.peak * machine.hfu), moving, exchange, copies)


def _gather(config: Config, weights: Weights, ranks: int, machine: Machine) -> Traffic:
    """One forward pass: all weights once."""
    moved = weights.total * BYTES[config.model.dtype]
    nodes = min(machine.nodes, -(-ranks // machine.gpus_per_node))
    return Traffic(moved * (ranks - 1) / ranks, moved * (nodes - 1) / nodes)


def tokenising(records: Sequence[Lengths]) -> tuple[float, int]:
    """(Core seconds, bytes) of making the tokens of these records, which is done once."""
    tokens = sum(r.prompt + sum(r.responses) for r in records)
    words = tokens + sum(3 + len(r.responses) + 3 * len(r.edges) for r in records)
    return tokens / TOKENISED_PER_S, 4 * words + ABOUT_A_RECORD * len(records)


def break_even(time: Time, batch: Batching) -> float:
    """Tokens per GPU and micro-step at which arithmetic takes as long as the traffic."""
    return batch.per_micro_step * time.traffic / time.compute


def reference_time(
    config: Config, weights: Weights, records: Sequence[Lengths], ranks: int, machine: Machine, team: int = 1
) -> Time:
    """Seconds to compute the reference log-probabilities of all records once, on `ranks` GPUs."""
    forward = _gather(config, weights, ranks, machine)
    tokens = sum(r.tokens for r in records)
    forwards = -(-tokens // (ranks // team * config.training.tokens_per_pack))
    compute = sum(forward_flops(weights, records)) / (ranks * machine.peak * machine.hfu)
    exchange = traffic_seconds(_swapped(config, weights, tokens / ranks, team, machine), machine)
    return Time(compute, forwards * traffic_seconds(forward, machine), exchange)
