"""The many-facet model in CmdStan against NumPyro NUTS: CPU per gradient and per effective sample, peak memory.

usage: python benchmarks/irt_vs_numpyro.py [--quick | --large]

Both sides have the same data, priors and likelihood: a run in which their log densities differ by more than a constant
between points of the parameter space is refused. See benchmarks/README.md for what is set on each side.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import CACHE, BenchmarkError, Figure, Recorder, machine, measure, peer_environment, print_table, spread
from numpy.typing import NDArray

from dpeer.eval.irt.cmdstan import compile_model, version
from dpeer.eval.irt.cmdstan import find_or_install as find_cmdstan
from dpeer.eval.irt.diagnostics import convergence
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import Problem, build
from dpeer.eval.irt.stan_start import starts
from dpeer.eval.irt.types import Options, Ratings

WORKERS = Path(__file__).resolve().parent / "irt_workers"
WORK = CACHE / "irt-vs-numpyro"
PEER = "numpyro==0.22.0", "jax==0.10.2", "jaxlib==0.10.2"
POINTS, SEED, DEPTH, ACCEPT = 4, 1, 5, 0.95
DENSITY_TOLERANCE = 1e-8
"""Of differences of log densities between points, relative to them."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One crossed data set: a criterion, five categories, a response effect, a discrimination per judge."""

    models: int
    items: int
    dimensions: int
    judges: int

    @property
    def name(self) -> str:
        return f"{self.models} x {self.items} x {self.dimensions} x {self.judges}"

    @property
    def ratings(self) -> int:
        return self.models * self.items * self.dimensions * self.judges

    @property
    def folder(self) -> Path:
        return WORK / self.name.replace(" ", "")


FORMS = {  # name: (scores as [cells, judges] instead of one gather per rating, floating point bits)
    "crossed": (True, 64),
    "gathered": (False, 64),
    "crossed, fp32": (True, 32),
}
SMALL, LARGE = Setting(8, 60, 4, 3), Setting(20, 220, 4, 5)


def prepare(setting: Setting) -> tuple[Problem, list[dict[str, Any]]]:
    """Write the data for both sides; returns what Stan is given, and points at which densities are compared."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    spec = Spec(setting.models, setting.items, setting.dimensions, setting.judges)
    table, _ = simulate(spec, SEED)
    table.to_parquet(setting.folder / "ratings.parquet", index=False)
    ratings = encode(table)
    problem = build(ratings, Options(response_effect=True), guessed(ratings))
    if any(len(own) < len(ratings.scale) for judge in problem.levels for own in judge):
        raise BenchmarkError(f"{setting.name}: a judge does not give every score; NumPyro's side has no rule for that")
    (setting.folder / "data.json").write_text(json.dumps(problem.data))
    rng = np.random.default_rng(SEED)
    points = [
        _moved(starts(problem.blocks, problem.data["D"], rng), problem, rng, 0.3 * (i > 0)) for i in range(POINTS)
    ]
    np.savez(setting.folder / "data.npz", **_arrays(ratings, problem))
    blocks = [_named(point, problem) for point in points]
    np.savez(setting.folder / "points.npz", **{name: np.stack([b[name] for b in blocks]) for name in blocks[0]})
    return problem, points


def _arrays(ratings: Ratings, problem: Problem) -> dict[str, Any]:
    """Index arrays as NumPyro's side reads them."""
    place = {(r, d): e for e, (r, d) in enumerate(zip(problem.cell_response, problem.cell_dimension, strict=True))}
    models = len(ratings.models)
    arrays: dict[str, Any] = {
        "cell_model": ratings.response_model[problem.cell_response],
        "cell_item": ratings.response_item[problem.cell_response],
        "cell_dimension": problem.cell_dimension,
        "cell": [place[key] for key in zip(ratings.response, ratings.dimension, strict=True)],
        "judge": ratings.judge,
        "category": ratings.category,
        "basis": np.column_stack([_sum_zero(row) for row in np.eye(models - 1)]),
        "step_basis": np.column_stack([_sum_zero(row) for row in np.eye(len(ratings.scale) - 2)]),
    }
    sizes = {name: len(getattr(ratings, name)) for name in ("models", "items", "judges", "dimensions")}
    centring = {name: np.asarray(value) for name, value in problem.data.items() if name.startswith("centre_")}
    return arrays | sizes | {"categories": len(ratings.scale)} | centring


def _moved(start: dict[str, Any], problem: Problem, rng: np.random.Generator, sd: float) -> dict[str, Any]:
    """Start values moved at random: effects by a normal, scales by a factor, correlations to a random matrix."""
    found = {}
    for name, value in start.items():
        values = np.asarray(value, float)
        noise = sd * rng.standard_normal(values.shape)
        if name == "L_theta":
            mixed = np.eye(len(values)) + np.tril(2 * noise, -1)
            found[name] = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).tolist()
        else:
            found[name] = (values * np.exp(noise) if name.startswith("s_") else values + noise).tolist()
    return found


def _sum_zero(free: Floats) -> Floats:
    """n values to n + 1 that sum to zero: Stan's function of that name, in numpy."""
    i = np.arange(1, len(free) + 1)
    w = free / np.sqrt(i * (i + 1.0))
    tail = np.cumsum(w[::-1])[::-1]
    return np.append(tail, 0.0) - np.insert(w * i, 0, 0.0)


def _sum_zero_both(free: Floats, rows: int, columns: int) -> Floats:
    half = np.stack([_sum_zero(row) for row in free.reshape(rows - 1, columns - 1)])
    return np.stack([_sum_zero(column) for column in half.T], axis=1)


def _named(point: dict[str, Any], problem: Problem) -> dict[str, Floats]:
    """A point under the names and shapes of NumPyro's side: effects instead of their free values."""
    data = problem.data
    M, J, D, K = (data[name] for name in "MJDK")
    value = {name: np.asarray(entry, float) for name, entry in point.items()}
    scalars = {name: value[name][0] for name in ("s_severity", "s_dev", "s_alpha", "s_tau")}
    return scalars | {
        **{name: value[name] for name in ("mu", "s_theta", "L_theta", "s_beta", "s_u", "u_raw")},
        "theta_raw": value["theta_raw"].reshape(D, M - 1).T,
        "beta_raw": np.stack([_sum_zero(part) for part in value["beta_raw"].reshape(D, -1)]),
        "severity_raw": _sum_zero(value["severity_raw"]),
        "dev_raw": _sum_zero_both(value["dev_raw"], J, D),
        "alpha_raw": _sum_zero(value["alpha_raw"]),
        "tau_raw": value["tau_raw"].reshape(D, K - 2),
        "kappa_raw": value["kappa_raw"].reshape(D, J, K - 2),
    }


def stan(
    setting: Setting, start: dict[str, Any], draws: int, *nuts: str, program: Path | None = None
) -> tuple[dict[str, Floats], float, float]:
    """One chain without adaptation from `start`: its draws, its CPU seconds, and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as scratch:
        init, output = Path(scratch, "start.json"), Path(scratch, "draws.csv")
        init.write_text(json.dumps(start))
        command = [str(program or compile_model(print)), "id=1", "random", f"seed={SEED}"]
        command += ["data", f"file={setting.folder / 'data.json'}", f"init={init}"]
        command += ["output", f"file={output}", "refresh=0", "sig_figs=15"]
        command += ["method=sample", f"num_samples={draws}", "num_warmup=0", "adapt", "engaged=0"]
        command += ["algorithm=hmc", "engine=nuts", *nuts]
        environment = os.environ | {"STAN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        peak = 0.0
        while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(found[1])
        said = process.communicate()[1].decode()
        if process.returncode:
            raise BenchmarkError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
        names = ["lp__", "n_leapfrog__"]
        written = pd.read_csv(output, comment="#", usecols=names, float_precision="round_trip")
        return {name: written[name].to_numpy(float) for name in names}, found[2].ru_utime + found[2].ru_stime, peak


def _peak_mb(pid: int) -> float:
    """The kernel's VmHWM, which unlike ru_maxrss does not carry over from the parent process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def stan_densities(setting: Setting, problem: Problem, points: list[dict[str, Any]]) -> list[float]:
    """Log density at each point, over constrained values: what Stan adds for its transforms is taken off."""
    found = []
    for point in points:
        draws, _, _ = stan(setting, point, 1, "max_depth=1", "stepsize=1e-14")
        scales = [np.asarray(value, float) for name, value in point.items() if name.startswith("s_")]
        change = sum(float(np.log(s).sum()) for s in scales) + _cholesky_volume(np.asarray(point["L_theta"]))
        found.append(float(draws["lp__"][0]) - change)
    return found


def _cholesky_volume(L: Floats) -> float:
    """log |dL / dy| of the factor of a correlation matrix by tanh of partial correlations (Lewandowski et al. 2009)."""
    total = 0.0
    for i, j in zip(*np.tril_indices(len(L), -1), strict=True):
        left = 1 - float(np.square(L[i, :j]).sum())
        total += float(np.log1p(-(L[i, j] ** 2) / left)) + 0.5 * float(np.log(left))
    return total


def check_same_model(setting: Setting, ours: list[float], theirs: list[float]) -> float:
    """Refuse a comparison of different posteriors; returns the largest relative gap of the densities' differences."""
    a, b = np.diff(ours), np.diff(theirs)
    gap = float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1.0)))
    if not gap <= DENSITY_TOLERANCE:
        raise BenchmarkError(
            f"{setting.name}: log densities differ by more than a constant (relative {gap:.1e}, allowed "
            f"{DENSITY_TOLERANCE:.0e}), so the two sides do not sample one posterior: between points {a} against {b}"
        )
    return gap


def numpyro_side(python: Path, setting: Setting, step: str, **job: Any) -> dict[str, Any]:
    files = {name: str(setting.folder / f"{name}.npz") for name in ("data", "points")}
    files["output"] = str(setting.folder / "numpyro.npz")
    return measure(python, WORKERS / "numpyro_side.py", {"step": step, "crossed": True, "precision": 64} | files | job)


def gradients(setting: Setting, python: Path, rounds: int) -> dict[str, Any]:
    """CPU ms per gradient and peak memory of both sides; NumPyro's likelihood in both of its natural forms."""
    problem, points = prepare(setting)
    short, long = (6, 36) if setting.ratings < 20_000 else (2, 10)
    ours: list[float] = []
    peak = 0.0
    for _ in range(rounds):
        runs = [stan(setting, points[0], n, f"max_depth={DEPTH}", "stepsize=1e-9") for n in (short, long)]
        steps = float(runs[1][0]["n_leapfrog__"].sum() - runs[0][0]["n_leapfrog__"].sum())
        ours.append(1000 * (runs[1][1] - runs[0][1]) / steps)
        peak = max(peak, runs[1][2])
    work = {"calls": 200 if setting.ratings < 20_000 else 50, "rounds": rounds}
    theirs = {
        name: numpyro_side(python, setting, "gradient", crossed=crossed, precision=bits, **work)
        for name, (crossed, bits) in FORMS.items()
    }
    densities = stan_densities(setting, problem, points)
    gap = max(
        check_same_model(setting, densities, found["density"]) for n, found in theirs.items() if FORMS[n][1] == 64
    )
    return {
        "setting": setting.name,
        "ratings": setting.ratings,
        "parameters": sum(values.size for _, values, _ in problem.blocks),
        "density_gap": gap,
        "stan": {"ms": ours, "peak_mb": peak},
        "numpyro": theirs,
    }


def effective(draws: dict[str, Any]) -> dict[str, float]:
    """Least and median bulk ESS over abilities and severities, and the largest R-hat, by the code of the gate."""
    flat = np.concatenate([draws[n].reshape(*draws[n].shape[:2], -1) for n in ("theta", "severity")], axis=2)
    rhat, bulk, _ = convergence(flat)
    return {"min": float(bulk.min()), "median": float(np.median(bulk)), "rhat": float(rhat.max())}


def sampling(setting: Setting, python: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Whole processes of both sides: start, warm-up, draws, files and, on NumPyro's side, its own compilation."""
    problem, points = prepare(setting)
    table = str(setting.folder / "ratings.parquet")
    ours = {"table": table, "output": str(setting.folder / "stan.npz"), "options": options | {"response_effect": True}}
    sides = {
        "stan": lambda: measure(sys.executable, WORKERS / "stan_side.py", ours),
        "numpyro": lambda: numpyro_side(python, setting, "sample", accept=ACCEPT, **options),
    }
    rows = []
    for side, run in sides.items():
        print(f"{setting.name}: sampling, {side}", file=sys.stderr, flush=True)
        before = _children_cpu()
        result = run()
        cpu = _children_cpu() - before
        with np.load(setting.folder / f"{side}.npz", allow_pickle=False) as file:
            ess = effective({name: file[name] for name in ("theta", "severity")})
        rows.append({"setting": setting.name, "side": side, "cpu_s": cpu, "ess": ess} | result)
    check_same_model(setting, stan_densities(setting, problem, points), rows[1]["density"])
    _check_same_abilities(setting)
    return rows


def _check_same_abilities(setting: Setting) -> None:
    """Refuse runs that found different abilities: one of them has not converged, so its samples are worth nothing."""
    means, spreads = [], []
    for side in ("stan", "numpyro"):
        with np.load(setting.folder / f"{side}.npz", allow_pickle=False) as file:
            draws = file["theta"].reshape(-1, *file["theta"].shape[2:])
        means.append(draws.mean(axis=0))
        spreads.append(draws.std(axis=0))
    gap = float(np.max(np.abs(means[0] - means[1]) / spreads[0]))
    if not gap < 0.5:
        raise BenchmarkError(f"{setting.name}: mean abilities of the two sides differ by {gap:.1f} posterior sd")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_gradients(costs: list[dict[str, Any]], rounds: int, cpu: str) -> None:
    rows = []
    for cost in costs:
        mine = statistics.median(cost["stan"]["ms"])
        sides = [("CmdStan", cost["stan"])] + [(f"NumPyro, {name}", found) for name, found in cost["numpyro"].items()]
        for side, found in sides:
            ratio = "" if side == "CmdStan" else f"{statistics.median(found['ms']) / mine:.1f}"
            rows.append([f"{cost['setting']}: {side}", spread(found["ms"], 2), ratio, f"{found['peak_mb']:.0f}"])
    gap = max(cost["density_gap"] for cost in costs)
    print_table(
        "One gradient: models x items x dimensions x judges",
        ["setting", "CPU ms (range)", "of CmdStan's", "peak RSS, MB"],
        rows,
        f"{rounds} rounds, medians; one thread; log densities agree to {gap:.0e} up to a constant; {cpu}",
    )


def show_sampling(runs: list[dict[str, Any]], options: dict[str, Any], cpu: str) -> None:
    rows = [
        [
            f"{run['setting']}: {run['side']}",
            f"{run['cpu_s']:.0f}",
            f"{run['draws_cpu_s']:.0f}" if "draws_cpu_s" in run else "",
            f"{run['gradients']:,}",
            f"{run['ess']['min']:.0f} / {run['ess']['median']:.0f}",
            " / ".join(f"{1000 * run['cpu_s'] / run['ess'][which]:.0f}" for which in ("min", "median")),
            f"{run['ess']['rhat']:.3f}",
            str(run["divergences"]),
        ]
        for run in runs
    ]
    gate = runs[0]["gate"]
    verdict = "green" if gate["green"] else "; ".join(gate["reasons"])
    print_table(
        f"Whole runs: {options['chains']} chains, {options['warmup']} warm-up and {options['draws']} kept draws each",
        ["setting", "CPU s", "draws only", "gradients", "bulk ESS", "CPU ms per ESS", "R-hat", "divergent"],
        rows,
        f"least / median over abilities and severities; gradients of kept draws; CmdStan's gate: {verdict}; {cpu}",
    )


def figures_of(costs: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Iterator[Figure]:
    for which in ("min", "median"):
        ours, theirs = (run["cpu_s"] / run["ess"][which] for run in runs)
        yield Figure(f"CPU per effective sample ({which}): NumPyro's run over ours", theirs / ours, "x", "higher")
    for cost in costs:
        mine, ratings = cost["stan"]["ms"], f"{cost['ratings']:,} ratings"
        for name, found in cost["numpyro"].items():
            yield Figure.ratio(f"{ratings}: a gradient of NumPyro ({name}) over ours", found["ms"], mine, "higher")
        yield Figure.median(f"{ratings}: our gradient", mine, "CPU ms", "lower")


def main() -> int:
    parser = argparse.ArgumentParser(description="The many-facet model: CmdStan against NumPyro NUTS, in CPU time.")
    parser.add_argument("--quick", action="store_true", help="leave out the 88,000 ratings; shorter chains")
    parser.add_argument("--large", action="store_true", help="only whole runs at 88,000 ratings: an hour on two cores")
    recorder = Recorder(parser)
    given = parser.parse_args()
    if given.quick and given.large:
        parser.error("--quick and --large exclude each other")
    rounds, length = (2, 300) if given.quick else (3, 500)
    options = {"chains": 4, "warmup": length, "draws": length, "seed": SEED}
    if given.large:
        options |= {"chains": 2, "draws": 1000}
    try:
        about = machine() | {"cmdstan": version(find_cmdstan(print))}
        compile_model(print)
        python = peer_environment("numpyro-0.22", PEER)
        measured = () if given.large else (SMALL,) if given.quick else (SMALL, LARGE)
        costs = [gradients(setting, python, rounds) for setting in measured]
        if costs:
            show_gradients(costs, rounds, about["cpu"])
        runs = sampling(LARGE if given.large else SMALL, python, options)
        show_sampling(runs, options, about["cpu"])
        peers = {"cmdstan": about["cmdstan"], "numpyro": "0.22"}
        recorder.write(given, [*figures_of(costs, runs)], peers=peers)
    except (BenchmarkError, IrtError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
