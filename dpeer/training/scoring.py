"""Log-probabilities of many records by a group of ranks, under ZeRO-3's rule that all ranks run the same forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dpeer.data.layout import Layout, plan
from dpeer.data.packing import Pack, build_pack, dummy_pack, split_by_sample
from dpeer.data.tokenize import TokenTree
from dpeer.training.calls import Scores
from dpeer.training.calls import merge as merge
from dpeer.training.pulse import Pulse
from dpeer.training.world import World


def local_packs(trees: Sequence[TokenTree], world: World, budget: int, layout: Layout = "tree") -> Iterator[Pack]:
    """The packs of this rank's team, each made when it is taken, and dummies up to the same number on every rank (known
    without communication)."""
    planned, team = plan(trees, world.teams, budget, layout), world.team
    mine = planned[world.place]
    for items in mine:
        yield build_pack([trees[i] for i in items], items).cut(team.rank, team.size).to(world.device)
    for _ in range(max(1, *map(len, planned)) - len(mine)):
        yield dummy_pack().cut(team.rank, team.size).to(world.device)


@torch.no_grad()
def score(
    forward: Callable[[Pack], Tensor],
    trees: Sequence[TokenTree],
    world: World,
    budget: int,
    pulse: Pulse | None = None,
    layout: Layout = "tree",
    everyone: bool = False,
) -> Scores:
    """This rank's share of the scores; the ranks' shares together cover every record exactly once, or, for `everyone`,
    once on each rank of a team."""
    pulse = pulse or Pulse()
    scores: Scores = {}
    for pack in local_packs(trees, world, budget, layout):
        values = forward(pack).tolist()
        if everyone or world.speaks:
            scores.update(zip(pack.samples, split_by_sample(values, pack.response_counts), strict=True))
        pulse.beat()
    return scores
