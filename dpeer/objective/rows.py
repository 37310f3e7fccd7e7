"""What stands in a ledger line and in certificate.json. nan is written as null, infinities as "inf" and "-inf"."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Number = float | str | None


class MeansRow(TypedDict):
    """Means over the edges of one dimension in one batch; standard errors are clustered by record."""

    edges: int
    loss: Number
    loss_se: Number
    margin: Number
    """Reward units."""
    margin_se: Number
    accuracy: Number
    """Share of edges with a positive margin."""


class DimensionRow(MeansRow):
    """One dimension in one step: means over the global training batch, and beside them over the dual split's."""

    weight: Number
    """In this step's objective: of the edge loss and of the form's own value."""
    floored: Number
    """What multipliers asked for below 0 and did not get, on the scale of `weight`."""
    dual: NotRequired[MeansRow]


class ConstraintRow(TypedDict):
    """One constraint in one step."""

    dimensions: list[str]
    tolerance: Number
    """The bound on the estimate."""
    aim: Number
    """The level that the multiplier holds the estimate to, at most the tolerance."""
    estimate: Number
    """From what multipliers follow: the dual split's batch, or the training batch."""
    se: Number
    slack: Number
    """tolerance - estimate: negative when violated."""
    multiplier: Number
    """The one used in this step."""
    active: bool
    """The multiplier is above 0, and the estimate not below the aim by more than two standard errors."""
    saturated: bool
    """Multiplier at its cap."""
    relaxed: bool
    """Found impossible together with others."""
    relaxation: Number
    """By how much: the violation that is left, on average over a window; 0 where not relaxed."""
    edges: int


class TogetherRow(TypedDict):
    """All constraints of one step, where there are too many for a row each."""

    constraints: int
    violated: int
    active: int
    saturated: int
    relaxed: int
    """How many of them; `active` and the others as in a row."""
    multipliers: str
    """Those used in this step, in the order of the pairs of dimensions: base64 of little-endian fp32; empty where all
    are 0."""
    bounded: list[str]
    """Dimensions that a finite tolerance binds."""


class LedgerRow(TypedDict):
    """One optimizer step, counted from 1; wall time stands in timing.jsonl, so that a resumed run writes the same."""

    step: int
    objective: Number
    golden_nll: Number
    """Nats per token."""
    golden_logp: Number
    """Nats per response."""
    rejected_logp: Number
    tokens: int
    packs: int
    dual_tokens: int
    """Forward tokens of the dual split's batch."""
    dual_selected: Number
    """Share of its records whose golden response has the highest log-probability per token."""
    router_aux_loss: NotRequired[Number]
    """Unweighted, and not in `objective`; the number of experts that a token is sent to, where they are used evenly."""
    grad_norm: Number
    lr: Number
    records: int
    dual_digest: int
    """Of the dual state after the step."""
    dimensions: dict[str, DimensionRow]
    constraints: dict[str, ConstraintRow]
    """Of more than 64, those that press."""
    all_constraints: NotRequired[TogetherRow]
    chain: NotRequired[str]
    """Checksum over all lines up to this one, from a start that equal runs share (`training.run_dir.identity`)."""


class SaveRow(TypedDict):
    """A checkpoint that has become whole in this step."""

    step: int
    bytes: int
    seconds: float
    """Until the slowest rank's part was on disk."""
    background: bool
    """Written beside the steps that followed."""
    bytes_per_second: float
    blocked_s: float
    """Seconds that training stood still for it."""


class TimingRow(TypedDict):
    """What a step cost. Without a GPU there is neither memory nor a share of its speed: null."""

    step: int
    seconds: float
    tokens_per_second: float
    reference_wait_s: float
    phases: dict[str, float]
    """Seconds of reference (scoring by a colocated one), forward, backward, dual (forward over the dual split),
    exchange, optimizer; means over ranks."""
    tokens_per_micro_step: float
    """Forward tokens per GPU and micro-step."""
    largest_pack: int
    prompt_tokens: int
    """Mean of the batch's records, as are `response_tokens`; `responses` is the most of one record."""
    response_tokens: int
    responses: int
    hfu: float | None
    """FLOPs of the step, recomputation included, over what all GPUs reach in a matrix product (`ceiling`)."""
    mfu: float | None
    """The same without what is computed twice."""
    ceiling: float | None
    """FLOP/s of an 8192^3 product on the GPU of rank 0, measured at its start."""
    memory_allocated: int | None
    """Bytes of tensors at the step's peak, on the GPU that needs most; `memory_reserved` as torch's allocator holds."""
    memory_reserved: int | None
    save: NotRequired[SaveRow]
    chain: NotRequired[str]


class MeanRow(TypedDict):
    """The mean with every edge counted in full, and a t interval for all constraints at once."""

    estimate: Number
    se: Number
    lower: Number
    upper: Number
    effective_records: Number
    skewness: Number
    lowest_margin: Number
    highest_value: Number
    clipped: Number
    """Share of the edges whose value lies above the bound."""


class Claim(TypedDict):
    """What files of every version have."""

    name: str
    dimensions: list[str]
    estimate: Number
    tolerance: Number
    lower: Number
    upper: Number
    se: Number
    records: int
    edges: int
    verdict: Literal["satisfied", "violated", "undecided"]
    extra_records: int | None


class VerdictRow(Claim, total=False):
    """One constraint on held-out records, every edge counted up to the bound; tolerances from lower to upper would be
    undecided."""

    mean: MeanRow


class WinRow(TypedDict):
    """Share of a dimension's edges with a margin above 0, and its lower bound for all dimensions at once."""

    rate: Number
    lower: Number
    edges: int
    records: int


class HeldoutRow(TypedDict):
    """Means over the held-out edges of one dimension, with standard errors clustered by record."""

    edges: int
    records: int
    loss: Number
    loss_se: Number
    margin: Number
    margin_se: Number
    accuracy: Number
    accuracy_se: Number


class RateRow(TypedDict):
    """A share of n records with its Wilson interval."""

    rate: Number
    lower: Number
    upper: Number
    n: int


class SelectionRow(TypedDict):
    """How often the golden response has the highest log-probability: over all records, and per mask ("A+E")."""

    overall: RateRow
    masks: dict[str, RateRow]


class EarlyCertificate(TypedDict):
    """What files of every version have."""

    confidence: float
    constraints: list[VerdictRow]
    dimensions: dict[str, HeldoutRow]
    selection: SelectionRow
    heldout_records: int


class MarginsFile(TypedDict):
    """The part of certificate.json that follows from the held-out margins alone; see `CertificateFile`."""

    confidence: float
    bound: float
    constraints: list[VerdictRow]
    dimensions: dict[str, HeldoutRow]
    wins: dict[str, WinRow]
    masks: dict[str, list[VerdictRow]]


class CertificateFile(EarlyCertificate, total=False):
    """certificate.json"""

    bound: float
    """Up to what an edge counts."""
    prompts: int
    rarest: Number
    """3 / prompts: kinds of prompts rarer than that may be absent."""
    wins: dict[str, WinRow]
    masks: dict[str, list[VerdictRow]]
    """Verdicts per mask, with a correction of their own."""
