"""Step totals add up, survive the one all-reduce, and ranks whose dual state has parted are found in it."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from dpeer.errors import ClusterError
from dpeer.objective.statistics import DIM_FIELDS
from dpeer.training import exchange as module
from dpeer.training import world
from dpeer.training.exchange import SCALARS, StepTotals, exchange
from dpeer.training.world import World

TOP = 2**48 - 1  # the largest digest


def filled(start: float) -> StepTotals:
    totals = StepTotals.zeros(3)
    totals.table += torch.arange(start, start + totals.table.numel(), dtype=torch.float64).reshape(totals.table.shape)
    totals.dual += 2 * totals.table
    totals.scalars += torch.arange(len(SCALARS), dtype=torch.float64) * start
    return totals


def test_totals_start_at_zero_and_add() -> None:
    zero = StepTotals.zeros(3)
    assert zero.table.shape == (len(DIM_FIELDS), 3) and zero.table.dtype == zero.scalars.dtype == torch.float64
    assert not zero.table.any() and not zero.scalars.any()
    both = filled(1.0) + filled(10.0)
    assert torch.equal(both.table, filled(1.0).table + filled(10.0).table)
    assert torch.equal(both.scalars, filled(11.0).scalars)
    assert not zero.table.any()


def test_scalars_by_name() -> None:
    totals = StepTotals.zeros(1)
    for i, name in enumerate(SCALARS):
        totals[name] = i + 0.5
    assert [totals[name] for name in SCALARS] == [i + 0.5 for i in range(len(SCALARS))]
    with pytest.raises(ValueError, match="not in tuple"):
        totals["typo"] = 1.0


def test_readable_means() -> None:
    totals = StepTotals.zeros(1)
    values = {"objective": 0.7, "golden_logp_sum": -30.0, "golden_count": 3, "golden_tokens": 12}
    values |= {"rejected_logp_sum": -50.0, "rejected_count": 5, "forward_tokens": 99, "packs": 2}
    values |= {"dual_tokens": 70, "dual_records": 4, "dual_selected": 3}
    for name, value in values.items():
        totals[name] = value
    assert totals.readable() == {
        "objective": 0.7, "golden_nll": 2.5, "golden_logp": -10.0, "rejected_logp": -10.0, "tokens": 99, "packs": 2,
        "dual_tokens": 70, "dual_selected": 0.75,
    }  # fmt: skip
    assert isinstance(totals.readable()["tokens"], int)
    assert math.isnan(StepTotals.zeros(1).readable()["rejected_logp"])


def ranks(monkeypatch: pytest.MonkeyPatch, totals: list[StepTotals], digests: list[int]) -> list[StepTotals]:
    """Every rank's view: an all-reduce collects the vectors in a first round and gives their sum in a second."""
    sent: list[Tensor] = []

    def collect(vector: Tensor) -> Tensor:
        sent.append(vector.clone())
        return vector

    worlds = [World(r, len(totals), torch.device("cpu")) for r in range(len(totals))]
    monkeypatch.setattr(module, "sum_over_ranks", collect)
    for part, digest, here in zip(totals, [0] * len(totals), worlds, strict=True):
        exchange(part, digest, 1, here)
    offset = len(sent[0]) - len(totals)
    for rank, digest in enumerate(digests):
        sent[rank][offset + rank] = digest
    total = torch.stack(sent).sum(0)
    monkeypatch.setattr(module, "sum_over_ranks", lambda vector: total.clone())
    return [exchange(part, digest, 9, here) for part, digest, here in zip(totals, digests, worlds, strict=True)]


def test_sum_over_three_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [filled(1.0), filled(2.0), filled(4.0)]
    expected = parts[0] + parts[1] + parts[2]
    for found in ranks(monkeypatch, parts, [TOP] * 3):
        assert torch.equal(found.table, expected.table) and torch.equal(found.dual, expected.dual)
        assert torch.equal(found.scalars, expected.scalars)


@pytest.mark.parametrize("other", [TOP - 1, 0, TOP ^ (1 << 47)])
def test_different_digests_stop_the_run(monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """Down to the last of 48 bits; both values and the step are named."""
    with pytest.raises(ClusterError) as caught:
        ranks(monkeypatch, [filled(0.0), filled(0.0)], [TOP, other])
    text = str(caught.value)
    assert "step 9" in text and f"rank 0: {TOP:012x}" in text and f"rank 1: {other:012x}" in text


def one_rank(rank: int, port: int, folder: str) -> None:
    here = world.start(rank, 2, "127.0.0.1", port, 30, gpu=False)
    found = exchange(filled(1.0 + rank), TOP, 4, here)
    verdict: Any = "no error"
    try:
        exchange(filled(0.0), 5 + rank, 5, here)
    except ClusterError as error:
        verdict = str(error)
    torch.save((found.table, found.scalars, verdict), f"{folder}/{rank}.pt")
    world.stop()


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(one_rank, (port, str(tmp_path)), nprocs=2, start_method="fork")
    expected = filled(1.0) + filled(2.0)
    for rank in range(2):
        table, scalars, verdict = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(table, expected.table) and torch.equal(scalars, expected.scalars)
        assert "rank 0: 000000000005, rank 1: 000000000006" in verdict
