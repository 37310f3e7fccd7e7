"""Recovery and coverage: simulate with a known truth, fit, and ask how often the 95 % intervals hold it.

Also the place of the truth among the draws (Talts et al. 2018, arXiv 1804.06788): uniform where the fit is calibrated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from scipy.stats import kstest

from dpeer.errors import ConfigError
from dpeer.escape import markup
from dpeer.eval.irt.cmdstan import FUNCTIONS, MODEL
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import GRADED, Floats, Options, Posterior
from dpeer.files import write_text

REPORTED = ("theta", "severity", "log_alpha", "own_family", "own_model", "order", "length", "s_halo", "position")
SCALES = ("s_theta", "s_beta", "s_v", "s_u", "comparison_scale")
LABELS = {
    "theta": "ability",
    "contrast": "ability contrast",
    "contrast_these": "contrast on these items",
    "log_alpha": "log discrimination",
    "s_halo": "halo sd",
    "position": "shown first",
    "comparison_scale": "scale of comparisons",
}


@dataclass(frozen=True, slots=True, eq=False)
class RecoveryReport:
    spec: Spec
    options: Options
    elements: pd.DataFrame
    """A row per replication and element: seed, parameter, element, truth, mean, sd, low, high (95 %), low50, high50,
    below (share of draws below the truth)."""
    runs: pd.DataFrame
    """A row per replication: seed, ratings, seconds, green, rhat_max, ess_min, divergences."""

    def summary(self) -> pd.DataFrame:
        """A row per parameter: n, coverage of 95 % intervals with its standard error (clustered by replication),
        coverage50, rmse, bias, slope (of estimate on truth), width (of 95 % intervals), rank_gap (Kolmogorov-Smirnov
        distance of `below` from uniform), worst (farthest from truth, in posterior sd)."""
        rows = []
        for parameter, group in self.elements.groupby("parameter", sort=False):
            truth, mean = group["truth"], group["mean"]
            inside = (group["low"] <= truth) & (truth <= group["high"])
            per_run = inside.groupby(group["seed"]).mean()
            varies = truth.std() > 1e-9
            rows.append(
                {
                    "parameter": parameter,
                    "n": len(group),
                    "coverage": inside.mean(),
                    "coverage_se": per_run.std(ddof=1) / np.sqrt(len(per_run)) if len(per_run) > 1 else np.nan,
                    "coverage50": ((group["low50"] <= truth) & (truth <= group["high50"])).mean(),
                    "rmse": np.sqrt(((mean - truth) ** 2).mean()),
                    "bias": (mean - truth).mean(),
                    "slope": np.polyfit(truth, mean, 1)[0] if varies else np.nan,
                    "width": (group["high"] - group["low"]).mean(),
                    "rank_gap": kstest(group["below"], "uniform").statistic,
                    "worst": ((mean - truth).abs() / group["sd"]).max(),
                }
            )
        return pd.DataFrame(rows)


def recover(
    spec: Spec,
    options: Options,
    replications: int,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> RecoveryReport:
    """Simulate and fit `replications` data sets with seeds from `seed` on; `progress` gets (done, of).

    Each replication is one JSON line in `folder`, in a file of this spec, these options and this model: a study that
    was stopped goes on where it was, and a longer one reuses the shorter. Raises DesignError for a spec that is not
    identified.
    """
    if (options.model == GRADED) != (spec.link == GRADED):
        raise ConfigError(
            f"--model {options.model} is fitted to ratings of the link {spec.link}, whose thresholds mean something "
            f"else, so that nothing would be recovered; give --set link={GRADED} with --model {GRADED}, and neither "
            "otherwise"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_fingerprint(spec, options)}.jsonl"
    done = _read(path)
    for number in range(replications):
        if seed + number not in done:
            record = _replicate(spec, options, seed + number)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            done[seed + number] = record
        if progress:
            progress(number + 1, replications)
    records = [done[seed + number] for number in range(replications)]
    elements = [pd.DataFrame(record["elements"]).assign(seed=record["run"]["seed"]) for record in records]
    return RecoveryReport(
        spec=spec,
        options=options,
        elements=pd.concat(elements, ignore_index=True) if elements else pd.DataFrame(),
        runs=pd.DataFrame([record["run"] for record in records]),
    )


def recovery_table(report: RecoveryReport) -> Table:
    """The summary for a terminal."""
    runs = report.runs
    table = Table(
        title=f"Recovery of a known truth: {len(runs)} replications, {runs['green'].sum()} with a green gate, "
        f"{runs['seconds'].mean():.0f} s each",
        caption="coverage of 95 % intervals (± 2 standard errors), aim 90-98 %; errors and widths in logits; "
        "slope of estimate on truth; rank gap: distance of the truth's place among the draws from uniform; "
        "farthest from the truth in posterior sd",
    )
    table.add_column("parameter")
    for name in ("n", "coverage", "of 50 %", "RMSE", "bias", "slope", "width", "rank gap", "farthest"):
        table.add_column(name, justify="right")
    for row in report.summary().to_dict("records"):
        error = "" if np.isnan(row["coverage_se"]) else f" ± {200 * row['coverage_se']:.0f}"
        table.add_row(
            markup(LABELS.get(row["parameter"], row["parameter"])),
            str(row["n"]),
            f"{100 * row['coverage']:.0f}{error} %",
            f"{100 * row['coverage50']:.0f} %",
            f"{row['rmse']:.3f}",
            f"{row['bias']:+.3f}",
            "" if np.isnan(row["slope"]) else f"{row['slope']:.2f}",
            f"{row['width']:.2f}",
            f"{row['rank_gap']:.2f}",
            f"{row['worst']:.1f}",
        )
    return table


def elements(posterior: Posterior, truth: dict[str, Floats]) -> dict[str, list[Any]]:
    """How each reported parameter lies to its truth, in columns; contrasts are to the first model."""
    columns: dict[str, list[Any]] = {}
    draws = {name: posterior.flat(name) for name in (*REPORTED, *SCALES) if name in posterior.draws}
    draws = {name: values for name, values in draws.items() if not np.isnan(values).all()}  # of ratings, without any
    known = dict(truth)
    draws["contrast"] = draws["theta"][:, 1:] - draws["theta"][:, :1]
    known["contrast"] = truth["theta"][1:] - truth["theta"][:1]
    if "theta_these" in posterior.draws:
        these = posterior.flat("theta_these")
        draws["contrast_these"] = these[:, 1:] - these[:, :1]
        known["contrast_these"] = truth["theta_these"][1:] - truth["theta_these"][:1]
    for name in sorted(draws, key=["theta", "contrast", "contrast_these", *REPORTED[1:], *SCALES].index):
        values, target = draws[name].reshape(len(draws[name]), -1), known[name].ravel()
        low, low50, high50, high = np.quantile(values, [0.025, 0.25, 0.75, 0.975], axis=0)
        fields = {
            "parameter": np.full(len(target), name),
            "element": np.arange(len(target)),
            "truth": target,
            "mean": values.mean(axis=0),
            "sd": values.std(axis=0, ddof=1),
            "low": low,
            "high": high,
            "low50": low50,
            "high50": high50,
            "below": (values < target).mean(axis=0),
        }
        for field, column in fields.items():
            columns.setdefault(field, []).extend(column.tolist())
    return columns


def _replicate(spec: Spec, options: Options, seed: int) -> dict[str, Any]:
    from dpeer.eval.irt.design import check
    from dpeer.eval.irt.diagnostics import gate
    from dpeer.eval.irt.encode import encode
    from dpeer.eval.irt.fit import fit

    table, truth = simulate(spec, seed)
    ratings = encode(table)
    check(ratings, options)
    start = time.perf_counter()
    posterior = fit(ratings, replace(options, seed=options.seed + seed))
    seconds = time.perf_counter() - start
    verdict = gate(posterior)
    run = {
        "seed": seed,
        "ratings": len(ratings) + len(ratings.comparisons),
        "seconds": round(seconds, 1),
        "green": bool(verdict["green"]),
        "rhat_max": verdict["rhat_max"],
        "ess_min": min(verdict["ess_bulk_min"], verdict["ess_tail_min"]),
        "divergences": verdict["divergences"],
    }
    return {"run": run, "elements": elements(posterior, truth)}


def _fingerprint(spec: Spec, options: Options) -> str:
    program = [path.read_text(encoding="utf-8") for path in (MODEL, FUNCTIONS)]
    text = json.dumps([asdict(spec), asdict(options), *program], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[int, dict[str, Any]]:
    """Replications so far, by seed; a line that a kill cut short is cut off."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        return {record["run"]["seed"]: record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise IrtError(f"{path} is damaged ({error}); delete it, and the study is run again") from error
