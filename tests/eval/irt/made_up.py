"""Ratings simulated from known parameters, with draws that scatter around them: a posterior without a sampler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dpeer.eval.irt.types import Options, Posterior, Ratings


def made_up(
    models: int = 4,
    items: int = 30,
    judges: int = 3,
    dimensions: int = 2,
    scores: int = 5,
    chains: int = 4,
    draws: int = 150,
    noise: float = 0.0,
    seed: int = 0,
    s_u: float = 0.0,
    repeats: int = 1,
    keep: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
    options: Options | None = None,
    **truth: np.ndarray,
) -> Posterior:
    """A full crossing, thinned by `keep` (columns -> mask), rated under `truth`; draws = truth + noise."""
    rng = np.random.default_rng(seed)
    M, Q, J, D, K = models, items, judges, dimensions, scores
    pairs = np.array([(m, q) for m in range(M) for q in range(Q)])
    grid = np.stack(np.meshgrid(np.arange(M * Q), np.arange(D), np.arange(J), np.arange(repeats), indexing="ij"), -1)
    r, d, j, again = grid.reshape(-1, 4).T
    column = {"model": pairs[r, 0], "item": pairs[r, 1], "response": r, "dimension": d, "judge": j, "repeat": again}
    chosen = np.ones(len(r), dtype=bool) if keep is None else keep(column)
    column = {name: values[chosen] for name, values in column.items()}
    m, q, r, d, j = (column[name] for name in ("model", "item", "response", "dimension", "judge"))

    def centred(*shape: int, sd: float) -> np.ndarray:
        x = rng.normal(0, sd, shape)
        return x - x.mean(axis=0)

    values = {
        "theta": centred(M, D, sd=1.0),
        "mu": np.full(D, 0.2),
        "beta": centred(Q, D, sd=0.7),
        "severity": centred(J, D, sd=0.5),
        "severity_judge": np.zeros(J),
        "log_alpha": np.zeros(J),
        "delta": np.zeros(D),
        "tau": np.tile(np.linspace(-1.5, 1.5, K - 1) if K > 2 else np.zeros(1), (J, D, 1)),
        "correlation": np.eye(D),
        "s_theta": np.ones(D),
        "s_beta": np.full(D, 0.7),
        "s_severity": np.array(0.5),
    } | {name: np.asarray(value, dtype=float) for name, value in truth.items()}
    values.setdefault("tau_average", values["tau"].mean(axis=0))
    if s_u:
        values["s_u"] = np.full(D, s_u)
        values["u"] = rng.normal(0, s_u, (M * Q, D))
    length = rng.normal(size=M * Q) if "length" in values else np.zeros(M * Q)
    reverse = column["repeat"] % 2 == 1
    eta = values["mu"][d] + values["theta"][m, d] - values["beta"][q, d] - values["severity"][j, d] - values["delta"][d]
    if s_u:
        eta += values["u"][r, d]
    if "length" in values:
        eta += values["length"][d] * length[r]
    if "order" in values:
        eta += values["order"] * (reverse - 0.5)
    steps = np.exp(values["log_alpha"])[j, None] * (eta[:, None] - values["tau"][j, d])
    logits = np.concatenate([np.zeros((len(r), 1)), steps.cumsum(axis=1)], axis=1)
    category = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)

    ratings = Ratings(
        models=tuple(f"model{i}" for i in range(M)),
        items=tuple(f"item{i}" for i in range(Q)),
        judges=tuple(f"judge{i}" for i in range(J)),
        dimensions=tuple("TAEC"[:D]),
        criteria=tuple((name, "all") for name in "TAEC"[:D]),
        scale=tuple(range(1, K + 1)) if K > 2 else (0, 1),
        response_model=pairs[:, 0],
        response_item=pairs[:, 1],
        response_length=length,
        response=r,
        dimension=d,
        criterion=d,
        judge=j,
        category=category,
        reversed=reverse,
        own_family=np.zeros(len(r), dtype=bool),
        own_model=np.zeros(len(r), dtype=bool),
        statuses={"ok": len(r)},
        status_by_judge={f"judge{i}": {"ok": int((j == i).sum())} for i in range(J)},
    )

    def scatter(value: np.ndarray) -> np.ndarray:
        return value + noise * rng.normal(size=(chains, draws, *value.shape))

    sampler = {
        "divergent": np.zeros((chains, draws)),
        "energy": rng.normal(size=(chains, draws)),
        "treedepth": np.full((chains, draws), 4.0),
        "stepsize": np.full((chains, draws), 0.2),
    }
    facts = {"u_draws": list(range(chains * draws))} if s_u else {}
    return Posterior(ratings, options or Options(), {k: scatter(v) for k, v in values.items()}, sampler, facts)
