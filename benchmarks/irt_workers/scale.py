"""One process of scale.py: make a large table or posterior, and time what is done with it."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.agreement import agreement
from dpeer.eval.irt.cards import judge_cards
from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.tables import tabulate
from dpeer.eval.irt.types import Options, Posterior, Ratings


def peak_mb() -> float:
    """The kernel's VmHWM, which unlike ru_maxrss does not carry over from the parent process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def people(texts: int, raters: int) -> pd.DataFrame:
    """Every text is rated by two of the raters on two criteria."""
    rng = np.random.default_rng(9)
    text = np.repeat(np.arange(texts), 4)
    first = rng.integers(0, raters, texts)
    second = (first + rng.integers(1, raters, texts)) % raters
    rater = np.stack([first, first, second, second], axis=1).ravel()
    return pd.DataFrame(
        {
            "model": np.char.add("p", text.astype(str)),
            "item": np.tile(["c1", "c2"], 2 * texts),
            "judge": np.char.add("R", rater.astype(str)),
            "dimension": "all",
            "score": rng.integers(0, 6, 4 * texts),
        }
    )


def posterior(models: int, items: int = 20, judges: int = 3, dimensions: int = 2, draws: int = 200) -> Posterior:
    """Every judge rates every model on every item; draws scatter around made-up values."""
    rng = np.random.default_rng(0)
    M, Q, J, D, K = models, items, judges, dimensions, 5
    response, dimension, judge = (a.ravel() for a in np.meshgrid(np.arange(M * Q), np.arange(D), np.arange(J)))
    ratings = Ratings(
        models=tuple(f"model-{i:04d}" for i in range(M)),
        items=tuple(f"q{i}" for i in range(Q)),
        judges=tuple(f"judge-{i}" for i in range(J)),
        dimensions=tuple(f"d{i}" for i in range(D)),
        criteria=tuple((f"d{i}", "overall") for i in range(D)),
        scale=tuple(range(1, K + 1)),
        response_model=np.repeat(np.arange(M), Q),
        response_item=np.tile(np.arange(Q), M),
        response_length=np.zeros(M * Q),
        response=response,
        dimension=dimension,
        criterion=dimension,
        judge=judge,
        category=rng.integers(0, K, len(response)),
        reversed=np.zeros(len(response), bool),
        own_family=np.zeros(len(response), bool),
        own_model=np.zeros(len(response), bool),
        statuses={"ok": len(response)},
        status_by_judge={f"judge-{j}": {"ok": M * Q * D} for j in range(J)},
    )

    def around(*shape: int) -> Any:
        return rng.normal(0, 1, shape) + rng.normal(0, 0.2, (2, draws // 2, *shape))

    values = {
        "theta": around(M, D),
        "mu": around(D),
        "beta": around(Q, D),
        "severity": around(J, D),
        "severity_judge": around(J),
        "log_alpha": around(J) / 10,
        "tau": np.linspace(-1.5, 1.5, K - 1) + around(J, D, K - 1) / 10,
        "tau_average": np.linspace(-1.5, 1.5, K - 1) + around(D, K - 1) / 10,
        "correlation": np.broadcast_to(np.eye(D), (2, draws // 2, D, D)).copy(),
        "s_theta": np.ones((2, draws // 2, D)),
        "s_beta": np.ones((2, draws // 2, D)),
        "s_severity": np.ones((2, draws // 2)),
    }
    shape = (2, draws // 2)
    sampler = {"divergent": np.zeros(shape), "energy": rng.normal(size=shape), "treedepth": np.full(shape, 4.0)}
    return Posterior(ratings, Options(), values, sampler | {"stepsize": np.full(shape, 0.1)}, {})


def checked(job: dict[str, Any]) -> tuple[float, str, str]:
    table = people(job["texts"], job["raters"])
    start = time.process_time()
    report = check(encode(table), Options())
    words = f"rank {report.rank['all']:,} of {report.columns['all']:,}, {len(report.warnings)} warnings"
    return time.process_time() - start, f"{job['texts']:,} texts x {job['raters']:,} raters", words


def reported(job: dict[str, Any]) -> tuple[float, str, str]:
    from dpeer.eval.report.page import write_report

    made = posterior(job["models"])
    start = time.process_time()
    result = tabulate(made)
    tables = time.process_time() - start
    page = write_report(result, Path(job["folder"]) / f"report-{job['models']}", title="scale")
    words = f"tables {tables:.1f} s; page {page.stat().st_size / 1e6:.2f} MB"
    return time.process_time() - start, f"{job['models']:,} models", words


def imported(job: dict[str, Any]) -> tuple[float, str, str]:
    from dpeer.eval.elsewhere import import_ratings
    from dpeer.eval.store.parts import write_table

    n, path = job["ratings"], Path(job["folder"]) / f"ratings-{job['ratings']}.csv"
    if not path.exists():
        rng = np.random.default_rng(0)
        k = np.arange(n)
        columns = {"model": k % 20, "item": k // 100, "judge": k // 20 % 5}
        frame = pd.DataFrame({name: np.char.add(name[0], values.astype(str)) for name, values in columns.items()})
        frame.assign(dimension="tone", score=rng.integers(1, 6, n)).to_csv(path, index=False)
    start = time.process_time()
    table = import_ratings(path)
    read = time.process_time() - start
    out = write_table(path.with_suffix(".parquet"), table)
    del table
    ratings = encode(out)
    encoded = time.process_time() - start
    report = check(ratings, Options())
    tables = agreement(ratings)
    judge_cards(ratings, pd.DataFrame({"judge": ratings.judges}), tables["kappa"], None)
    words = f"read {read:.0f} s, written and encoded at {encoded:.0f} s; rank {report.rank['tone']}"
    return time.process_time() - start, f"{n:,} ratings", words


def main(job: dict[str, Any]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    seconds, size, words = {"check": checked, "report": reported, "import": imported}[job["step"]](job)
    folder = Path(job["folder"]) / f"report-{job.get('models', 0)}"
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return {"size": size, "cpu_s": seconds, "peak_mb": peak_mb(), "written_mb": written, "result": words}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
