"""Judges that are models share a leniency and a taste for one model: do intervals cover, without people and with some?

    python benchmarks/human_calibration.py --replications 20 --output figures/human.jsonl

4 models x 25 items x 3 model judges, one dimension, scores 1 to 5 by the logits of adjacent scores, drawn score by
score; nothing of dpeer makes them. Every model judge adds 0.8 logits to the second model and 0.5 to all. Two people
rate some responses, the same ones, chosen by what the judges gave: twice as likely for each point of their mean score.

judges    model judges alone
pooled    and 200 ratings by people, as two more judges (--no-people-scale)
N         and N ratings by people, on whose scale abilities then are

Truth: what the people see. Contrasts to the first model; those of the favoured one apart, and the common leniency.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder
from dpeer.eval.irt import Options
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.people import leniency

MODELS, ITEMS, JUDGES, PEOPLE = 4, 25, 3, 2
FAVOUR, LENIENCY = 0.8, 0.5
CUTPOINTS = np.array([-1.5, -0.5, 0.5, 1.5])
STUDIES = {"judges": 0, "pooled": 200, "50": 50, "100": 100, "200": 200}


def score(location: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    weights = np.exp(
        np.concatenate([np.zeros((*location.shape, 1)), np.cumsum(location[..., None] - CUTPOINTS, -1)], -1)
    )
    below = (weights / weights.sum(-1, keepdims=True)).cumsum(-1)[..., :-1]
    return np.asarray(1 + (rng.random(location.shape)[..., None] > below).sum(-1))


def ratings(seed: int, n: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A table with `n` ratings by people, which are among those of a larger `n`; the contrasts and the leniency."""
    rng = np.random.default_rng(seed)
    theta = 0.7 * rng.standard_normal(MODELS)
    quality = theta[:, None] - 0.8 * rng.standard_normal(ITEMS) + 0.6 * rng.standard_normal((MODELS, ITEMS))
    severity = np.r_[0.3 * rng.standard_normal(JUDGES) - LENIENCY, 0.3 * rng.standard_normal(PEOPLE)]
    favour = FAVOUR * (np.arange(MODELS) == 1)
    machine = score((quality + favour[:, None])[..., None] - severity[:JUDGES], rng)
    human = score(quality[..., None] - severity[JUDGES:], rng)
    key = np.log(rng.random(MODELS * ITEMS)) / 2.0 ** machine.mean(-1).ravel()  # Efraimidis & Spirakis 2006
    shown = np.argsort(-key)[: n // PEOPLE]
    names = [(f"model{m}", f"item{q:02d}") for m in range(MODELS) for q in range(ITEMS)]
    rows = [
        (*names[r], f"judge{j}", "model", machine.reshape(-1, JUDGES)[r, j])
        for r in range(len(names))
        for j in range(JUDGES)
    ]
    rows += [(*names[r], f"person{h}", "human", human.reshape(-1, PEOPLE)[r, h]) for r in shown for h in range(PEOPLE)]
    table = pd.DataFrame(rows, columns=["model", "item", "judge", "judge_family", "score"]).assign(dimension="quality")
    more = severity[JUDGES:].mean() - severity[:JUDGES].mean() + favour.mean()
    return table, {"contrast": theta[1:] - theta[0], "leniency": more}


def replicate(study: str, seed: int, options: Options) -> dict[str, float]:
    table, truth = ratings(seed, STUDIES[study])
    scale = study not in ("judges", "pooled")
    posterior = fit(encode(table), replace(options, people_scale=scale, seed=seed + 1))
    theta = posterior.flat("theta")[..., 0]
    contrast = theta[:, 1:] - theta[:, :1]
    row: dict[str, float] = {"seed": seed, "cpu_s": posterior.facts["cpu_seconds"]}
    for name, draws, true in (
        *(("favoured", contrast[:, 0], truth["contrast"][0]),),
        *((f"other{m}", contrast[:, m], truth["contrast"][m]) for m in range(1, MODELS - 1)),
        *((("leniency", leniency(posterior)[:, 0], truth["leniency"]),) if STUDIES[study] else ()),
    ):
        low, high = np.quantile(draws, [0.025, 0.975])
        row |= {
            f"{name}_error": draws.mean() - true,
            f"{name}_width": high - low,
            f"{name}_z": (draws.mean() - true) / draws.std(),
        }
        row[f"{name}_covered"] = float(low <= true <= high)
    return row


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per study and kind: coverage, bias, rms error and z, width."""
    kinds = {"favoured": ["favoured"], "others": [f"other{m}" for m in range(1, MODELS - 1)], "leniency": ["leniency"]}
    rows = []
    for study, part in frame.groupby("study", sort=False):
        for kind, names in kinds.items():
            columns = {
                c: part[[f"{n}_{c}" for n in names if f"{n}_{c}" in part]].to_numpy().ravel()
                for c in ("covered", "error", "width", "z")
            }
            columns = {c: v[np.isfinite(v)] for c, v in columns.items()}
            if len(columns["covered"]):
                rms = {f"rms_{c}": np.sqrt((columns[c] ** 2).mean()) for c in ("error", "z")}
                means = {
                    "coverage": columns["covered"].mean(),
                    "bias": columns["error"].mean(),
                    "width": columns["width"].mean(),
                }
                rows.append({"study": study, "of": kind, "n": len(columns["covered"]), **means, **rms})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--replications", type=int, default=20)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="JSON lines, a fit each; those there are not made again")
    recorder = Recorder(parser)
    arguments = parser.parse_args()
    options = Options(chains=arguments.chains, warmup=arguments.warmup, draws=arguments.draws)
    output = arguments.output
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output and output.exists() else []
    done = {(row["study"], row["seed"]) for row in rows}
    for seed in range(arguments.replications):
        for study in arguments.studies:
            if (study, seed) in done:
                continue
            rows.append({"study": study} | replicate(study, seed, options))
            if output:
                output.parent.mkdir(parents=True, exist_ok=True)
                with output.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    found = summary(pd.DataFrame(rows))
    print(found.to_string(index=False, float_format="{:.3f}".format))
    kinds = (("coverage", "share", "higher"), ("width", "logits", "lower"))
    figures = [
        Figure(f"{row['study']}, {row['of']}: {key} of 95 % intervals", row[key], unit, better)
        for key, unit, better in kinds
        for row in found.to_dict("records")
    ]
    recorder.write(arguments, figures)


if __name__ == "__main__":
    main()
