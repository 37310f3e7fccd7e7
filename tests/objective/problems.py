"""Random convex problems whose constrained optimum is found without the code under test.

D dimensions over a policy of P numbers: edge e of record n and dimension d has margin a_nd . z; the anchor is the mean
cross-entropy of K-way choices plus a small ridge. Everything is convex, so KKT points are optima.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize, nnls

RIDGE = 0.02
RECORDS = 64


@dataclass
class Problem:
    """features [N, D, P], masks [N, D], choices [M, K, P] of which the first is right; anchor: weight of the choices.
    `conflict`: dimensions that cannot meet their tolerances together."""

    features: np.ndarray
    masks: np.ndarray
    choices: np.ndarray
    anchor: float
    tolerances: np.ndarray = field(default_factory=lambda: np.zeros(0))
    multipliers: np.ndarray = field(default_factory=lambda: np.zeros(0))
    conflict: tuple[int, ...] = ()

    @property
    def dimensions(self):
        return self.masks.shape[1]

    def losses(self, z):
        return (self.masks / self.masks.sum(0) * np.logaddexp(0, -self.features @ z)).sum(0)

    def slopes(self, z):
        pull = -self.masks / self.masks.sum(0) / (1 + np.exp(self.features @ z))
        return np.einsum("nd,ndp->dp", pull, self.features)

    def likelihood(self, z):
        scores = self.choices @ z
        return (np.logaddexp.reduce(scores, axis=1) - scores[:, 0]).mean() + RIDGE / 2 * z @ z

    def likelihood_slope(self, z):
        scores = self.choices @ z
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        chances[:, 0] -= 1
        return np.einsum("mk,mkp->p", chances, self.choices) / len(scores) + RIDGE * z

    def best(self, multipliers):
        """The policy that minimises sum (1/D + lambda_d) L_d + anchor x likelihood, by BFGS."""
        weights = 1 / self.dimensions + multipliers
        return minimize(
            lambda z: weights @ self.losses(z) + self.anchor * self.likelihood(z),
            np.zeros(self.features.shape[2]),
            jac=lambda z: weights @ self.slopes(z) + self.anchor * self.likelihood_slope(z),
            method="BFGS",
            options={"gtol": 1e-9, "maxiter": 2000},
        ).x

    def least_violation(self, members):
        """Smallest largest L_d - tolerance_d over `members`, by SLSQP on the epigraph."""
        members = list(members)
        return minimize(
            lambda x: x[-1] + 1e-5 * x[:-1] @ x[:-1],
            np.append(np.zeros(self.features.shape[2]), 1.0),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda x: (self.tolerances + x[-1] - self.losses(x[:-1]))[members]},
            options={"maxiter": 300},
        ).x[-1]

    def balance_of_forces(self, z):
        """Multipliers of the violated-or-tight constraints from stationarity at z, and what is left unexplained."""
        tight = np.flatnonzero(self.losses(z) > self.tolerances - 1e-5)
        force = self.slopes(z).mean(0) + self.anchor * self.likelihood_slope(z)
        found = np.zeros(self.dimensions)
        found[tight], rest = nnls(self.slopes(z)[tight].T, -force) if len(tight) else ([], np.linalg.norm(force))
        return found, rest


def draw(seed):
    """A problem without tolerances: 3 to 6 dimensions, some opposed, an anchor from 0 to 3."""
    random = np.random.default_rng(seed)
    dims = int(random.integers(3, 7))
    params = int(random.integers(dims, 2 * dims + 2))
    aims = random.normal(size=(dims, params))
    aims /= np.linalg.norm(aims, axis=1, keepdims=True)
    for _ in range(int(random.integers(1, 3))):
        one, other = random.choice(dims, 2, replace=False)
        share = random.uniform(0.4, 0.8)
        aims[other] = (1 - share) * aims[other] - share * aims[one]
        aims[other] /= np.linalg.norm(aims[other])
    return random, aims, params


def finish(random, aims, params):
    dims = len(aims)
    masks = np.zeros((RECORDS, dims))
    for row in masks:
        row[random.choice(dims, int(random.integers(2, dims + 1)), replace=False)] = 1
    spread, scale = random.uniform(0.1, 0.5), random.uniform(1, 3)
    features = (aims + spread * random.normal(size=(RECORDS, dims, params))) * scale
    choices = random.normal(size=(40, 5, params)) * random.uniform(0.3, 1)
    return Problem(features, masks, choices, float(random.choice([0.0, 0.5, 1.0, 3.0])))


def feasible(count):
    """Problems whose multipliers are known, as they are chosen first: z = best(lambda), tolerance = L(z) where
    lambda > 0, and above it elsewhere. Only well-posed ones, whose optimum is within reach of 400 Adam steps."""
    problems, seed = [], 0
    while len(problems) < count:
        random, aims, params = draw(seed)
        problem = finish(random, aims, params)
        seed += 1
        active = random.choice(problem.dimensions, int(random.integers(1, problem.dimensions)), replace=False)
        chosen = np.zeros(problem.dimensions)
        chosen[active] = np.exp(random.uniform(np.log(0.1), np.log(3), len(active)))
        z = problem.best(chosen)
        losses = problem.losses(z)
        problem.tolerances = np.where(chosen > 0, losses, losses + random.uniform(0.05, 0.3, problem.dimensions))
        problem.multipliers = chosen
        recovered, rest = problem.balance_of_forces(z)
        stiffness = np.linalg.svd(problem.slopes(z)[active], compute_uv=False).min()
        sound = rest < 1e-4 and np.abs(recovered - chosen).max() < 0.01 and stiffness > 0.12
        if sound and np.abs(z).max() < 4 and losses[active].max() < 0.65:
            problems.append(problem)
    return problems


def infeasible(count, independent=False):
    """Two or three dimensions that pull against each other and are asked for more than they can have together; the
    others can be met beside them. `independent`: the others do not pull along the conflict."""
    problems, seed = [], 0
    while len(problems) < count:
        random, aims, params = draw(seed)
        size = 3 if seed % 3 == 0 and len(aims) > 3 else 2
        seed += 1
        group = sorted(int(d) for d in random.choice(len(aims), size, replace=False))
        aims[group[-1]] = -aims[group[:-1]].sum(0)
        if independent:
            basis, _ = np.linalg.qr(aims[group[:-1]].T)
            for d in set(range(len(aims))) - set(group):
                aims[d] -= basis @ (basis.T @ aims[d])
        aims /= np.linalg.norm(aims, axis=1, keepdims=True)
        problem = finish(random, aims, params)
        heavy = np.zeros(problem.dimensions)
        heavy[group] = 20.0
        level = problem.losses(problem.best(heavy))
        problem.tolerances = level + random.uniform(0.05, 0.3, problem.dimensions)
        problem.tolerances[group] = random.uniform(0.3, 0.5, size)
        problem.conflict = tuple(group)
        others = [d for d in range(problem.dimensions) if d not in group]
        smaller = [[d for d in group if d != left] for left in group] if size > 2 else []
        minimal = all(problem.least_violation([*part, *others]) < -0.02 for part in smaller)
        if minimal and problem.least_violation(range(problem.dimensions)) > 0.06:
            problems.append(problem)
    return problems


def train(problem, lagrangian, steps, batch=None, lr=0.05, seed=0):
    """AdamW under a cosine with 10 % warm-up, as the shipped recipes have it, on the objective of the product.

    Returns (policy, final Lagrangian, ledger)."""
    features, masks = torch.tensor(problem.features), torch.tensor(problem.masks, dtype=torch.bool)
    choices = torch.tensor(problem.choices)
    z = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([z], lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    random, ledger, order = np.random.default_rng(seed), [], []
    for step in range(steps):
        if batch is not None and len(order) < batch:
            order = list(random.permutation(len(features)))
        rows = torch.arange(len(features)) if batch is None else torch.tensor([order.pop() for _ in range(batch)])
        records, dims = masks[rows].nonzero(as_tuple=True)
        margins = features[rows[records], dims] @ z
        counts = torch.bincount(dims, minlength=problem.dimensions)
        weights = lagrangian.weights(counts)
        loss, table = lagrangian.loss(margins, dims, records, counts, weights)
        scores = choices @ z
        likelihood = (scores.logsumexp(1) - scores[:, 0]).mean() + RIDGE / 2 * z @ z
        warmup = round(0.1 * steps)
        shape = (step + 1) / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
        optimizer.param_groups[0]["lr"] = lr * shape
        optimizer.zero_grad()
        (loss + weights.golden * likelihood).backward()
        torch.nn.utils.clip_grad_norm_([z], 1.0)
        optimizer.step()
        after = lagrangian.updated(table)
        ledger.append(lagrangian.ledger_entry(step + 1, table, after))
        lagrangian = after
    return z.detach().numpy(), lagrangian, ledger
