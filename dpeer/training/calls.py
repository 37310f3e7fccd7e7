"""What a driver may call on ranks, and what it needs of a group of them: the one list of these names.

A driver calls `ranks.call(phase, PolicyCalls.load, folder)`: the name of the function travels to the ranks, and the
type checker sees name and arguments. `rank.TrainingRank` and `rank.ReferenceRank` answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar

from dpeer.config import Config
from dpeer.errors import ClusterError

P = ParamSpec("P")
T = TypeVar("T")
Scores = dict[int, list[float]]
"""Position in the given records -> log-probability (nats) of each response."""
References = Mapping[int, Sequence[float]]
"""Place in the global batch -> reference log-probability of each response."""
LONG_S = 24 * 3600.0
"""For work of one rank that no collective waits on: a dead worker is noticed at once all the same."""


def merge(shares: Sequence[Scores], records: int) -> list[list[float]]:
    """Put the ranks' shares together; every record must have been scored exactly once."""
    merged: Scores = {}
    for share in shares:
        merged |= share
    if len(merged) != records or sum(map(len, shares)) != records:
        raise AssertionError(f"{sum(map(len, shares))} scores for {records} records")
    return [merged[i] for i in range(records)]


class WorkerLost(ClusterError):
    """A worker died, fell silent, stalled or lost its connection: the group is gone, the last checkpoint is not.

    `report` holds the stacks of all ranks where they could be asked, `details` what the failed ones have said last.
    """

    def __init__(self, message: str, report: str = "", details: str = "") -> None:
        super().__init__(message)
        self.report, self.details = report, details


class DeviceLost(WorkerLost):
    """A GPU failed: its `host` (Ray's id of it: `node`) should not be used again."""

    def __init__(self, message: str, details: str, host: str, node: str) -> None:
        super().__init__(message, details=details)
        self.host, self.node = host, node


class WorkerFailed(ClusterError):
    """A worker raised an exception that is nobody's known fault. `details` holds its traceback."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True, slots=True)
class Phase:
    """What the ranks are doing, for messages, and how many seconds it may take (None: the group's usual limit)."""

    name: str
    limit_s: float | None = None


class SaveCost(TypedDict):
    """Of one checkpoint, over all ranks. `seconds`: until the slowest rank's part was on disk."""

    bytes: int
    seconds: float
    background: bool
    """On this rank; the foreground where its host had no room for a copy."""


class Exported(TypedDict):
    """What an export has come to. notes: what was mended, in words. files: checksums of the tensors of each file of a
    model too large to be reloaded, which `publish` still has to read back; None: it is done."""

    notes: list[str]
    files: dict[str, str] | None


class PolicyCalls(Protocol):
    """Collective unless said otherwise: every rank of the policy group is called with the same arguments."""

    def read_cache(self) -> None: ...
    def timed_step(self, references: References | None = None) -> tuple[dict[str, Any], Any]:
        """One optimizer step: its ledger entry, and the rank's `meter.StepCost`."""
        ...

    def score_train(self, start: int, stop: int) -> Scores: ...
    def score_train_reference(self, start: int, stop: int) -> Scores: ...
    def score_start(self, name: str, start: int, stop: int) -> Scores:
        """Of records of a split by the reference that the policy is until its first step."""
        ...

    def score_heldout(self) -> Scores: ...
    def score_heldout_reference(self) -> Scores: ...
    def cached_heldout(self) -> list[list[float]]:
        """Not collective."""
        ...

    def score_dual(self) -> Scores: ...
    def score_dual_reference(self) -> Scores: ...
    def cached_dual(self) -> list[list[float]]:
        """Not collective."""
        ...

    def proven(self, policy: list[list[float]], reference: list[list[float]], look: int) -> bool:
        """Not collective. Whether these scores of the dual split prove every tolerance, at the k-th look."""
        ...

    def sample(self) -> list[dict[str, str]]: ...
    def certificate(self, policy: list[list[float]], reference: list[list[float]], margins: Path) -> Any:
        """Not collective; writes the held-out margins to that file. A `rows.CertificateFile`, or None without held-out
        records."""
        ...

    def save(self, folder: Path) -> SaveCost: ...
    def begin_save(self, folder: Path) -> None:
        """Copy what a checkpoint holds, and write the copy beside the steps that follow."""
        ...

    def finish_save(self) -> SaveCost:
        """Wait for what `begin_save` began."""
        ...

    def commit(self, temporary: Path, final: Path) -> None:
        """Not collective."""
        ...

    def load(self, folder: Path) -> int: ...
    def blank(self) -> None: ...
    def export(self, folder: Path, adapter: bool = False) -> Exported:
        """`adapter`: only that of a LoRA run."""
        ...


class ReferenceCalls(Protocol):
    """The same for the reference group."""

    def score_step(self, step: int) -> Scores: ...
    def score_train(self, start: int, stop: int) -> Scores: ...
    def score_split(self, name: str, start: int, stop: int) -> Scores: ...
    def score_dual(self) -> Scores: ...
    def score_heldout(self) -> Scores: ...


class Ranks(Protocol):
    """All ranks of one role. Errors: WorkerLost, WorkerFailed, or a rank's own DpeerError."""

    @property
    def size(self) -> int: ...

    def start_build(self, config: Config, role: str | None = None) -> Any:
        """Begin to load data and model; `finish_build` waits."""
        ...

    def finish_build(self, pending: Any) -> dict[str, Any]:
        """Steps of the run and the facts on which all ranks agree."""
        ...

    def build(self, config: Config, role: str | None = None) -> dict[str, Any]: ...

    def start(self, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Begin a collective call; `wait` for it later."""
        ...

    def wait(self, phase: str, pending: Any) -> list[Any]: ...

    def call(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """Call a method of every rank; one result per rank."""
        ...

    def call_first(
        self, phase: Phase | str, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method that is not collective on rank 0 alone."""
        ...


class Workers(Protocol):
    """The groups of a run, made when first needed."""

    def start(self, *roles: str) -> Sequence[Ranks]: ...
    def policy(self) -> Ranks: ...
    def reference(self) -> Ranks: ...
    def close(self) -> None: ...
