"""The policy worker: one rank of the model in training, with its copy of the dual state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dpeer.config import Config
from dpeer.data.layout import computed
from dpeer.data.packing import Pack, all_forward_tokens, all_responses
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ClusterError, ConfigError, Diverged
from dpeer.model.balance import balance, occurrences, routed
from dpeer.model.families import causal_lm
from dpeer.model.team import ALONE
from dpeer.objective.constraints import Weights
from dpeer.training.calls import References, Scores
from dpeer.training.choice import policy_choice, policy_engine, team_size
from dpeer.training.engine import learning_rate
from dpeer.training.exchange import StepTotals, exchange
from dpeer.training.meter import Meter
from dpeer.training.prepare import Prepared
from dpeer.training.pulse import Pulse
from dpeer.training.samples import greedy
from dpeer.training.scoring import local_packs, merge, score
from dpeer.training.world import World, in_teams, sum_over_ranks

IDENTITY = {"fp32": 1e-4, "bf16": 2e-2}  # largest difference of equal models per token, as a mean over MANY tokens
MANY = 100
CANARIES = 8
"""Records, at most, that the start-up check takes to reach MANY tokens; and copies of a response in one pack."""
FLOOR = {"fp32": 1e-4, "bf16": 5e-3}
CUT = 256
"""Tokens of a prompt and of a response, at most, that one rank computes alone to check what its team does."""
TIMES_NOISE = 5.0
"""The start-up check allows so many times the rounding that it measures, FLOOR at least, and no more than so many
times IDENTITY."""


def allowance(dtype: str, tokens: int) -> float:
    """Largest difference of equal models, in nats per token of `tokens`: rounding errors are independent, so that a
    mean over few tokens scatters more."""
    return IDENTITY[dtype] * math.sqrt(max(1.0, MANY / max(1, tokens)))


class TreeMismatch(ConfigError):
    """The model computes a response beside its siblings differently from the same response alone."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What is known of a global batch before any forward: its records, edge counts [D] and golden tokens."""

    trees: list[TokenTree]
    edge_counts: Tensor
    golden_tokens: int


class Policy:
    """One rank. Every method is collective: all ranks of the group call it with the same arguments."""

    def __init__(self, config: Config, prepared: Prepared, world: World) -> None:
        self.config, self.prepared, self.data = config, prepared, prepared.train
        self.world = in_teams(world, team_size(config, world.size))
        self.steps = config.training.total_steps(len(self.data.trees))
        self.lagrangian = prepared.lagrangian(config)
        self.choice = policy_choice(config, world)
        self.engine = policy_engine(config, self.choice, self.world)
        self.step = 0  # optimizer steps done
        self.layout = self.engine.module.layout
        self.meter = Meter(config, self.engine.module, world.device)
        self.pulse = Pulse()
        self.check_tree()

    def close(self) -> None:
        """Free the model; the object is of no further use."""
        self.engine.close()

    def check_tree(self) -> None:
        """Records of median length must score the same as trees and as one tree per response, each in its own pack, up
        to what rounding does: to the same response in a pack of the tree's shape, followed by copies of itself."""
        trees = canaries(self.data.trees)
        if self.world.team.size > 1 and not trees:  # nothing to tell of trees, but of teams
            trees = canaries(self.data.trees, least=1)
        if not trees:
            return
        single = [replace(t, responses=(r,), edges=(), golden=0) for t in trees for r in t.responses]
        copies = [max(2, min(CANARIES, round(t.response_tokens / len(r)))) for t in trees for r in t.responses]
        padded = [replace(t, responses=n * t.responses) for t, n in zip(single, copies, strict=True)]
        self.engine.eval()
        scores = self._scored([*trees, *single, *padded], self.world)
        whole, cut = self._both(trees)
        self.engine.train()
        together = [value for values in scores[: len(trees)] for value in values]
        alone, copied = ([s[0] for s in scores[i:][: len(single)]] for i in (len(trees), len(trees) + len(single)))
        tokens = sum(len(t.responses[0]) for t in single)
        scale = max(1.0, sum(map(abs, alone)) / tokens)
        gap, noise = (
            sum(abs(a - b) for a, b in zip(alone, x, strict=True)) / tokens / scale for x in (together, copied)
        )
        dtype = self.config.model.dtype
        allowed = max(FLOOR[dtype], TIMES_NOISE * min(noise, IDENTITY[dtype]))
        if not gap <= allowed:
            worst = max(range(len(alone)), key=lambda i: abs(together[i] - alone[i]))
            raise TreeMismatch(
                f"model {self.config.model.path}: a response has log-prob {together[worst]:.6g} beside its siblings, "
                f"{alone[worst]:.6g} alone; over {tokens} tokens the mean difference is {gap:.1e} nats, rounding makes "
                f"{noise:.1e}. The model keeps state across positions, or its positions depend on the sequence length: "
                "it cannot be trained as a tree. Choose a model with plain causal attention."
            )
        shared = sum(abs(a - b) for a, b in zip(whole, cut, strict=True)) / max(1, len(whole)) / scale
        if not shared <= allowed:
            raise TreeMismatch(
                f"model {self.config.model.path}: shared by {self.world.team.size} ranks, tokens differ in log-prob by "
                f"{shared:.1e} nats on average from what one rank computes; {allowed:.1e} are rounding. Set "
                "training.sequence_parallel to 1, and please report the model."
            )

    def _scored(self, trees: Sequence[TokenTree], world: World) -> list[list[float]]:
        """Each in a pack of its own; the same on every rank."""
        shares: list[Scores] = [{}] * world.size
        dist.all_gather_object(shares, score(self.engine, trees, world, budget=1, layout=self.layout))
        return merge(shares, len(trees))

    def _both(self, trees: Sequence[TokenTree]) -> tuple[list[float], list[float]]:
        """Log-probabilities per token of beginnings and ends of records: by a rank alone, and by its team."""
        if self.world.team.size == 1:
            return [], []
        short = [replace(t, prompt=t.prompt[-CUT:], responses=tuple(r[:CUT] for r in t.responses)) for t in trees]
        tokens = [len(r) for t in short for r in t.responses]
        both = (self._scored(short, world) for world in (replace(self.world, team=ALONE), self.world))
        whole, cut = ([v / n for v, n in zip(chain.from_iterable(x), tokens, strict=True)] for x in both)
        return whole, cut

    def batch(self, step: int) -> BatchPlan:
        trees = self.prepared.train_batch(self.config, step)
        dims = [d for t in trees for d, _, _ in t.edges]
        counts = torch.bincount(torch.tensor(dims, dtype=torch.int64), minlength=len(self.data.dimensions))
        return BatchPlan(trees, counts, sum(len(t.responses[t.golden]) for t in trees))

    def train_step(self, references: References | None) -> dict[str, Any]:
        """One optimizer step; returns its ledger entry. `references` is None for objective `sft`.

        The caller has started the meter.
        """
        objective, batch = self.config.objective, self.batch(self.step)
        before = self.lagrangian
        weights = before.weights(batch.edge_counts)
        lr = learning_rate(self.step, self.steps, self.config.training.optimizer)

        totals = self.forward_backward(batch, weights, references)
        totals = totals + self.dual_totals(len(batch.trees), references)
        self.meter.mark("dual")
        self.pulse.enter(f"step {self.step + 1}: statistics", beating=True)
        totals = exchange(totals, before.state.digest(), self.step + 1, self.world)
        self.meter.mark("exchange")
        self.check_finite(totals["objective"], "objective")
        self.pulse.enter(f"step {self.step + 1}: optimizer", beating=True)
        norm = self.engine.step(lr)
        self.meter.mark("optimizer")
        self.check_finite(norm, "gradient norm")

        if objective.kind == "preference":
            self.check_identity(totals)
            self.lagrangian = before.updated(totals.dual if self.config.follows_split else totals.table)
        self.step += 1
        self.pulse.step = self.step
        scalars = totals.readable() | {
            "grad_norm": norm,
            "lr": lr,
            "records": self.step * self.config.training.records_per_step,
        }
        if self.config.model.router_aux_loss:
            scalars["router_aux_loss"] = totals["router_aux_loss"]
        self.pulse.enter(f"step {self.step} done")
        dual = totals.dual if self.config.dual_records else None
        return before.ledger_entry(self.step, totals.table, self.lagrangian, scalars, dual)

    def forward_backward(self, batch: BatchPlan, weights: Weights, references: References | None) -> StepTotals:
        """Gradients of this rank's packs, and their statistics. The host never waits for the device here, but
        once where experts are balanced by a loss: for the counts that all ranks share (`routed`)."""
        totals = StepTotals.zeros(len(self.data.dimensions), self.world.device)
        self.pulse.enter(f"step {self.step + 1}: forward and backward", beating=True)
        packs = list(local_packs(batch.trees, self.world, self.config.training.tokens_per_pack, self.layout))
        routed = self.routed(packs)
        for i, pack in enumerate(packs):
            loss, part = self.pack_loss(pack, self.engine(pack), batch, weights, references)
            if not self.world.speaks:
                part = StepTotals.zeros(len(self.data.dimensions), self.world.device)
            if routed is not None:
                term = balance(self.engine.module.router_logits, occurrences(pack, self.layout), routed)
                loss, part["router_aux_loss"] = loss + self.config.model.router_aux_loss * term, term.detach()
            self.meter.mark("forward", computed(pack, self.layout))
            self.engine.backward(loss, last=i == len(packs) - 1)
            self.meter.mark("backward")
            totals = totals + part
            self.pulse.beat()
        return totals

    @torch.no_grad()
    def routed(self, packs: Sequence[Pack]) -> Tensor | None:
        """Collective. Where routers send the tokens of all ranks in this step (`model.balance.routed`), by a forward
        pass; None where experts are not balanced by a loss."""
        if not self.config.model.router_aux_loss:
            return None
        lm, total = self.engine.module, torch.zeros((), device=self.world.device)
        causal: Any = causal_lm(lm.model)
        for pack in packs:
            self.engine(pack)
            held = occurrences(pack, self.layout)
            total = total + routed(lm.router_logits, held, causal.num_experts_per_tok)
            self.pulse.beat()
        return sum_over_ranks(total).to(self.world.device)

    def pack_loss(
        self, pack: Pack, logps: Tensor, batch: BatchPlan, weights: Weights, references: References | None
    ) -> tuple[Tensor, StepTotals]:
        """This pack's term of the global objective (edge weight w_d / n_d with global n_d), and its statistics."""
        totals = StepTotals.zeros(len(self.data.dimensions), logps.device)
        totals["forward_tokens"], totals["packs"] = computed(pack, self.layout), 1
        if not pack.samples:
            return (logps * 0).sum(), totals
        golden, rejected = logps[pack.golden_at], logps[pack.rejected_at].detach()
        loss = golden.sum() * (-weights.golden / batch.golden_tokens)
        totals["golden_logp_sum"], totals["golden_count"] = golden.detach().sum(), len(golden)
        totals["golden_tokens"] = pack.golden_tokens
        totals["rejected_logp_sum"], totals["rejected_count"] = rejected.sum(), len(rejected)
        if references is not None and self.config.objective.kind == "preference":
            reference = self.reference_of(pack, logps, references)
            totals["identity_gap"] = (logps.detach() - reference).abs().sum()
            totals["response_tokens"] = len(pack.targets)
            margins = self.margins(pack, logps, reference)
            term, table = self.lagrangian.loss(margins, pack.dims, pack.edge_sample, batch.edge_counts, weights)
            loss = loss + term
            totals.table += table
        totals["objective"] = loss.detach()
        return loss, totals

    @torch.no_grad()
    def dual_totals(self, place: int, references: References | None) -> StepTotals:
        """Statistics of this step's batch of the dual split, whose references begin at `place`; nothing is trained."""
        totals = StepTotals.zeros(len(self.data.dimensions), self.world.device)
        trees = self.prepared.dual_batch(self.config, self.step) if self.config.dual_records else []
        if not trees or references is None:
            return totals
        self.pulse.enter(f"step {self.step + 1}: dual split", beating=True)
        self.engine.eval()
        for pack in list(local_packs(trees, self.world, self.config.training.tokens_per_pack, self.layout)):
            logps = self.engine(pack)
            if self.world.speaks:
                totals.add("dual_tokens", computed(pack, self.layout))
            if pack.samples and self.world.speaks:
                margins = self.margins(pack, logps, self.reference_of(pack, logps, references, place))
                totals.dual += self.lagrangian.statistics(margins, pack.dims, pack.edge_sample)
                totals.add("dual_records", len(pack.samples))
                totals.add("dual_selected", golden_first(pack, logps))
            self.pulse.beat()
        self.engine.train()
        return totals

    def reference_of(self, pack: Pack, logps: Tensor, references: References, place: int = 0) -> Tensor:
        """[R] fp64; sample s of the pack stands at `place` + s in the references."""
        values = [v for s in pack.samples for v in references[place + s]]
        return torch.tensor(values, dtype=torch.float64).to(logps.device, non_blocking=True)

    def margins(self, pack: Pack, logps: Tensor, reference: Tensor) -> Tensor:
        """[E] reward units."""
        rewards = self.config.objective.beta * (logps - reference)
        if self.config.objective.length_normalised:
            rewards = rewards / pack.response_tokens
        return rewards[pack.better] - rewards[pack.worse]

    def check_finite(self, value: float, name: str) -> None:
        """The same value on every rank, so all stop together; what was saved before is untouched."""
        if not math.isfinite(value):
            raise Diverged(
                f"step {self.step + 1}: the {name} is {value}. Training has diverged, and nothing after this would "
                "mean anything. Lower training.optimizer.lr or objective.beta, or use model.dtype fp32 to see whether "
                "precision is the cause. The last checkpoint is kept."
            )

    def check_identity(self, totals: StepTotals) -> None:
        """Before its first update the policy equals the reference: every margin is 0 and every loss ln 2."""
        if self.step or not self.config.model.reference_is_base:
            return
        gap = totals["identity_gap"] / totals["response_tokens"]
        limit = IDENTITY[self.config.model.dtype]
        if not gap <= limit:
            raise ClusterError(
                f"step 1: policy and reference differ by {gap:.2e} nats per token (allowed {limit:.0e}), but must be "
                "equal before the first update. The reference log-probs come from other weights, another tokenizer or "
                "another precision: delete the run's reference cache and check model.reference_path."
            )

    def score(self, trees: Sequence[TokenTree]) -> Scores:
        """This rank's share of the policy's log-probabilities of records."""
        with self.pulse.during("scoring", beating=True):
            self.engine.eval()
            budget = self.config.training.tokens_per_pack
            scores = score(self.engine, trees, self.world, budget, self.pulse, self.layout)
            self.engine.train()
        return scores

    def reply(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        """Tokens of a greedy reply to each record's prompt, the same on every rank."""
        with self.pulse.during("sampling replies", beating=True):
            self.engine.eval()
            budget = self.config.training.tokens_per_pack
            replies = greedy(self.engine, trees, self.world, budget, self.pulse, self.layout)
            self.engine.train()
        return replies


def canaries(trees: Sequence[TokenTree], least: int = 2) -> list[TokenTree]:
    """Records of `least` responses or more from the one of median length on, until their responses have MANY tokens; a
    single answer of few tokens says little of a model that computes in bf16."""
    costs, counts = all_forward_tokens(trees), all_responses(trees)
    several = np.flatnonzero(counts >= least)
    ordered = several[np.argsort(costs[several], kind="stable")]
    middle = len(ordered) // 2
    chosen: list[TokenTree] = []
    for i in np.concatenate([ordered[middle:], ordered[:middle][::-1]])[:CANARIES]:
        chosen.append(trees[int(i)])
        if sum(t.response_tokens for t in chosen) >= MANY:
            break
    return chosen


def golden_first(pack: Pack, logps: Tensor) -> Tensor:
    """Records whose golden response has strictly the highest log-probability per token, counted on the device."""
    values = logps / pack.response_tokens
    golden = values[pack.golden_at]
    best = torch.full_like(golden, -math.inf)
    best = best.scatter_reduce(0, pack.rejected_record, values[pack.rejected_at], "amax")
    return (golden > best).sum()
