"""Does `dpeer eval plan` predict how wide intervals will be? Predicted half-widths against those of fits.

usage: python benchmarks/plan_accuracy.py [--designs 20] [--seed 0]

Each design draws its own numbers of models, items, judges, repeats and scores, and its own variances; it is simulated
and fitted once, with the shipped program. Predicted from assumptions: from
the variances that the simulation was told, with abilities and judges at the quantiles of their distributions; from the
truth: with the abilities and judges that were drawn; from its own variances: from what the fit found, as a pilot of the
same size does. Realised: root mean square over pairs of models and dimensions of the half-width of the 95 % interval of
their difference.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import combinations

import numpy as np
from common import Figure, Recorder, print_table

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.precision import Z95, Components, Design, assumed, components_of, difference_sd
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options, Posterior

SOURCES = ("from assumptions", "from the truth", "from its own variances")
OPTIONS = Options(chains=2, warmup=200, draws=200)


def drawn(rng: np.random.Generator) -> Spec:
    judges = int(rng.integers(2, 5))
    items = int(rng.integers(40, 101))
    return Spec(
        models=int(rng.integers(3, 5)),
        items=items,
        dimensions=1,
        judges=judges,
        categories=int(rng.choice([3, 5, 5, 7])),
        repeats=int(rng.choice([1, 1, 2])),
        linked=(items // 3, 2) if judges > 2 and rng.random() < 0.5 else None,
        mu=float(rng.uniform(-0.5, 1.0)),
        s_theta=float(rng.uniform(0.5, 1.2)),
        s_beta=float(rng.uniform(0.4, 1.0)),
        s_u=float(rng.uniform(0.3, 1.0)),
        s_severity=float(rng.uniform(0.2, 0.8)),
    )


def realised(posterior: Posterior) -> float:
    theta = posterior.flat("theta")
    squares = []
    for a, b in combinations(range(theta.shape[1]), 2):
        low, high = np.quantile(theta[:, a] - theta[:, b], [0.025, 0.975], axis=0)
        squares.append(((high - low) / 2) ** 2)
    return float(np.sqrt(np.mean(squares)))


def predicted(components: list[Components], spec: Spec) -> float:
    """Of a linked design, the two kinds of items add their information."""
    parts = [(spec.items, spec.judges)]
    if spec.linked:
        parts = [(spec.linked[0], spec.judges), (spec.items - spec.linked[0], spec.linked[1])]
    designs = [Design(items, judges, spec.samples, spec.repeats) for items, judges in parts]
    return float(Z95 * np.sqrt(np.mean([difference_sd(c, *designs) ** 2 for c in components])))


def known(spec: Spec, truth: dict[str, Floats]) -> list[Components]:
    """The components that were drawn, per dimension."""
    return [
        replace(
            assumed(spec),
            position=truth["mu"][d] + truth["theta"][:, d],
            severity=truth["severity"][:, d],
            alpha=np.exp(truth["log_alpha"]),
            steps=truth["tau"][:, d],
        )
        for d in range(spec.dimensions)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--designs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    recorder = Recorder(parser)
    given = parser.parse_args()
    rows, ratios = [], []
    for seed in range(given.seed, given.seed + given.designs):
        spec = drawn(np.random.default_rng(seed))
        table, truth = simulate(spec, seed)
        posterior = fit(encode(table), replace(OPTIONS, seed=seed + 1))
        real = realised(posterior)
        sources = ([assumed(spec)], known(spec, truth), components_of(posterior))
        ratios.append([predicted(source, spec) / real for source in sources])
        sizes = f"{spec.models} x {spec.items} x {spec.judges} x {spec.repeats}, K = {spec.categories}"
        rows.append((f"{sizes}{', linked' * bool(spec.linked)}", f"{real:.3f}", *(f"{r:.2f}" for r in ratios[-1])))
        print(rows[-1], flush=True)
    within = (np.abs(np.array(ratios) - 1) <= 0.15).sum(axis=0)
    print_table(
        f"Within 15 % of {len(rows)}: {', '.join(f'{n} {name}' for n, name in zip(within, SOURCES, strict=True))}",
        ("models x items x judges x repeats", "realised", *SOURCES),
        rows,
        "half-widths of 95 % intervals in logits; the other columns are predicted / realised",
    )
    figures = [
        Figure(f"half-widths predicted within 15 % {name}", n / len(rows), "share", "higher")
        for n, name in zip(within, SOURCES, strict=True)
    ]
    figures += [
        Figure.median(f"predicted over realised {name}", [row[i] for row in ratios], "x")
        for i, name in enumerate(SOURCES)
    ]
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
