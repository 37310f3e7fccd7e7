"""Are abilities from comparisons and from ratings on one scale, and is the preference for a place recovered?

    python benchmarks/pairwise.py --replications 10 -o runs/pairwise

Each replication draws ratings and comparisons of the same responses from one truth (`irt.simulate`), and fits the
comparisons alone, the ratings alone, and both. Contrasts are to the first model. A study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import Figure, Recorder

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options

KINDS = ("pairs", "ratings", "both")


def replicate(spec: Spec, options: Options, free: bool, seed: int) -> list[dict[str, Any]]:
    """A row per kind of fit and parameter: truth, mean, low and high (95 %), sd."""
    table, truth = simulate(spec, seed)
    compared = table["other_model"].notna()
    parts = {"pairs": table[compared], "ratings": table[~compared], "both": table}
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        began = time.perf_counter()
        posterior = fit(encode(parts[kind]), replace(options, comparison_scale=free and kind == "both"))
        facts = {
            "seed": seed,
            "kind": kind,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu": posterior.facts["cpu_seconds"],
            "divergent": int(posterior.sampler["divergent"].sum()),
        }
        theta, known = posterior.flat("theta"), truth["theta"]
        values = {"ability": (theta, known), "contrast": (theta[:, 1:] - theta[:, :1], known[1:] - known[:1])}
        values |= {
            name: (posterior.flat(name), truth[name])
            for name in ("position", "position_mean", "tie", "comparison_scale")
            if name in posterior.draws
        }
        rows += [facts | row for name, (draws, true) in values.items() for row in elements(name, draws, true)]
    return rows


def elements(name: str, draws: Floats, truth: Floats) -> list[dict[str, Any]]:
    flat, true = draws.reshape(len(draws), -1), np.ravel(truth)
    low, high = np.quantile(flat, [0.025, 0.975], axis=0)
    columns = (true, flat.mean(axis=0), low, high, flat.std(axis=0, ddof=1))
    keys = ("truth", "mean", "low", "high", "sd")
    return [
        {"parameter": name, "element": k, **dict(zip(keys, map(float, row), strict=True))}
        for k, row in enumerate(zip(*columns, strict=True))
    ]


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Per kind of fit and parameter: coverage of 95 % intervals, RMSE, bias, width, correlation, slope on the truth."""
    found = []
    for (kind, name), part in rows.groupby(["kind", "parameter"], sort=False):
        inside = (part["low"] <= part["truth"]) & (part["truth"] <= part["high"])
        error, varies = part["mean"] - part["truth"], part["truth"].std() > 1e-9
        per_run = inside.groupby(part["seed"]).mean()
        found.append(
            {
                "fit": kind,
                "parameter": name,
                "n": len(part),
                "coverage": inside.mean(),
                "se": per_run.std(ddof=1) / np.sqrt(len(per_run)),
                "rmse": np.sqrt((error**2).mean()),
                "bias": error.mean(),
                "width": (part["high"] - part["low"]).mean(),
                "r": np.corrcoef(part["mean"], part["truth"])[0, 1] if varies else np.nan,
                "slope": np.polyfit(part["truth"], part["mean"], 1)[0] if varies else np.nan,
            }
        )
    return pd.DataFrame(found)


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every two fits of the same truth: correlation and slope (ratio of standard deviations) of abilities, and the
    share of contrasts whose difference is within 1.96 standard errors, the two fits taken as independent."""
    found = []
    keys = ["seed", "element"]
    for first, second in (("pairs", "ratings"), ("pairs", "both"), ("ratings", "both")):
        sides = [rows[rows["kind"] == kind].set_index(["parameter", *keys]).sort_index() for kind in (first, second)]
        one, two = (side.loc["ability", "mean"] for side in sides)
        gap = sides[0].loc["contrast", "mean"] - sides[1].loc["contrast", "mean"]
        se = np.hypot(sides[0].loc["contrast", "sd"], sides[1].loc["contrast", "sd"])
        found.append(
            {
                "fits": f"{first} and {second}",
                "r": np.corrcoef(one, two.loc[one.index])[0, 1],
                "slope": one.std() / two.std(),
                "within": (gap.abs() < 1.96 * se).mean(),
                "n": len(gap),
            }
        )
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--folder", type=Path, default=Path("runs/pairwise"))
    parser.add_argument("--replications", type=int, default=10)
    parser.add_argument("--seed", type=int, default=100)
    for name, value in (("models", 6), ("items", 20), ("judges", 3), ("dimensions", 1), ("chains", 2), ("draws", 300)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--scale", type=float, default=1.0, help="logits of a comparison per logit of a rating")
    parser.add_argument("--free", action="store_true", help="estimate that scale in the fit of both")
    recorder = Recorder(parser)
    given = parser.parse_args()
    spec = Spec(
        models=given.models,
        items=given.items,
        judges=given.judges,
        dimensions=given.dimensions,
        compared=1,
        position=0.5,
        s_position=0.3,
        tie=0.0,
        comparison_scale=given.scale,
    )
    options = Options(chains=given.chains, warmup=given.draws, draws=given.draws)
    given.folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for seed in range(given.seed, given.seed + given.replications):
        design = f"{given.models}x{given.items}x{given.judges}x{given.dimensions}-{given.scale}{'-free' * given.free}"
        path = given.folder / f"{design}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps({"spec": asdict(spec), "rows": replicate(spec, options, given.free, seed)}))
        parts.append(pd.DataFrame(json.loads(path.read_text())["rows"]))
        print(f"{len(parts)} of {given.replications}", flush=True)
    rows = pd.concat(parts, ignore_index=True)
    cover, agree = coverage(rows), agreement(rows)
    print(cover.round(3).to_string(index=False))
    print(agree.round(3).to_string(index=False))
    fits = rows.drop_duplicates(["seed", "kind"]).groupby("kind", sort=False)
    print(fits[["cpu", "seconds"]].mean().round(1).assign(divergent=fits["divergent"].sum()).to_string())
    figures = []
    for row in cover[cover["parameter"].isin(["contrast", "position"])].to_dict("records"):
        ends = (row["coverage"] - 1.96 * row["se"], row["coverage"] + 1.96 * row["se"])
        low, high = ends if np.isfinite(row["se"]) else (None, None)
        title = f"fit of {row['fit']}: coverage of 95 % intervals, {row['parameter']}"
        figures.append(Figure(title, row["coverage"], "share", "higher", low=low, high=high))
    for row in agree.to_dict("records"):
        figures.append(Figure(f"contrasts of {row['fits']} that agree", row["within"], "share", "higher"))
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
