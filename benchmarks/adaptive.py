"""Adaptive judging against the full design, on simulated ratings with a known truth.

usage: python benchmarks/adaptive.py [--replications 20] [--abilities mixed|random|equal] [--models 8] [--stan 2]
                                      [--json FILE]

8 models, 200 items, 3 judges, one rating each. `--abilities equal --models 2` counts what is claimed of models without
a difference. Interim looks and, but for the replications with Stan, the last one are
those of the quick fit. `--stan N` lets `model.stan` decide in the first N replications, as `dpeer judge` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import Figure, Recorder, machine, print_table

from dpeer.eval.adaptive.choose import Design, next_batch, opening
from dpeer.eval.adaptive.decide import confirmed, look, open_contrasts, worth_of
from dpeer.eval.adaptive.quick_fit import Observed, quick_fit

Q, J, K = 200, 3, 5
CONTRAST = 0.3
S_EFFECT, S_ITEM, S_SEVERITY, S_ALPHA, S_STEP = 0.8, 0.8, 0.6, 0.25, 0.2
PLANTED = (0.0, 0.0, 0.0, 0.3, -0.3, 0.6, -0.6, 1.2)


def truth(kind: str, models: int, rng: np.random.Generator) -> Any:
    """Abilities [M], the base's first: planted ones, normal ones of spread 1 of which two are equal to the base, or
    equal ones."""
    if kind == "mixed":
        return np.array(PLANTED[:models])
    if kind == "equal":
        return np.zeros(models)
    ability = rng.standard_normal(models)
    ability[1:3] = ability[0]
    return ability


def scores(ability: Any, rng: np.random.Generator) -> Any:
    """[M, Q, J] drawn from the adjacent-category model, category by category."""
    M = len(ability)
    item, effect = S_ITEM * rng.standard_normal(Q), S_EFFECT * rng.standard_normal((M, Q))
    severity, log_alpha = S_SEVERITY * rng.standard_normal(J), S_ALPHA * rng.standard_normal(J)
    thresholds = np.arange(K - 1) - (K - 2) / 2 + S_STEP * rng.standard_normal((J, K - 1))
    place = (ability[:, None] - item + effect)[..., None, None] - (severity - severity.mean())[:, None] - thresholds
    logits = np.cumsum(np.exp(log_alpha - log_alpha.mean())[:, None] * place, axis=-1)
    logits = np.concatenate([np.zeros((M, Q, J, 1)), logits], axis=-1)
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


def stan_posterior(model: Any, item: Any, judge: Any, category: Any) -> tuple[Any, Any]:
    """Mean and sd [1, M] of the contrasts, by the shipped fit."""
    from dpeer.eval.irt.encode import encode
    from dpeer.eval.irt.fit import fit
    from dpeer.eval.irt.types import Options

    columns = {"model": model, "item": item, "judge": judge}
    table = pd.DataFrame({name: [f"{name}{i:03d}" for i in codes] for name, codes in columns.items()})
    draws = fit(encode(table.assign(dimension="d", score=category), scale=range(K)), Options()).flat("theta")[..., 0]
    contrasts = draws - draws[:, :1]
    return contrasts.mean(axis=0)[None], contrasts.std(axis=0)[None]


def replicate(kind: str, M: int, seed: int, stan: bool) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    ability = truth(kind, M, rng)
    y = scores(ability, rng)
    m, q, j = (axis.ravel() for axis in np.indices(y.shape))
    nothing, one = np.zeros(y.size, np.int64), np.ones(y.size, np.int64)
    design = Design(m, q, nothing, j, nothing, one, (M, Q, J, 1), 0)
    batch, began = y.size // 10, time.process_time()
    asked, looks, fits = opening(design, batch // 2, seed), [], 0
    while True:
        rated = (m[asked], q[asked], j[asked])
        found = quick_fit(Observed(*rated, nothing[asked], y.ravel()[asked], (M, Q, J, 1)))
        seen = look([found], design, asked, looks, CONTRAST)
        if stan and (not open_contrasts(seen).any() or asked.all()):
            posterior, fits = stan_posterior(*rated, y.ravel()[asked]), fits + 1
            seen = confirmed(seen, *posterior, design, asked, looks, CONTRAST)
        looks.append(seen)
        new = next_batch(design, asked, open_contrasts(seen), [worth_of(found)], batch, seed)
        if not new.any():
            break
        asked |= new
    true, verdict = (ability - ability[0])[1:], seen.verdict[0, 1:]
    inside = np.abs(seen.mean[0, 1:] - true) < 1.96 * seen.sd[0, 1:]
    wrong = ((verdict == "higher") & (true <= 0)) | ((verdict == "lower") & (true >= 0))
    matters = np.abs(true) >= CONTRAST - 1e-9
    return {
        "seed": seed,
        "calls": float(asked.mean()),
        "looks": len(looks),
        "stan_fits": fits,
        "coverage": float(inside.mean()),
        "contrasts": len(true),
        "nulls": int((true == 0).sum()),
        "false_claims": int(wrong.sum()),
        "claims": int(np.isin(verdict, ["higher", "lower"]).sum()),
        "false_equivalent": int(((verdict == "equivalent") & matters).sum()),
        "undecided": int(np.isin(verdict, ["open", "hopeless"]).sum()),
        "undecided_that_matter": int((np.isin(verdict, ["open", "hopeless"]) & matters).sum()),
        "matter": int(matters.sum()),
        "cpu_s": round(time.process_time() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Calls that adaptive judging saves, and what it claims wrongly.")
    parser.add_argument("--replications", type=int, default=20)
    parser.add_argument("--abilities", choices=("mixed", "random", "equal"), default="mixed")
    parser.add_argument("--models", type=int, choices=range(2, 9), default=8, metavar="2-8")
    parser.add_argument("--stan", type=int, default=0, help="replications in which model.stan decides")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    recorder = Recorder(parser)
    given = parser.parse_args()
    rows = []
    for number in range(given.replications):
        rows.append(replicate(given.abilities, given.models, given.seed + number, number < given.stan))
        print(rows[-1], file=sys.stderr, flush=True)
    f = pd.DataFrame(rows)
    total = f.sum()
    print_table(
        f"Adaptive judging, {given.abilities} abilities: {given.models} models x {Q} items x {J} judges, "
        f"contrast {CONTRAST}",
        ["figure", "value"],
        [
            ["calls against the full design, median", f"{f['calls'].median():.2f}"],
            ["  quartiles", f"{f['calls'].quantile(0.25):.2f} to {f['calls'].quantile(0.75):.2f}"],
            ["looks, median", f"{f['looks'].median():.0f}"],
            ["coverage of 95 % intervals", f"{100 * f['coverage'].mean():.1f} %"],
            ["false claims among contrasts", f"{total['false_claims']:.0f} of {total['contrasts']:.0f}"],
            ["  of which true value 0", f"{total['nulls']:.0f} contrasts"],
            ["false claims among claims", f"{total['false_claims']:.0f} of {total['claims']:.0f}"],
            ["wrongly called equivalent", f"{total['false_equivalent']:.0f} of {total['matter']:.0f}"],
            ["undecided", f"{total['undecided']:.0f} of {total['contrasts']:.0f}"],
            [f"  of those of {CONTRAST} or more", f"{total['undecided_that_matter']:.0f} of {total['matter']:.0f}"],
        ],
        f"{given.replications} replications, {f['cpu_s'].mean():.0f} CPU s each; {machine()['cpu']}",
    )
    calls, claims = f["calls"], max(1, total["claims"])
    quartiles = (calls.quantile(0.25), calls.quantile(0.75))
    figures = [
        Figure("calls over those of the full design, median", calls.median(), "x", "lower", None, *quartiles),
        Figure("coverage of 95 % intervals when it stops", f["coverage"].mean(), "share", "higher"),
        Figure("false claims among claims", total["false_claims"] / claims, "share", "lower"),
        Figure("false claims among contrasts", total["false_claims"] / total["contrasts"], "share", "lower"),
        Figure("contrasts", total["contrasts"], "contrasts"),
    ]
    recorder.write(given, figures)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
