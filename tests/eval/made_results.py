"""Tables of a fit as a report gets them, made up from a known truth with a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeer.eval.irt.result import Result


def bounded(name: str, value, half) -> dict:
    value = np.asarray(value, dtype=float)
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def grid(**axes) -> pd.DataFrame:
    return pd.MultiIndex.from_product(axes.values(), names=list(axes)).to_frame(index=False)


def make_result(
    models=("base", "sft", "pooled dpo", "lagrangian"),
    judges=("strict-7b", "keyword matcher", "kind-13b", "human"),
    dimensions=("E", "A", "T", "C"),
    items=40,
    scores=5,
    seed=0,
    green=True,
) -> Result:
    """Tables of a fit, made up from a known truth; the first model is the base."""
    rng = np.random.default_rng(seed)
    M, J, D, S = len(models), len(judges), len(dimensions), 400
    theta = rng.normal(0, 0.9, (M, D))
    theta -= theta.mean(0)
    draws = theta + rng.normal(0, 0.18, (S, M, D))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    contrast = draws - draws[:, :1]
    contrast_low, contrast_high = np.quantile(contrast, [0.025, 0.975], axis=0)
    fair = 1 + (scores - 1) / (1 + np.exp(-theta))
    raw = fair + rng.normal(0, 0.25, (M, D))
    ability = pd.DataFrame(
        {
            "model": np.repeat(models, D),
            "dimension": np.tile(dimensions, M),
            "ability": theta.ravel(),
            "ability_sd": 0.18,
            "ability_low": low.ravel(),
            "ability_high": high.ravel(),
            **bounded("fair", fair.ravel(), 0.15),
            "raw_mean": raw.ravel(),
            "n": items * J,
            "contrast": contrast.mean(0).ravel(),
            "contrast_low": contrast_low.ravel(),
            "contrast_high": contrast_high.ravel(),
            "p_better": (contrast > 0).mean(0).ravel(),
        }
    )
    these = bounded("contrast_these", contrast.mean(0).ravel(), 0.3) | {"p_better_these": ability["p_better"]}
    ability = ability.assign(**these)
    others = (contrast[:, 1:] - contrast[:, 1:].mean(0)) / contrast[:, 1:].std(0)
    q = np.quantile(np.abs(others).max((1, 2), initial=0), 0.95)
    contrasts = ability[ability["model"] != models[0]][["model", "dimension", "contrast", "p_better"]]
    contrasts = contrasts.assign(
        contrast_low=contrast_low[1:].ravel(),
        contrast_high=contrast_high[1:].ravel(),
        family_low=(contrast.mean(0) - q * contrast.std(0))[1:].ravel(),
        family_high=(contrast.mean(0) + q * contrast.std(0))[1:].ravel(),
        verdict="undecided",
    )
    contrasts.loc[contrasts["family_low"] > 0, "verdict"] = "better"
    contrasts.loc[contrasts["family_high"] < 0, "verdict"] = "worse"
    of_base = [name for name in ability if name.startswith(("contrast", "p_better"))]
    ability.loc[ability["model"] == models[0], of_base] = np.nan

    place = (-draws).argsort(axis=1).argsort(axis=1) + 1
    ranks = grid(model=models, dimension=dimensions, rank=range(1, M + 1))
    ranks["probability"] = np.stack([(place == k).mean(0) for k in range(1, M + 1)], axis=-1).ravel()

    order = [(d, a, b) for d in range(D) for a in range(M) for b in range(M)]
    turned = [(d, a, b) for d, a, b in order if raw[a, d] > raw[b, d] and fair[a, d] < fair[b, d]]
    reversals = pd.DataFrame(
        [
            {
                "dimension": dimensions[d],
                "model": models[a],
                "other": models[b],
                "raw_difference": raw[a, d] - raw[b, d],
                "fair_difference": fair[a, d] - fair[b, d],
                **{k: float(v) for k, v in bounded("contrast", theta[a, d] - theta[b, d], 0.5).items()},
                "p": 0.08,
                "why": f"{models[a]} was rated by more lenient judges (-0.31) than {models[b]} (+0.22).",
            }
            for d, a, b in turned
        ]
    )

    severity = rng.normal(0, 0.8, J)
    severity -= severity.mean()
    alpha = np.exp(rng.normal(0, 0.3, J))
    judge_table = pd.DataFrame(
        {
            "judge": judges,
            **bounded("severity", severity, 0.2),
            **bounded("alpha", alpha, 0.15 * alpha),
            "infit": np.where(np.arange(J) == 1, 1.62, rng.uniform(0.85, 1.2, J)),
            "infit_p": np.where(np.arange(J) == 1, 0.004, 0.4),
            "outfit": np.where(np.arange(J) == 1, 1.81, rng.uniform(0.8, 1.25, J)),
            "outfit_p": np.where(np.arange(J) == 1, 0.002, 0.6),
            "n": items * M * D,
            "mean_score": 3.1 - 0.5 * severity,
            "note": ["" if j != 1 else f"scores {models[-1]} above expectation" for j in range(J)],
        }
    )
    cells = grid(judge=judges, dimension=dimensions)
    severity_table = cells.assign(**bounded("severity", np.repeat(severity, D) + rng.normal(0, 0.2, J * D), 0.3))
    tau = np.linspace(-1.6, 1.6, scores - 1)
    steps = grid(judge=judges, dimension=dimensions, step=range(2, scores + 1))
    thresholds = np.sort(rng.normal(0, 0.2, (J, D, scores - 1)) + tau, axis=-1)
    if scores > 3 and J > 1:
        thresholds[1, 0, 1:3] = thresholds[1, 0, 2:0:-1] + [0.5, -0.5]
    falls = np.diff(thresholds, axis=-1, prepend=-np.inf) < 0
    steps = steps.assign(**bounded("threshold", thresholds.ravel(), 0.3), disordered=falls.ravel())

    item_names = [f"item-{q:03d}" for q in range(items)]
    item_table = grid(item=item_names, dimension=dimensions)
    item_table = item_table.assign(
        **bounded("difficulty", rng.normal(0, 1.1, items * D), 0.7), n=M * J, infit=1.02, outfit=0.97
    )
    misfit = grid(judge=judges, model=models, dimension=dimensions)
    expected = rng.uniform(2, 4, len(misfit))
    gap = rng.normal(0, 0.06, len(misfit))
    gap[(misfit["judge"] == judges[min(1, J - 1)]) & (misfit["model"] == models[-1])] = 0.41
    misfit = misfit.assign(
        observed=expected + gap, **bounded("expected", expected, 0.14), p=0.3, z=gap / 0.07, notable=np.abs(gap) > 0.3
    )
    ppc = grid(judge=judges, dimension=dimensions, score=range(1, scores + 1))
    counts = rng.integers(items // 2, 2 * items, len(ppc)).astype(float)
    z = rng.normal(0, 1, len(ppc))
    z[-1] = 5
    ppc = ppc.assign(observed=(counts + 4 * z).round(), **bounded("expected", counts, 8.0), p=0.4)

    pairs = [(a, b) for i, a in enumerate(dimensions) for b in dimensions[i + 1 :]]
    correlation = pd.DataFrame(pairs, columns=["dimension", "other"])
    correlation = correlation.assign(**bounded("correlation", rng.uniform(-0.4, 0.9, len(pairs)), 0.3))
    statuses = grid(judge=judges, status=("ok", "unparsed", "truncated", "low_mass"))
    statuses["count"] = [int(items * M * D * share) for _ in judges for share in (0.97, 0.02, 0.0, 0.01)]
    effects = pd.DataFrame(
        {
            "term": ["own_family", "length", "halo sd"],
            "dimension": "",
            **bounded("estimate", [0.42, 0.05, 0.61], 0.12),
            "note": ["a judge on models of its family; positive = favours them", "", ""],
        }
    )
    scales = pd.DataFrame(
        {
            "parameter": ["mu"] * D + ["s_u"] * D,
            "dimension": [*dimensions] * 2,
            **bounded("estimate", [0.4] * 2 * D, 0.1),
        }
    )
    diagnostics = pd.DataFrame(
        {
            "parameter": [f"theta[{m}, {d}]" for m in models for d in dimensions],
            "rhat": 1 + rng.uniform(0, 0.006 if green else 0.08, M * D),
            "ess_bulk": rng.uniform(800, 4000, M * D),
            "ess_tail": rng.uniform(700, 3000, M * D),
        }
    )
    tables = {
        "ability": ability,
        "contrasts": contrasts,
        "ranks": ranks,
        "reliability": pd.DataFrame({"dimension": dimensions, "separation": 4.9, "reliability": 0.96, "sd": 0.9}),
        "reversals": reversals,
        "judges": judge_table,
        "severity": severity_table,
        "criteria": pd.DataFrame(
            {"dimension": dimensions, "criterion": "overall", **bounded("difficulty", np.zeros(D), 0), "n": items * M}
        ),
        "items": item_table,
        "thresholds": steps,
        "models_fit": grid(model=models, dimension=dimensions).assign(
            infit=1.03, infit_p=0.3, outfit=1.0, outfit_p=0.5
        ),
        "misfit": misfit,
        "ppc": ppc,
        "biases": pd.DataFrame(
            {
                "kind": ["halo", "missing"],
                "judge": [judges[0], judges[-1]],
                "model": "",
                "size": [0.31, -0.4],
                "z": [5.1, -6.2],
                "finding": [f"{judges[0]} has a halo", f"{judges[-1]} left out poor answers"],
                "advice": ["--with halo", f"have them rated again, or fit with --without {judges[-1]}"],
            }
        ),
        "effects": effects,
        "scales": scales,
        "correlation": correlation,
        "statuses": statuses,
        "connectivity": grid(judge=judges, model=models, dimension=dimensions).assign(n=items),
        "diagnostics": diagnostics,
        "drift": pd.DataFrame(
            {
                "kind": "judge",
                "name": judges,
                "dimension": "",
                "before": severity,
                "now": severity + 0.1,
                **bounded("difference", [0.1] * (J - 1) + [0.6], 0.3),
                "drifted": [False] * (J - 1) + [True],
            }
        ),
    }
    reasons = [] if green else ["R-hat is 1.081 at theta[base, E]; it must be below 1.01"]
    gate = {
        "green": green,
        "reasons": reasons,
        "advice": [] if green else ["raise the warm-up (twice as long)"],
        "rhat_max": 1.004 if green else 1.081,
        "ess_bulk_min": 812.4,
        "ess_tail_min": 703.0,
        "ebfmi_min": 0.84,
        "divergences": 0,
        "chains": 4,
        "draws": 1000,
    }
    facts = {
        "cmdstan": "2.37.0",
        "model_hash": "ab" * 32,
        "seconds": 41.3,
        "base": models[0],
        "ratings": int(items * M * J * D * 0.97),
        "options": {"model": "gmfrm", "chains": 4, "seed": np.int64(1), "anchors": None},
    }
    return Result(tables, gate, ("Judge keyword matcher: noisy.",), facts)
