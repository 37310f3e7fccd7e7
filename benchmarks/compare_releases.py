"""Is the difference between two releases recovered when judges have drifted, and what does not linking cost?

usage: python benchmarks/compare_releases.py [--replications 20] [--judges 4] [--drifted 1] [--drift 1.0] [--seed 0]
       [--calibrated]

Both releases rate a base model, another and an own one. In the later one the own model has changed, the other has
become stronger by a logit, new items (more than half) are harder by 0.5 logits, and `drifted` judges are stricter by
`drift`. Each release is fitted once, and the two are linked by the base model, by items and judges alone, or not at
all: by level (mu + theta) and by ability (theta), as the two reports have them. Recovered: all dimensions of the true
change lie in their intervals, at 95 % together (Bonferroni); coverage: of plain 95 % intervals. --calibrated tries the
linking alone, on many replications in little time: in place of a fit stand normal draws around estimates that err by as
much as the draws scatter.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from common import Figure, Recorder, print_table

from dpeer.errors import ConfigError
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.equating import draws_of, positions
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.releases import compare
from dpeer.eval.irt.types import Floats, Options, Posterior

# In alphabetical order, as a fit has them.
MODELS, DIMENSIONS, STEPS = ("base", "other", "own"), ("A", "T"), np.array([-1.5, -0.5, 0.5, 1.5])
ITEMS, SHARED, HARDER, STRONGER, S_U = 14, 6, 0.5, 1.0, 0.6
ERRS = {"mu": 0.15, "theta": 0.2, "beta": 0.3, "severity": 0.15, "log_alpha": 0.08}
"""Errors of the calibrated fits, about those of fits of this size."""
OPTIONS = Options(chains=2, warmup=200, draws=200)


@dataclass(frozen=True)
class Release:
    """The truth behind one: ability [M, D], difficulty [Q, D], severity [J, D], alpha [J]."""

    ability: Floats
    items: list[str]
    difficulty: Floats
    severity: Floats
    alpha: Floats


def rated(r: Release, rng: np.random.Generator) -> pd.DataFrame:
    """Scores 1 to 5 by adjacent-category logits."""
    ability, items, difficulty, severity, alpha = r.ability, r.items, r.difficulty, r.severity, r.alpha
    m, q, j, d = (a.ravel() for a in np.indices((len(ability), len(items), len(severity), len(DIMENSIONS))))
    u = S_U * rng.standard_normal((len(ability), len(items), len(DIMENSIONS)))
    eta = ability[m, d] - difficulty[q, d] - severity[j, d] + u[m, q, d]
    steps = alpha[j, None] * (eta[:, None] - STEPS)
    logits = np.concatenate([np.zeros((len(eta), 1)), steps.cumsum(axis=1)], axis=1)
    score = 1 + (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    names = {"model": MODELS, "item": items, "judge": [f"judge{i}" for i in range(len(severity))]}
    columns = {
        name: np.array(values, dtype=object)[i] for (name, values), i in zip(names.items(), (m, q, j), strict=True)
    }
    return pd.DataFrame(columns | {"dimension": np.array(DIMENSIONS, dtype=object)[d], "score": score})


def releases(judges: int, drifted: int, drift: float, rng: np.random.Generator) -> tuple[Release, Release, Floats]:
    """Either release, and the own model's true change [D]."""
    D = len(DIMENSIONS)
    ability, change = rng.normal(0.2, 0.8, (3, D)), rng.normal(0, 0.5, D)
    difficulty = rng.normal(0, 0.7, (2 * ITEMS - SHARED, D))
    difficulty[ITEMS:] += HARDER
    severity, alpha = rng.normal(0, 0.5, (judges, D)), rng.normal(0, 0.25, judges)
    alpha = np.exp(alpha - alpha.mean())  # in the unit of a fit, so that the true change is in its logits
    names = [f"item{i:02d}" for i in range(len(difficulty))]
    later, stricter = ability.copy(), severity.copy()
    later[1:] += [np.full(D, STRONGER), change]
    stricter[:drifted] += drift
    old, new = slice(0, ITEMS), slice(ITEMS - SHARED, None)
    return (
        Release(ability, names[old], difficulty[old], severity, alpha),
        Release(later, names[new], difficulty[new], stricter, alpha),
        change,
    )


def fitted(release: Release, rng: np.random.Generator, calibrated: bool) -> Posterior:
    ratings = encode(rated(release, rng))
    if not calibrated:
        return fit(ratings, replace(OPTIONS, seed=int(rng.integers(1, 10**6))))
    r, shape = release, (1, 1000)
    zero = r.ability.mean(axis=0) - r.difficulty.mean(axis=0) - r.severity.mean(axis=0)
    blocks = {"theta": r.ability, "beta": r.difficulty, "severity": r.severity, "log_alpha": np.log(r.alpha)}
    draws = {"mu": zero + ERRS["mu"] * (rng.standard_normal(2) + rng.standard_normal((*shape, 2)))}
    for name, truth in blocks.items():
        values = truth + ERRS[name] * (rng.standard_normal(truth.shape) + rng.standard_normal((*shape, *truth.shape)))
        draws[name] = values - values.mean(axis=2, keepdims=True)
    draws["s_alpha"] = np.full(shape, 0.25)
    return Posterior(ratings, Options(), draws, {"divergent": np.zeros(shape)}, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replications", type=int, default=20)
    parser.add_argument("--judges", type=int, default=4)
    parser.add_argument("--drifted", type=int, default=1)
    parser.add_argument("--drift", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calibrated", action="store_true")
    recorder = Recorder(parser)
    given = parser.parse_args()
    alpha = 0.05 / len(DIMENSIONS)
    found: dict[str, list[tuple[bool, float, float, float]]] = {}
    flagged = []
    for seed in range(given.seed, given.seed + given.replications):
        rng = np.random.default_rng(seed)
        early, late, change = releases(given.judges, given.drifted, given.drift, rng)
        before, now = (fitted(release, rng, given.calibrated) for release in (early, late))
        draws = {}
        for name, same in (("base model", ("base",)), ("items and judges", ())):
            try:
                made = compare(before, now, same=same, pairs=[("own", "own")], seed=seed, reasons=())
            except ConfigError as error:
                print(f"   {name}: {str(error)[:90]}")
                found.setdefault(name, []).append((False, np.nan, np.nan, np.nan))
                continue
            if made.dimensions != DIMENSIONS:
                print(f"   {name}: {made.notes[0]}")
                found.setdefault(name, []).append((False, np.nan, np.nan, np.nan))
                continue
            draws[name] = made.difference[:, 0]
            if not same:
                drift = made.tables["drift"].query("kind == 'judges' and drifted")
                flagged.append(drift.groupby("name").size().to_dict())
        count = len(draws["base model"])
        old, new = (positions(p, DIMENSIONS, count)[:, 2] for p in (before, now))
        draws["none: levels"] = new - old
        draws["none: abilities"] = draws_of(now, "theta", count)[:, 2] - draws_of(before, "theta", count)[:, 2]
        for name, values in draws.items():
            low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2], axis=0)
            inner = np.quantile(values, [0.025, 0.975], axis=0)
            error = values.mean(axis=0) - change
            print(f"   {name}: error / sd {np.round(error / values.std(axis=0), 1)}, sd {values.std(axis=0).round(2)}")
            inside = (inner[0] <= change) & (change <= inner[1])
            record = (
                bool(((low <= change) & (change <= high)).all()),
                float(inside.mean()),
                float((error**2).mean()),
                float((inner[1] - inner[0]).mean() / 2),
            )
            found.setdefault(name, []).append(record)
        print(seed, {name: rows[-1][0] for name, rows in found.items()}, "moved:", flagged[-1:], flush=True)
    rows, figures = [], []
    for name, records in found.items():
        whole, share, square, half = (np.array(column, dtype=float) for column in zip(*records, strict=True))
        figures.append(Figure(f"linked by {name}: change recovered", whole.mean(), "share", "higher"))
        figures.append(Figure(f"linked by {name}: coverage of 95 % intervals", np.nanmean(share), "share", "higher"))
        rows.append(
            (
                name,
                f"{int(whole.sum())} of {len(whole)}",
                f"{np.nanmean(share):.0%}",
                f"{np.sqrt(np.nanmean(square)):.3f}",
                f"{np.nanmean(half):.3f}",
            )
        )
    print_table(
        f"{given.drifted} of {given.judges} judges stricter by {given.drift}",
        ("link", "recovered", "coverage", "RMSE", "half-width"),
        rows,
        "errors and half-widths of 95 % intervals in logits",
    )
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
