"""Are certificates true, and what do they cost? False verdicts, and the records needed, from margins with known truth.

usage: python benchmarks/certificate_coverage.py [--part false|wins|choice|power] [--repeats 600] [--seed 0]

Records have PersonaKnob's masks: the 11 sets of at least two of four dimensions, an edge per active dimension. `false`:
every tolerance equals the true mean, with pairs counted in full or up to the bound, so any "satisfied" is called false.
`wins`: lower bounds of win rates that lie above the truth. `choice`: the cell that looks best among five that are
equally good. `power`: how many records "satisfied" takes, against the interval that came before (t with Hall's
correction for skewness, Bonferroni over constraints and sides), which was no bound for rare, huge losses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from common import print_table
from numpy.random import Generator
from scipy import integrate, stats

from dpeer.config import Constraint, Objective
from dpeer.objective.certificate import Verdict, certify, win_rates
from dpeer.objective.constraints import build_constraints
from dpeer.objective.heldout import HeldoutEdges

DIMS = ("A", "T", "E", "C")
MASKS = np.array([[d in c for d in range(4)] for k in (2, 3, 4) for c in combinations(range(4), k)])
SIZES = (32, 60, 95, 220)
MOST_EDGES = 12
BOUND = Objective().certificate.bound
Array = Any


@dataclass(frozen=True)
class Family:
    """`parts`: marginal distribution of the margins (weight, distribution). `draw` gives margins [n, 4, edges], with
    dependence inside a record. `several`: 1 to 12 edges per dimension and record."""

    parts: tuple[tuple[float, Any], ...]
    draw: Callable[[Generator, int, int], Array]
    several: bool = False


def normal(rng: Generator, n: int, edges: int) -> Array:
    return 1 + 0.8 * rng.normal(size=(n, 1, 1)) + rng.normal(size=(n, 4, edges))


def rare(share: float, margin: float) -> Family:
    """A share of the prompts is lost in all dimensions."""

    def draw(rng: Generator, n: int, edges: int) -> Array:
        lost = rng.random((n, 1, 1)) < share
        return np.where(lost, margin, 2.5) + 0.3 * rng.normal(size=(n, 4, edges))

    return Family(((share, stats.norm(margin, 0.3)), (1 - share, stats.norm(2.5, 0.3))), draw)


def students(df: int) -> Family:
    return Family(((1.0, stats.t(df, 1)),), lambda rng, n, edges: 1 + rng.standard_t(df, size=(n, 4, edges)))


NORMAL = ((1.0, stats.norm(1, math.sqrt(1.64))),)
FAMILIES = {
    "normal, 1 edge per dimension": Family(NORMAL, normal),
    "N(3, 2.5^2), as after DPO": Family(
        ((1.0, stats.norm(3, 2.5)),), lambda rng, n, edges: 3 + 2.5 * rng.normal(size=(n, 4, edges))
    ),
    "normal, 1 to 12 edges": Family(NORMAL, normal, several=True),
    "t with 3 df": students(3),
    "t with 2 df": students(2),
    "5 % of prompts at -4, rest 2.5": rare(0.05, -4),
    "2 % of prompts at -6, rest 2.5": rare(0.02, -6),
}


def loss(margins: Array) -> Array:
    return np.logaddexp(0, -margins)


def expected(family: Family, value: Callable[[Array], Array]) -> float:
    """Exact mean of a value of the margin."""
    kink = -math.log(math.expm1(BOUND))
    cuts = (-math.inf, -50, kink, 0, 1, 2.5, 50, math.inf)

    def mean(dist: Any) -> float:
        parts = [integrate.quad(lambda m: value(m) * dist.pdf(m), a, b, limit=500)[0] for a, b in pairwise(cuts)]
        return math.fsum(parts)

    return sum(weight * mean(dist) for weight, dist in family.parts)


def layout(rng: Generator, n: int, several: bool) -> tuple[Array, Array]:
    """([n, 4, edges] bool: which edges there are, their number): masks, and 1 to 12 edges where there are several."""
    active = MASKS[rng.integers(0, len(MASKS), n)][:, :, None]
    if not several:
        return active, 1
    return active & (np.arange(MOST_EDGES) < rng.integers(1, MOST_EDGES + 1, size=(n, 4, 1))), MOST_EDGES


def heldout(margins: Array, there: Array) -> HeldoutEdges:
    record, dim, _ = np.nonzero(there)
    return HeldoutEdges(torch.tensor(margins[there]), torch.tensor(dim), torch.tensor(record))


def draw(family: Family, rng: Generator, n: int) -> HeldoutEdges:
    there, edges = layout(rng, n, family.several)
    return heldout(family.draw(rng, n, edges), there)


def verdicts(edges: HeldoutEdges, tolerance: float | dict[str, float], choices: int = 1) -> list[Verdict]:
    constraint = Constraint(tolerance=tolerance)
    return certify(
        edges, build_constraints(constraint, DIMS), Objective(constraint=constraint), choices=choices
    )  # fmt: skip


def satisfied(found: list[Verdict]) -> list[bool]:
    return [v.verdict == "satisfied" for v in found]


def former(edges: HeldoutEdges, tolerance: float, alpha: float = 0.05) -> list[bool]:
    """Whether the earlier certificate found each dimension satisfied; one edge per record and dimension."""
    found = []
    for d in range(4):
        x = loss(edges.margins[edges.dims == d].numpy())
        n, skewness = len(x), stats.skew(x)
        t = -stats.t.ppf(1 - alpha / 8, n - 1) / math.sqrt(n) - skewness / (6 * n)
        c = np.cbrt(1 + skewness * t)
        found.append(n >= 20 and x.mean() - x.std(ddof=1) * 3 * t / (c * c + c + 1) <= tolerance)
    return found


def false_claims(repeats: int, seed: int) -> None:
    rows = []
    for name, family in FAMILIES.items():
        truths = expected(family, loss), expected(family, lambda m: np.minimum(loss(m), BOUND))
        cells = []
        for n in SIZES:
            rng = np.random.default_rng([seed, n])
            wrong = np.zeros(3)
            for _ in range(repeats):
                edges = draw(family, rng, n)
                wrong[:2] += [any(satisfied(verdicts(edges, truth))) for truth in truths]
                wrong[2] += not family.several and any(former(edges, truths[0]))
            cells.append(" ".join(f"{w / repeats:.3f}" for w in wrong[: 2 if family.several else 3]))
        rows.append([name, " ".join(f"{t:.3f}" for t in truths), *cells])
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats)
    print_table(
        f'Share of certificates with a false "satisfied", {repeats} repetitions',
        ["margins", "truth: full, clipped", *(f"n = {n}" for n in SIZES)],
        rows,
        f"Tolerance at the full mean, at the mean up to {BOUND:g}; then the earlier interval at the full mean. "
        f"Allowed: {limit:.3f}.",
    )


def win_claims(repeats: int, seed: int) -> None:
    rows = []
    for name, family in FAMILIES.items():
        truth = sum(weight * dist.sf(0) for weight, dist in family.parts)
        cells = []
        for n in SIZES:
            rng = np.random.default_rng([seed, n])
            found = [win_rates(draw(family, rng, n), DIMS) for _ in range(repeats)]
            wrong = np.mean([any(w.lower > truth for w in wins.values()) for wins in found])
            low = np.median([w.lower for wins in found for w in wins.values()])
            cells.append(f"{wrong:.3f} ({low:.2f})")
        rows.append([name, f"{truth:.3f}", *cells])
    print_table(
        "Share of certificates with a lower bound of a win rate above the truth (median bound)",
        ["margins", "truth", *(f"n = {n}" for n in SIZES)],
        rows,
        f"{repeats} repetitions, four dimensions.",
    )


def choice_claims(repeats: int, seed: int, cells: int = 5) -> None:
    """Cells share their prompts: half of a margin's variance is the prompt's."""
    rows = []
    for mean, spread in ((1.0, 1.28), (3.0, 2.5)):
        truth = expected(Family(((1.0, stats.norm(mean, spread)),), normal), lambda m: np.minimum(loss(m), BOUND))
        for n in (95, 220, 1000):
            rng, wrong = np.random.default_rng([seed, n]), np.zeros(2)
            for _ in range(repeats):
                there, _ = layout(rng, n, several=False)
                prompt = rng.normal(size=(n, 4, 1))
                margins = [mean + spread * math.sqrt(0.5) * (prompt + rng.normal(size=(n, 4, 1))) for _ in range(cells)]
                worst = [max(loss(m[:, d][there[:, d]]).mean() for d in range(4)) for m in margins]
                chosen = heldout(margins[int(np.argmin(worst))], there)
                wrong += [any(satisfied(verdicts(chosen, truth, k))) for k in (1, cells)]
            rows.append([f"N({mean:g}, {spread:g}^2)", str(n), *(f"{w / repeats:.3f}" for w in wrong)])
    print_table(
        f'A false "satisfied" after choosing the best of {cells} cells',
        ["margins", "records", "uncorrected", "corrected"],
        rows,
        f"{repeats} repetitions; every tolerance equals the true mean up to {BOUND:g}.",
    )


def crossing(sizes: Array, power: Array, goal: float) -> float:
    """Records at which a power is reached, log-linear between the sizes; nan outside."""
    rising = np.maximum.accumulate(power)
    if not rising[0] < goal <= rising[-1]:
        return math.nan
    return float(np.exp(np.interp(goal, rising, np.log(sizes))))


def power(repeats: int, seed: int) -> None:
    rows = []
    for name in ("N(3, 2.5^2), as after DPO", "normal, 1 edge per dimension"):
        family = FAMILIES[name]
        truth = expected(family, loss)
        for distance in (0.05, 0.1, 0.15):
            sizes = np.geomspace(1.2, 12, 10) / distance**2
            rng, found = np.random.default_rng([seed, int(1000 * distance)]), np.zeros((len(sizes), 3))
            for i, n in enumerate(sizes):
                for _ in range(max(20, repeats // 4)):
                    edges, tolerance = draw(family, rng, int(n)), truth + distance
                    others = dict.fromkeys(DIMS, truth / 2) | {"A": tolerance}
                    found[i, 0] += np.mean(former(edges, tolerance))
                    found[i, 1] += np.mean(satisfied(verdicts(edges, tolerance)))
                    found[i, 2] += satisfied(verdicts(edges, others))[0]
            found /= max(20, repeats // 4)
            for goal in (0.5, 0.8):
                before, after, apart = (crossing(sizes, found[:, k], goal) for k in range(3))
                ratios = (f"{after:.0f} ({after / before:.2f})", f"{apart:.0f} ({apart / before:.2f})")
                rows.append([name, f"{distance:g}", f"{goal:.0%}", f"{before:.0f}", *ratios])
    print_table(
        'Records for a power of "satisfied" per constraint, and their ratio to the earlier interval',
        ["margins", "truth below tolerance", "power", "earlier", "now", "now, others violated"],
        rows,
        "All four dimensions are equally far below their tolerance; in the last column only one of them is.",
    )


PARTS = {"false": false_claims, "wins": win_claims, "choice": choice_claims, "power": power}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for part in given.part or PARTS:
        PARTS[part](given.repeats, given.seed)


if __name__ == "__main__":
    main()
