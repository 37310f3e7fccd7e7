"""A run, an evaluation and a fit that fit together, made up, as somebody may publish them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit_folder import save
from dpeer.eval.irt.types import Posterior
from dpeer.eval.questions.readout import read_logprobs
from dpeer.eval.store.parts import write_part, write_table
from dpeer.eval.store.schema import RATINGS, RESPONSES
from dpeer.heldout_file import Heldout, write_heldout
from dpeer.integrity import parse_state, write_state
from dpeer.launcher.bundle.container import INDEX, entry, files_below, index_bytes, read_index
from dpeer.objective.heldout import HeldoutEdges, selection_accuracy
from dpeer.training.heldout import from_margins
from dpeer.training.run_dir import RunDir
from tests.eval.irt.made_up import made_up
from tests.training.test_run_dir import recipe

DIMENSIONS = ("A", "E")
RUN, EVALUATION, FIT = "runs/run", "evaluations/eval", "fits/eval-irt"
RECORDS = 40


def made_run(path: Path) -> Path:
    """A finished run of 6 steps with held-out margins and the certificate that follows from them."""
    config = recipe(data__heldout="h.jsonl", objective__constraint__tolerance={"A": 0.5, "E": 0.3}, training__steps=6)
    rng = np.random.default_rng(0)
    margins = torch.tensor(rng.normal(1.0, 1.0, 2 * RECORDS))
    index = torch.arange(2 * RECORDS)
    edges = HeldoutEdges(margins, index % 2, index // 2, index * 0, ("A+E",))
    heldout = Heldout(edges, DIMENSIONS, {})
    counted = dict.fromkeys(DIMENSIONS, RECORDS)
    splits = {
        name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "records": RECORDS, "edges": counted}
        for name in ("train", "heldout")
    }
    facts = {"method": 2, "data": splits, "model": {"hash": "m0"}, "reference": {"hash": "r0"}}
    run = RunDir(path)
    run.begin(config, facts | {"chat_template": {"hash": "c0"}}, {"engine": "plain"})
    for step in range(1, 7):
        run.append(_line(step), {"step": step, "seconds": 1.0, "tokens_per_second": 900.0})
    write_heldout(run.heldout, heldout)
    logps = [[-1.0, -2.0 + 1.5 * (k % 4 == 0)] for k in range(RECORDS)]
    overall, masks = selection_accuracy(logps, [0] * RECORDS, [DIMENSIONS] * RECORDS)
    counted_too: dict[str, Any] = {
        "selection": {"overall": overall.to_dict(), "masks": {k: v.to_dict() for k, v in masks.items()}},
        "heldout_records": RECORDS,
        "prompts": RECORDS,
        "rarest": 3 / RECORDS,
    }
    write_state(run.certificate, {**from_margins(config.objective, heldout), **counted_too})
    run.finish(6, "reloaded")
    return path


def _line(step: int) -> dict[str, Any]:
    losses = {"A": 0.69 - 0.05 * step, "E": 0.69 - 0.03 * step}
    return {
        "step": step,
        "tokens": 900,
        "golden_nll": 1.0,
        "dimensions": {d: {"edges": 8, "loss": x, "margin": 0.1 * step, "accuracy": 0.8, "weight": 0.5}
                       for d, x in losses.items()},
        "constraints": {d: {"tolerance": t, "estimate": losses[d], "multiplier": 0.1 * step}
                        for d, t in (("A", 0.5), ("E", 0.3))},
    }  # fmt: skip


def made_evaluation(path: Path, models: tuple[str, ...] = ()) -> Posterior:
    """Responses and ratings with log-probabilities; returns a posterior of these ratings, without a sampler.

    models: three names in alphabetical order.
    """
    made = made_up(models=3, items=8, judges=2, dimensions=1, chains=4, draws=150, noise=0.1)
    if models:
        made = replace(made, ratings=replace(made.ratings, models=models))
    r, rng = made.ratings, np.random.default_rng(1)
    response_ids = [_id("response", k) for k in range(len(r.response_model))]
    for model, name in enumerate(r.models):
        mine = [k for k, m in enumerate(r.response_model) if m == model]
        rows = [dict.fromkeys(RESPONSES.names) | {"response_id": response_ids[k], "model": name, "sample": 0,
                "item": r.items[r.response_item[k]], "prompt": "p", "response": f"answer {k}", "tokens": 2,
                "status": "ok"} for k in mine]  # fmt: skip
        write_part(path / "responses" / f"model={name}", rows, RESPONSES)
    rows = []
    for n in range(len(r)):
        logprobs = np.log(rng.dirichlet(np.ones(5)) * 0.9)
        logprobs[[r.category[n], int(logprobs.argmax())]] = logprobs[[int(logprobs.argmax()), r.category[n]]]
        reading = read_logprobs(logprobs.tolist(), r.scale, 0.5)
        dimension = r.dimensions[r.dimension[n]]
        rows.append(dict.fromkeys(RATINGS.names) | {
            "rating_id": _id("rating", n), "response_id": response_ids[r.response[n]], "model": r.models[r.model[n]],
            "item": r.items[r.item[n]], "sample": 0, "dimension": dimension, "criterion": "all",
            "judge": r.judges[r.judge[n]], "repeat": 0, "order": "up", "mode": "logprob", "status": "ok",
            "score": reading.score, "expected": reading.expected, "mass": reading.mass, "logprobs": logprobs.tolist(),
        })  # fmt: skip
    table = write_table(path / "ratings.parquet", pd.DataFrame(rows))
    ratings = encode(table, r.dimensions, r.scale)
    order = [ratings.items.index(name) for name in r.items]
    assert (ratings.models, ratings.judges, ratings.dimensions) == (r.models, r.judges, r.dimensions)
    beta = np.empty_like(made.draws["beta"])
    beta[:, :, order] = made.draws["beta"]
    return replace(made, ratings=ratings, draws=made.draws | {"beta": beta})


def made_fit(posterior: Posterior, path: Path) -> Path:
    save(posterior, path)
    return path


def _id(kind: str, number: int) -> str:
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()[:32]


def renew(folder: Path) -> None:
    """As a liar would: hashes of all files anew, so that only what is computed again can tell."""
    index, _ = read_index(folder)
    files = {name: entry(folder / name) for name in files_below(folder) if name != INDEX}
    (folder / INDEX).write_bytes(index_bytes(index.model_copy(update={"files": files})))


def change_state(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = parse_state(path.read_bytes())
    change(value)
    write_state(path, value)
