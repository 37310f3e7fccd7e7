"""dpeer's side of step_vs_trl.py: the whole training step under ZeRO-3, or the bare model step with torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from meter import Meter, finish, job

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.data.packing import build_pack
from dpeer.model.lm import build_lm
from dpeer.model.tree_lm import TreeLM
from dpeer.objective.preference import edge_loss
from dpeer.training import world
from dpeer.training.prepare import Prepared, prepare
from dpeer.training.rank import TrainingRank
from dpeer.training.reference import Reference, cache_path, read_cache, write_cache
from dpeer.training.scoring import merge


def fill_cache(config: Config, here: world.World) -> None:
    data = prepare(config).train
    write_cache(cache_path(config, data), merge([Reference(config, here).score(data.trees)], len(data.trees)))


def product(config: Config, here: world.World, meter: Meter) -> Prepared:
    """TrainingRank under DeepSpeed ZeRO-3 with one rank: statistics, dual update and ledger entry included."""
    rank = TrainingRank(config, here)
    meter.count(rank.policy.engine.module._backbone[0], "policy")
    if rank.reference:
        meter.count(rank.reference.engine.module._backbone[0], "reference")
    else:
        rank.read_cache()
    meter.start()
    for _ in range(rank.policy.steps):
        meter.step_done(rank.train_step()["objective"])
    return rank.prepared


def bare(config: Config, meter: Meter) -> Prepared:
    """Tree forward and backward in plain torch, with the optimizer and the clipping of TRL's default."""
    prepared, spec = prepare(config), config.training.optimizer
    data = prepared.train
    policy = build_lm(config.model, config.seed)
    meter.count(policy._backbone[0], "policy")
    reference: TreeLM | None = None
    if config.cluster.reference == "colocated":
        reference = build_lm(config.model, config.seed, reference=True)
        meter.count(reference._backbone[0], "reference")
    cached = {} if reference else dict(zip(data.trees, read_cache(cache_path(config, data), data) or [], strict=True))
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True
    )
    meter.start()
    for step in range(config.training.total_steps(len(data.trees))):
        trees = prepared.train_batch(config, step)
        pack = build_pack(trees, range(len(trees)))
        with torch.no_grad():
            values = [v for t in trees for v in cached[t]] if cached else []
            known = reference(pack) if reference else torch.tensor(values, dtype=torch.float64)
        rewards = config.objective.beta * (policy(pack) - known)
        loss = edge_loss(rewards[pack.better] - rewards[pack.worse], config.objective).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), spec.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        meter.step_done(loss.item())
    return prepared


def pairs(config: Config, prepared: Prepared) -> Iterator[tuple[list[int], list[int], list[int]]]:
    for step in range(config.training.total_steps(len(prepared.train.trees))):
        for tree in prepared.train_batch(config, step):
            for _, better, worse in tree.edges:
                yield list(tree.prompt), list(tree.responses[better]), list(tree.responses[worse])


def main() -> None:
    torch.set_num_threads(1)
    spec, meter = job(), Meter()
    config = load_config(spec["recipe"], [f"cluster.reference={spec['reference']}"])
    if spec["step"] == "bare":
        finish(meter.result(pairs(config, bare(config, meter))))
        return
    here = world.alone(config.cluster.timeout_s)
    if spec["step"] == "fill_cache":
        fill_cache(config, here)
        finish({})
    else:
        finish(meter.result(pairs(config, product(config, here, meter))))
    world.stop()


if __name__ == "__main__":
    main()
