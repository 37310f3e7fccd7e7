"""Log-probabilities of given responses under the models under test, by the code that training and certificates use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpeer.data.schema import DataSet, Record
from dpeer.errors import ConfigError
from dpeer.escape import markup
from dpeer.eval.backends.config import Engine, Served
from dpeer.eval.backends.registry import identity
from dpeer.eval.bench.answers import Said
from dpeer.eval.bench.benchmark import Benchmark, Item
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.run import Connect
from dpeer.eval.store.parts import content_id
from dpeer.files import write_text

DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
TOKENS = 8192
"""Of one pass of the model."""
Scored = list[list[float] | None]
"""Per record the log-probability per token (nats) of every response; None where it is longer than the model reads."""


def responses_scored(
    cfg: BenchConfig, benchmark: Benchmark, items: Sequence[Item], connect: Connect, console: Console
) -> Said:
    """Per item the log-probability of each response, as text under the name of the response; what was computed before
    for the same weights, records and precision is read from disk.

    Raises ConfigError for a model whose template or shape training refuses.
    """
    said = Said()
    records = tuple(item.facts["record"] for item in items)
    for served in cfg.models:
        settings = cfg.evaluation("scores").engine_of(served)
        key = content_id(model=identity(served), records=[r.key for r in records], dtype=settings.dtype)
        path = cfg.folder / f"scored-{benchmark.name}" / f"{served.name}.json"
        found = _kept(path, key)
        if found is None:
            console.print(f"{markup(served.name)}: log-probabilities of {len(records):,} records' responses")
            with connect():
                found = _on_the_cluster(served, settings, records)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"key": key, "scores": found}) + "\n")
        whole = said.whole.setdefault((benchmark.name, served.name, 0), {})
        for item, values in zip(items, found, strict=True):
            if values is None:
                said.failed[benchmark.name, served.name] += 1
            else:
                whole[item.id] = {
                    name: (repr(v),) for name, v in zip(names_of(item.facts["record"]), values, strict=True)
                }
    return said


def names_of(record: Record) -> list[str]:
    """golden, and each other response by the dimensions that it fails."""
    return ["golden" if not r.fails else "+".join(sorted(r.fails)) + f"#{k}" for k, r in enumerate(record.responses)]


def _kept(path: Path, key: str) -> Scored | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        scores: Scored = told["scores"]
        return scores if told["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # what was computed can be computed again
        return None


def _on_the_cluster(served: Served, settings: Engine, records: tuple[Record, ...]) -> Scored:
    import ray

    from dpeer.eval.backends.vllm.engine import choose_device

    device = choose_device(settings, ray.cluster_resources().get("GPU", 0))
    task: Any = ray.remote(scored).options(num_cpus=1, num_gpus=1 if device == "gpu" else 0)
    try:
        found: Scored = ray.get(task.remote(served, settings, records, device))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return found


def scored(served: Served, settings: Engine, records: tuple[Record, ...], device: str) -> Scored:
    """One model, one process."""
    import torch

    from dpeer.config import Lora, Model
    from dpeer.data.faults import data_error
    from dpeer.data.tokenize import audit, fit
    from dpeer.model.lm import build_lm, load_tokenizer
    from dpeer.training.scoring import merge, score
    from dpeer.training.world import World

    if settings.dtype not in DTYPES:
        raise ConfigError(f"engine.dtype {settings.dtype}: log-probabilities are computed in {' or '.join(DTYPES)}")
    here = torch.device("cuda" if device == "gpu" else "cpu")
    lora = Lora(path=served.adapter) if served.adapter else None
    spec = Model(path=served.path, revision=served.revision, dtype=DTYPES[settings.dtype], lora=lora)
    tokenizer = load_tokenizer(served.path, served.revision)
    dimensions = tuple(dict.fromkeys(d for r in records for d in r.mask))
    trees, faults = audit(DataSet(dimensions, records), tokenizer)
    if faults:
        raise data_error(f"chat template of {served.path}", faults)
    fitted = [fit(tree, settings.max_model_len, "drop", tokenizer.bos_token_id) for tree in trees]
    kept = [tree for tree in fitted if tree is not None]
    with here:
        lm = build_lm(spec, 0).to(here).eval()
    sums = merge([score(lm, kept, World(0, 1, here), TOKENS, layout=lm.layout)], len(kept)) if kept else []
    given = iter(zip(kept, sums, strict=True))
    found: Scored = []
    for tree in fitted:
        if tree is None:
            found.append(None)
        else:
            own, values = next(given)
            found.append([v / len(r) for v, r in zip(values, own.responses, strict=True)])
    return found
