"""Severities by `--thresholds common` and `item` beside those of marginal maximum likelihood, from the formula alone.

    python benchmarks/severities_vs_ml.py                     # simulated ratings
    python benchmarks/severities_vs_ml.py --xstest FOLDER     # and XSTest, folder with prompts.csv and ratings.csv

The model is the program's with equal discriminations, ability - difficulty - severity + u - tau_k in logits of adjacent
scores. Difficulties, response effects u and (item) deviations of an item's steps are normal and integrated out by
Gauss-Hermite quadrature, everything else is maximised; nothing of dpeer is used. Steps of items are integrated for
at most three scores. One dimension at a time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import Figure, Recorder

from dpeer.eval.irt import Options
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Ratings

NODES = {"u": 41, "beta": 21, "step": 11}
TINY = Spec(models=12, items=60, dimensions=1, judges=6, s_alpha=0, s_tau=0, s_dev=0, s_severity=0.8, s_u=0.6)
SIMULATED = {"common": TINY, "item": Spec(**{**{f: getattr(TINY, f) for f in TINY.__slots__}, "categories": 3})}


def hermite(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[name])
    return torch.tensor(nodes), torch.tensor(np.log(weights / weights.sum()))


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean()


def maximum_likelihood(r: Ratings, thresholds: str) -> np.ndarray:
    """Severities [J], summing to zero."""
    K, Q, M, J = len(r.scale), len(r.items), len(r.models), len(r.judges)
    if thresholds == "item" and K != 3:
        raise SystemExit(f"steps of items are integrated for three scores, not for {K}")
    pattern, given, of_response = patterns(r)
    response_item = torch.tensor(r.response_item)
    (u, u_w), (b, b_w) = hermite("u"), hermite("beta")
    s, s_w = hermite("step") if thresholds == "item" else (torch.zeros(1), torch.zeros(1))
    free = [torch.zeros(n, dtype=torch.double, requires_grad=True) for n in (M, J, K - 1, 3)]

    def loss() -> torch.Tensor:
        ability, severity, tau, log_sd = free
        place = (ability[:, None] - centred(severity)).reshape(-1)  # [M J]
        sd_u, sd_b, sd_s = torch.exp(log_sd)
        x = place[:, None, None, None] - sd_b * b[:, None, None] + sd_u * u  # [M J, beta, 1, u]
        steps = tau.reshape(-1, 1)
        if thresholds == "item":  # two steps, whose deviations sum to zero: +- one number of sd sd_s / sqrt(2)
            steps = steps + torch.tensor([[1.0], [-1.0]]) * sd_s / math.sqrt(2) * s
        passed = torch.cat([torch.zeros(1, steps.shape[1]), steps.cumsum(0)])  # [K, step]
        k = torch.arange(K)
        each = torch.log_softmax(k * x[..., None] - passed.T[:, None], -1)  # [M J, beta, step, u, K]
        each = each.movedim(-1, 1).flatten(0, 1)[given]
        size = int(pattern.max()) + 1
        of_pattern = torch.zeros(size, *each.shape[1:], dtype=torch.double).index_add(0, pattern, each)
        by_response = torch.logsumexp(of_pattern + u_w, -1)[of_response]
        by_item = torch.zeros(Q, *by_response.shape[1:], dtype=torch.double).index_add(0, response_item, by_response)
        return -torch.logsumexp(by_item + b_w[:, None] + s_w, (1, 2)).sum() / len(r)

    optimiser = torch.optim.LBFGS(
        free, max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    severity: np.ndarray = centred(free[1]).detach().numpy()
    return severity


def patterns(r: Ratings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Responses that the same judges scored alike, of one model, share a term of the likelihood: the pattern and the
    (model, judge, score) of each of its ratings, and the pattern of each response."""
    rows: list[list[int]] = [[] for _ in r.response_model]
    for response, code in zip(r.response, (r.model * len(r.judges) + r.judge) * len(r.scale) + r.category, strict=True):
        rows[response].append(int(code))
    kinds: dict[tuple[int, ...], int] = {}
    of_response = [kinds.setdefault(tuple(sorted(codes)), len(kinds)) for codes in rows]
    pattern = [number for codes, number in kinds.items() for _ in codes]
    return torch.tensor(pattern), torch.tensor([code for codes in kinds for code in codes]), torch.tensor(of_response)


def data_sets(xstest: Path | None) -> Iterator[tuple[str, str, Ratings]]:
    for thresholds, spec in SIMULATED.items():
        yield "simulated", thresholds, encode(simulate(spec, 1)[0])
    if xstest:
        from dpeer.eval.elsewhere.xstest import xstest_ratings

        table = xstest_ratings(xstest)
        for dimension in sorted(table["dimension"].unique()):
            for thresholds in SIMULATED:
                yield f"XSTest, {dimension}", thresholds, encode(table, [dimension])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xstest", type=Path)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    recorder = Recorder(parser)
    arguments = parser.parse_args()
    figures = []
    sampling = {name: getattr(arguments, name) for name in ("chains", "warmup", "draws")}
    sampling["people_scale"] = False
    for name, thresholds, ratings in data_sets(arguments.xstest):
        theirs = maximum_likelihood(ratings, thresholds)
        for prior in ("shrunken", "wide"):
            options = Options(model="rasch", thresholds=thresholds, severity_prior=prior, **sampling)
            ours = fit(ratings, options).flat("severity")[:, :, 0].mean(axis=0)
            gap = np.sqrt(np.mean((ours - theirs) ** 2))
            r = np.corrcoef(ours, theirs)[0, 1]
            values = " ".join(f"{a:+.3f}/{b:+.3f}" for a, b in zip(ours, theirs, strict=True))
            title = f"{name}, {thresholds} thresholds, {prior} prior"
            figures.append(Figure(f"{title}: correlation of severities", r, "share", "higher"))
            figures.append(Figure(f"{title}: RMSE to maximum likelihood", gap, "logits", "lower"))
            print(f"{name:20} {thresholds:6} {prior:8} r {r:.5f}  RMSE {gap:.4f}  ours/ML {values}", flush=True)
    recorder.write(arguments, figures)


if __name__ == "__main__":
    main()
