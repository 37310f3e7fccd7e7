"""Do the intervals cover, and are biased judges named? Ratings from another generator and link than the program's.

    python benchmarks/psychometrics.py contrasts --replications 20
    python benchmarks/psychometrics.py clean favours halo missing middle --replications 20
    python benchmarks/psychometrics.py equal --replications 20

A rating is the number of cutpoints below location plus normal noise (cumulative probit), where the program has the
logits of adjacent categories. Units differ; truths are multiplied by the slope of the adjacent-category model that is
nearest to the generator, found once per design by maximum likelihood at known locations.

contrasts   6 models x 20 items x 3 samples x 2 dimensions x 3 judges; model x item sd 0.8, response sd 0.4: coverage
            and rms z of contrasts to the first model, on these prompts and on new ones
clean       6 x 40 x 1 x 2 x 3 without a bias; and with one in the first judge:
favours     it adds 1.2 to the second model
halo        it adds one normal effect, sd 1.2, to both dimensions of a response
missing     it drops seven in ten of the responses in the lowest third of quality
middle      its cutpoints lie twice as far apart
equal       8 equal models in 4 dimensions: how often any contrast excludes zero, and any claim is made
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import Figure, Recorder
from scipy.optimize import minimize

from dpeer.eval.irt import Options, estimate
from dpeer.eval.irt.result import Result

CUTPOINTS = np.array([-1.5, -0.5, 0.5, 1.5])
WIDER = 2.0
FAVOUR = 1.2
HALO = 1.2
DROPPED = 0.7
BIASED, FAVOURED = "judge0", "model1"


@dataclass(frozen=True)
class Design:
    models: int = 6
    items: int = 40
    samples: int = 1
    dimensions: int = 2
    judges: int = 3
    s_theta: float = 0.7
    s_beta: float = 0.8
    s_v: float = 0.0
    s_u: float = 0.6
    s_severity: float = 0.5
    bias: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.models, self.items, self.samples, self.dimensions, self.judges


DESIGNS = {
    "contrasts": Design(items=20, samples=3, s_v=0.8, s_u=0.4),
    "clean": Design(),
    **{bias: Design(bias=bias) for bias in ("favours", "halo", "missing", "middle")},
    "equal": Design(models=8, dimensions=4, s_theta=0.0),
}


def ratings(design: Design, seed: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A table of scores 1 to 5, and contrasts to the first model [M - 1, D] on new prompts and on these."""
    rng = np.random.default_rng(seed)
    m, q, s, d, j = design.shape
    theta = design.s_theta * rng.standard_normal((m, d))
    v = design.s_v * rng.standard_normal((m, q, d))
    u = design.s_u * rng.standard_normal((m, q, s, d))
    beta = design.s_beta * rng.standard_normal((q, d))
    severity = design.s_severity * rng.standard_normal((j, 1)) + 0.15 * rng.standard_normal((j, d))
    quality = theta[:, None, None] + (v - beta)[:, :, None] + u  # [M, Q, S, D]
    location = quality[..., None] - severity.T  # [..., J]
    cut = np.tile(CUTPOINTS, (j, 1))
    kept = np.ones(design.shape, bool)
    if design.bias == "favours":
        location[1, ..., 0] += FAVOUR
    elif design.bias == "halo":
        location[..., 0] += HALO * rng.standard_normal((m, q, s, 1))
    elif design.bias == "missing":
        overall = quality.mean(axis=-1)
        poor = overall < np.quantile(overall, 1 / 3)
        kept[..., 0] &= ~(poor & (rng.random(poor.shape) < DROPPED))[..., None]
    elif design.bias == "middle":
        cut[0] *= WIDER
    score = 1 + (location + rng.standard_normal(design.shape) > np.moveaxis(cut, 1, 0)[:, None, None, None, None]).sum(
        axis=0
    )
    index = np.argwhere(kept)
    names = ("model", "item", "sample", "dimension", "judge")
    table = pd.DataFrame(
        {n: [f"{n}{i:02d}" if n == "item" else f"{n}{i}" for i in index[:, k]] for k, n in enumerate(names)}
    )
    table["sample"], table["score"] = index[:, 2], score[kept]
    these = theta + v.mean(axis=1)
    return table, {"new": theta[1:] - theta[0], "these": these[1:] - these[0]}


def slope(design: Design) -> float:
    """Logits of the program per unit of the generator: the adjacent-category model nearest to it."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(sum(getattr(design, f"s_{name}") ** 2 for name in ("theta", "beta", "v", "u", "severity")))
    x = spread * rng.standard_normal(100_000)
    y = (x + rng.standard_normal(len(x)) > CUTPOINTS[:, None]).sum(axis=0)
    k = np.arange(len(CUTPOINTS) + 1)

    def loss(parameters: np.ndarray) -> float:
        logits = parameters[0] * k * x[:, None] - np.concatenate([[0.0], np.cumsum(parameters[1:])])
        return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(x)), y]).mean())

    return float(minimize(loss, np.r_[0.7, CUTPOINTS], method="BFGS").x[0])


def covered(result: Result, truth: dict[str, np.ndarray], unit: float) -> dict[str, float]:
    rows: dict[str, float] = {}
    table = result.contrasts
    for kind, suffix in (("new", ""), ("these", "_these")):
        if f"contrast{suffix}" not in table:
            continue
        target = unit * truth[kind].ravel()  # model, then dimension, as in the table
        mean, low, high = (table[f"contrast{suffix}{end}"].to_numpy() for end in ("", "_low", "_high"))
        rows[f"coverage_{kind}"] = float(((low <= target) & (target <= high)).mean())
        rows[f"z2_{kind}"] = float((((mean - target) / ((high - low) / 3.92)) ** 2).mean())
        rows[f"width_{kind}"] = float((high - low).mean())
    return rows


def flags(result: Result, bias: str) -> dict[str, float]:
    found = result.tables["biases"]
    named = found[(found["kind"] == bias) & (found["judge"] == BIASED)]
    if bias == "favours":
        named = named[named["model"] == FAVOURED]
    kinds = {
        f"any_{kind}": float((found["kind"] == kind).any())
        for kind in ("favours", "halo", "items", "missing", "middle")
    }
    return {"named": float(len(named) > 0), "any": float(len(found) > 0)} | kinds


def replicate(name: str, seed: int, options: Options, unit: float) -> dict[str, float]:
    from dpeer.eval.irt.claims import claims

    table, truth = ratings(DESIGNS[name], seed)
    start = time.process_time()
    result = estimate(table, "model0", options=replace(options, seed=seed + 1))
    contrast = result.contrasts
    green = replace(result, gate=result.gate | {"green": True})
    return {
        "seed": seed,
        "green": float(result.gate["green"]),
        "cpu_s": round(time.process_time() - start + result.facts["cpu_seconds"], 1),
        "rhat": result.gate["rhat_max"] or float("nan"),
        "any_interval": float(((contrast["contrast_low"] > 0) | (contrast["contrast_high"] < 0)).any()),
        "any_claim": float(len(claims(green)) > 0),
        **covered(result, truth, unit),
        **flags(result, DESIGNS[name].bias),
    }


def figures_of(name: str, frame: pd.DataFrame, means: pd.Series) -> Iterator[Figure]:
    """Coverage with its 95 % interval over replications, and the shares that the study is about."""
    for column in means.index[means.index.str.startswith("coverage_")]:
        half = 1.96 * frame[column].std(ddof=1) / np.sqrt(len(frame)) if len(frame) > 1 else np.nan
        ends = (means[column] - half, means[column] + half) if np.isfinite(half) else (None, None)
        title = f"{name}: coverage of 95 % intervals, {column.removeprefix('coverage_')} prompts"
        yield Figure(title, means[column], "share", "higher", low=ends[0], high=ends[1])
    if DESIGNS[name].bias:
        yield Figure(f"{name}: the planted bias is named", means["named"], "share", "higher")
    else:
        yield Figure(f"{name}: a bias is named where none is", means["any"], "share", "lower")
    if name == "equal":
        yield Figure(f"{name}: anything is claimed of equal models", means["any_claim"], "share", "lower")
    yield Figure(f"{name}: a replication", means["cpu_s"], "CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=DESIGNS)
    parser.add_argument("--replications", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="JSON lines, a replication each")
    recorder = Recorder(parser)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    options = Options(chains=arguments.chains, warmup=arguments.warmup, draws=arguments.draws)
    for name in arguments.studies:
        unit, rows = slope(DESIGNS[name]), []
        for seed in range(arguments.seed, arguments.seed + arguments.replications):
            rows.append(replicate(name, seed, options, unit))
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(json.dumps({"study": name} | rows[-1]) + "\n")
        frame = pd.DataFrame(rows).drop(columns="seed")
        means = frame.mean()
        figures += figures_of(name, frame, means)
        print(f"{name}: {len(frame)} replications, unit {unit:.2f}")
        for column, value in means.items():
            label = column.replace("z2_", "rms z ").replace("_", " ")
            print(f"  {label:20} {np.sqrt(value) if column.startswith('z2') else value:.3f}")
    recorder.write(arguments, figures)


if __name__ == "__main__":
    main()
