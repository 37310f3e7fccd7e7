"""Memory of a training run from counts alone: per GPU by component, and on the host. Pure arithmetic, in bytes.

What ZeRO-3 allocates was read from DeepSpeed 0.19: per rank a shard of the weights, of fp32 master weights, of two Adam
moments and of fp32 gradients; a reduce bucket; gathered weights up to `stage3_max_live_parameters`; and, in the
optimizer step, an fp32 copy of the gradients of one sub-group. The plain engine holds on every rank what ZeRO-3 shares,
and nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dpeer.config import Config
from dpeer.estimate.footprint import Activations, Weights
from dpeer.memory import RELOADED
from dpeer.model.four_bits import BYTES as FOUR_BITS
from dpeer.model.on_host import PIECE

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2}
CONTEXT = 1.5 * GIB  # CUDA context and kernels 0.5 GiB, NCCL channels and workspaces 1 GiB
ADAM = 12  # bytes of a trained parameter in a checkpoint: fp32 master weight and two moments
FRAGMENTATION = 0.06  # of all tensors: blocks that the caching allocator cannot hand out again


@dataclass(frozen=True)
class Zero:
    """What memory depends on in a DeepSpeed config. Sizes in elements; DeepSpeed's defaults. Not `sharded`: the plain
    engine."""

    reduce_bucket: int
    prefetch: int
    max_live: int
    reuse_distance: int
    persistence: int
    sub_group: int
    hpz: int
    optimizer_on_host: bool
    weights_on_host: bool
    sharded: bool = True
    whole_layers: bool = False
    """A layer's weights are gathered, and its gradients reduced, all at once."""

    @classmethod
    def plain(cls) -> Zero:
        """Everything whole on every rank, no buffers."""
        return cls(0, 0, 0, 0, 0, 0, 1, optimizer_on_host=False, weights_on_host=False, sharded=False)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Zero:
        """From the JSON of a DeepSpeed config."""
        zero = settings["zero_optimization"]

        def offloaded(what: str) -> bool:
            return bool((zero.get(what) or {}).get("device", "none") != "none")

        return cls(
            reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)) if zero.get("contiguous_gradients", True) else 0,
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
            reuse_distance=int(zero.get("stage3_max_reuse_distance", 1e9)),
            persistence=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            sub_group=int(zero.get("sub_group_size", 1e9)),
            hpz=int(zero.get("zero_hpz_partition_size", 1)),
            optimizer_on_host=offloaded("offload_optimizer"),
            weights_on_host=offloaded("offload_param"),
            whole_layers=bool((zero.get("leaf_module") or {}).get("classes")),
        )


@dataclass(frozen=True)
class Part:
    """One component: bytes from `low` to `high`, and whether it is an assumption rather than counted."""

    name: str
    low: float
    high: float
    note: str = ""
    assumed: bool = False


@dataclass(frozen=True)
class Memory:
    """Per GPU: what is always there, the phases that come on top one after another, and the allowances."""

    resident: tuple[Part, ...]
    phases: Mapping[str, tuple[Part, ...]]
    context: Part

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(p.high for p in self.phases[name]))

    @property
    def parts(self) -> tuple[Part, ...]:
        """All components at the peak; their `high` add up to `high`."""
        counted = (*self.resident, *self.phases[self.peak_phase])
        tensors = sum(p.high for p in counted)
        share = Part("fragmentation", 0.0, FRAGMENTATION * tensors, f"{FRAGMENTATION:.0%} of the above", assumed=True)
        return (*counted, share, self.context)

    @property
    def high(self) -> float:
        return sum(p.high for p in self.parts)

    @property
    def low(self) -> float:
        resident = sum(p.low for p in (*self.resident, self.context))
        return resident + max(sum(p.low for p in parts) for parts in self.phases.values())


def per_gpu(config: Config, weights: Weights, activations: Activations, zero: Zero, ranks: int, tokens: int) -> Memory:
    """Memory of one rank of `ranks` while it trains on packs of `tokens` forward tokens."""
    resident = (part for part in _resident(config, weights, zero, ranks) if part.high)
    phases = _phases(config, weights, activations, zero, ranks, tokens)
    return Memory(tuple(resident), phases, _exact("CUDA context, NCCL", CONTEXT, assumed=True))


def _resident(config: Config, weights: Weights, zero: Zero, ranks: int) -> Iterator[Part]:
    """What is there all the time."""
    size, shards = BYTES[config.model.dtype], ranks if zero.sharded else 1
    trained, shard = weights.shard(shards, trained_only=True), "shard" if zero.sharded else "whole"
    if not zero.weights_on_host:
        yield _exact(f"weights, {'ZeRO-3 shard' if zero.sharded else 'whole'}", _stored(config, weights, shards))
    if not zero.optimizer_on_host:
        views = size == 4 and not zero.sharded  # the weights themselves are the masters
        yield _exact(f"master weights, fp32 {shard}", 0 if views else trained * 4)
        yield _exact(f"Adam moments, fp32 {shard}", trained * 8)
        yield _exact(f"gradients, fp32 {shard}", trained * 4)
    if zero.hpz > 1:
        yield _exact("hpZ copy within the node", weights.total / min(zero.hpz, ranks) * size)
    beside = config.cluster.reference == "colocated" and not config.reference_beneath
    if beside and config.objective.kind == "preference":
        adapters = trained if config.model.lora and not config.model.reference_lora else 0
        yield _exact("reference beside the policy", _stored(config, weights, shards) - adapters * size)
    yield _exact("reduce bucket", zero.reduce_bucket * _sent(config))
    yield _exact("small weights kept whole", weights.persistent(zero.persistence) * size)


def _phases(
    config: Config, weights: Weights, activations: Activations, zero: Zero, ranks: int, tokens: int
) -> dict[str, tuple[Part, ...]]:
    """What each phase of a step adds while it lasts."""
    size = BYTES[config.model.dtype]
    gathered = _gathered(weights, zero, size) if zero.sharded else _exact("gathered weights", 0)

    def at(line: tuple[float, float]) -> float:
        return max(0.0, line[0] * tokens + line[1])

    kept = _exact("activations kept for backward", weights.layers * at(activations.layer))
    # A gradient larger than the bucket stays where it is until it is reduced; what is reduced is copied. The plain
    # engine adds it up at once.
    large = max(weights.head, weights.layer * zero.whole_layers)
    large = 0 if config.model.lora or not zero.sharded else large
    copied = min(weights.trained, max(zero.reduce_bucket, large))
    outside = large if large > zero.reduce_bucket else 0
    reducing = Part("gradients on their way to the shards", 0, (copied + outside) * _sent(config), "and their copy")
    tied = weights.tied and not config.model.lora
    backward = (gathered, reducing, *([_exact("gradient of the tied head", weights.head * size)] if tied else ()))
    phases = {
        "loss and head": (kept, _exact("head: logits chunk, gradients", at(activations.head)), gathered),
        "backward of the layers": (
            kept,
            _exact("one layer: working set, gradients", at(activations.layers)),
            *backward,
        ),
        "backward of an MLP in tiles": (kept, _exact("one MLP: tiles, gradients", at(activations.mlp)), *backward),
        "backward of the embedding": (_exact("embedding: gradient", at(activations.embedding)), *backward),
    }
    if zero.sharded and not zero.optimizer_on_host:
        trained = weights.shard(ranks, trained_only=True)
        phases["optimizer step"] = (_exact("gradients of a sub-group, fp32 copy", 4 * min(zero.sub_group, trained)),)
    if not config.model.mlp_tile:
        del phases["backward of an MLP in tiles"]
    return {name: tuple(part for part in parts if part.high) for name, parts in phases.items()}


def _stored(config: Config, weights: Weights, shards: int) -> float:
    """Bytes of one rank's weights, of which those of the layers may be in 4 bits."""
    size, elements = BYTES[config.model.dtype], weights.shard(shards)
    if not config.model.load_in_4bit:
        return elements * size
    outer = weights.embedding + (0 if weights.tied else weights.head)
    small = weights.total - weights.trained - outer
    return (elements - small) * size + small * FOUR_BITS


def _sent(config: Config) -> int:
    """Bytes of a gradient's element on its way to the shards: those of adapters are summed in fp32."""
    return 4 if config.model.lora else BYTES[config.model.dtype]


def scoring(config: Config, weights: Weights, activations: Activations, zero: Zero, ranks: int, tokens: int) -> Memory:
    """Memory of one of `ranks` workers of a frozen reference; activations as in training, of which it needs less."""
    size = BYTES[config.model.dtype]
    shard = _exact("weights, ZeRO-3 shard", weights.shard(ranks) * size)
    whole = _exact("weights", _stored(config, weights, 1))
    resident = [] if zero.weights_on_host else [shard if zero.sharded else whole]
    resident.append(_exact("small weights kept whole", weights.persistent(zero.persistence) * size))

    def at(line: tuple[float, float]) -> float:
        return max(0.0, line[0] * tokens + line[1])

    gathered = (_gathered(weights, zero, size),) if zero.sharded else ()
    phases = {
        "head": (Part("head: logits chunk", 0, at(activations.head)), *gathered),
        "layers": (Part("one layer: working set", 0, max(at(activations.layers), at(activations.mlp))), *gathered),
    }
    return Memory(tuple(resident), phases, _exact("CUDA context, NCCL", CONTEXT, assumed=True))


def _exact(name: str, size: float, note: str = "", *, assumed: bool = False) -> Part:
    return Part(name, size, size, note, assumed)


def _gathered(weights: Weights, zero: Zero, size: int) -> Part:
    """Weights gathered at once: at least the module at work and what is fetched ahead; at most the limits allow."""
    at_work = max(weights.head, weights.layer)
    low = min(weights.total, at_work + zero.prefetch)
    high = min(weights.total, max(zero.max_live, zero.reuse_distance) + at_work) + min(weights.total, zero.prefetch)
    return Part("gathered weights", low * size, high * size, "the module at work, up to max_live_parameters beside it")


@dataclass(frozen=True)
class Host:
    """Host memory in bytes. `each_node`: all the time on every node; `export`: on top, on the node of rank 0. `saving`:
    at other times, and only where there is room for it."""

    each_node: tuple[Part, ...]
    export: tuple[Part, ...]
    saving: Part | None = None

    @property
    def high(self) -> float:
        """The most that any node needs."""
        return sum(p.high for p in (*self.each_node, *self.export))


def checkpoint_bytes(config: Config, weights: Weights, *, frozen: bool) -> int:
    """Of all ranks together. `frozen`: it holds what is not trained too, as DeepSpeed's does; the plain engine's does
    not."""
    return weights.trained * ADAM + frozen * (weights.total - weights.trained) * BYTES[config.model.dtype]


def export_parts(config: Config, weights: Weights) -> tuple[Part, ...]:
    """Host memory of rank 0 while the export is written layer by layer and then, of a smaller model, loaded again."""
    inside, out = BYTES[config.model.dtype], BYTES[config.model.export_dtype]
    whole, unit = weights.total * out, max(weights.layer, weights.head)
    layer = _exact("export: a layer, gathered and as it is written", unit * (inside + out))
    adapters = _exact("export: adapters", weights.trained * out) if config.model.lora else None
    again = Part("export: model loaded again", 0, whole if whole <= RELOADED else 0, "where half of the memory is left")
    if config.model.load_in_4bit:
        again = _exact("export: model in 16 bits, twice", 2 * whole, "what adapters over 4 bits are written on")
    return tuple(part for part in (layer, adapters, again) if part and part.high)


def offloaded(config: Config, weights: Weights, tokens: float) -> float:
    """Bytes of one rank's `tokens` in the host's memory: the input of each layer, which recomputation starts from."""
    return config.model.offload_activations * weights.layers * weights.width * BYTES[config.model.dtype] * tokens


def host(config: Config, weights: Weights, zero: Zero, ranks: int, ranks_per_node: int, tokens: float = 0.0) -> Host:
    """Host memory of training and of the export on rank 0. tokens: of a rank's part of a pack."""
    trained = weights.shard(ranks, trained_only=True) * ranks_per_node
    each = [Part("worker processes", ranks_per_node * 2 * GIB, ranks_per_node * 6 * GIB, "2 to 6 GiB each", True)]
    if zero.optimizer_on_host:
        each += [
            _exact("master weights, fp32", trained * 4),
            _exact("Adam moments, fp32", trained * 8),
            _exact("gradients, fp32", trained * 4),
            _exact("gradients, fp32 accumulation buffer", trained * 4),
        ]
    if zero.weights_on_host:
        each.append(_exact("weights", weights.shard(ranks) * ranks_per_node * BYTES[config.model.dtype]))
    if config.model.offload_activations:
        held = ranks_per_node * offloaded(config, weights, tokens)
        pieces = ranks_per_node * weights.layers * PIECE
        each.append(Part("activations of the layers, pinned", held, held + pieces, "a pack's, until its backward pass"))
    kept = checkpoint_bytes(config, weights, frozen=zero.sharded)
    copy = kept * ranks_per_node / ranks if zero.sharded else kept  # the plain engine's is written by rank 0 alone
    saving = _exact("copy of a checkpoint being written", copy, "while training; without room it is written first")
    return Host(tuple(each), export_parts(config, weights), saving if config.training.checkpoint_async else None)


def largest_budget(
    config: Config,
    weights: Weights,
    activations: Activations,
    zero: Zero,
    ranks: int,
    usable: float,
    step: int = 256,
    also: Callable[[int], bool] = lambda tokens: True,
) -> int:
    """Most tokens per pack, a multiple of `step`, whose peak stays within `usable` bytes; 0 when none does. also: what
    else that many tokens must do."""

    def fits(multiple: int) -> bool:
        tokens = multiple * step
        return per_gpu(config, weights, activations, zero, ranks, tokens).high <= usable and also(tokens)

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if high * step > 2**24:
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * step


def model_states(config: Config, weights: Weights, zero: Zero, ranks: int, ranks_per_node: int) -> tuple[float, float]:
    """Bytes per GPU and on a node's host of what DeepSpeed's own estimator knows: weights, master weights, moments,
    gradients, and the largest module gathered with its gradient; for the plain engine all but the latter."""
    size = BYTES[config.model.dtype]
    if not zero.sharded:
        return sum(part.high for part in _resident(config, weights, zero, ranks) if "reference" not in part.name), 0.0
    shard, trained = weights.shard(ranks), weights.shard(ranks, trained_only=True)
    on_gpu = (0 if zero.weights_on_host else shard * size) + (0 if zero.optimizer_on_host else trained * 16)
    on_host = (shard * size if zero.weights_on_host else 0) + (trained * 16 if zero.optimizer_on_host else 0)
    return on_gpu + weights.largest_module * 2 * size, on_host * ranks_per_node
