"""A run of benchmarks: items, answers, ratings, outcomes, rates; and what it will cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from dpeer.errors import ConfigError
from dpeer.escape import markup
from dpeer.eval.audit.rates import Interval
from dpeer.eval.backends.registry import family, identity
from dpeer.eval.bench.adjusted import COLUMNS as ADJUSTED
from dpeer.eval.bench.adjusted import adjusted
from dpeer.eval.bench.answers import Loaded, Said, ask_all
from dpeer.eval.bench.benchmark import BENCHMARKS, COLUMNS, Benchmark
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.judged import rated, rubric_of
from dpeer.eval.bench.load import SAMPLE, load_items, source_of
from dpeer.eval.bench.rates import ALL, differences, mean_of, rates, with_all
from dpeer.eval.bench.scored import Outcomes, by_judges, by_rule, ratings_in
from dpeer.eval.bench.selection import responses_scored
from dpeer.eval.plan import refuse_related
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.run import Connect
from dpeer.files import write_text
from dpeer.json_safe import json_safe


@dataclass(frozen=True, slots=True)
class Found:
    """What benchmarks say of models. rates, differences: see `bench.rates`; adjusted: see `bench.adjusted`."""

    name: str
    base: str
    models: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...]
    sources: Mapping[str, str]
    rates: pd.DataFrame
    differences: pd.DataFrame
    adjusted: pd.DataFrame
    outcomes: pd.DataFrame
    notes: tuple[str, ...]

    def column(self, model: str, column: str) -> tuple[Interval, tuple[str, ...]]:
        """One of the paper's columns for a model: the mean over the metrics that stand for it and that every model has,
        so that models are compared on the same; and the benchmarks of these."""
        of = [(b.name, m.name) for b in self.benchmarks for m in b.metrics if m.column == column]
        chosen = self.rates[self.rates["judge"] == ALL]
        found = {(r.benchmark, r.metric, r.model): Interval(r.rate, r.low, r.high) for r in chosen.itertuples()}
        shared = [(b, m) for b, m in of if all((b, m, other) in found for other in self.models)]
        return mean_of([found[b, m, model] for b, m in shared]), tuple(b for b, _ in shared)

    def left_out(self) -> list[str]:
        """What stands for a column and is not in it, since nothing informs it for some model."""
        notes = []
        for column in COLUMNS:
            kept = self.column(self.models[0], column)[1]
            of = [b.title for b in self.benchmarks if b.name not in kept and any(m.column == column for m in b.metrics)]
            if of:
                notes.append(f"{column} is without {', '.join(of)}: for one model at least no item informs it.")
        return notes

    def failures(self) -> pd.DataFrame:
        """The table of the two failures: model, and per column its rate, low and high."""
        rows = []
        for model in self.models:
            row: dict[str, Any] = {"model": model}
            for column in COLUMNS:
                mean, _ = self.column(model, column)
                row |= {column: mean.rate, f"{column} low": mean.low, f"{column} high": mean.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def write(self, folder: Path) -> Path:
        """`bench.json` with everything, and a CSV of each table beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"failures": self.failures(), "rates": self.rates, "differences": self.differences}
        tables |= {"adjusted": self.adjusted, "outcomes": self.outcomes}
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
        told = {name: table.to_dict("records") for name, table in tables.items() if name != "outcomes"}
        about = [
            {"name": b.name, "title": b.title, "source": b.source, "protocol": b.protocol, "data": self.sources[b.name]}
            for b in self.benchmarks
        ]
        whole = {"name": self.name, "base": self.base, "models": self.models, "benchmarks": about} | told
        path = folder / "bench.json"
        write_text(path, json.dumps(json_safe(whole | {"notes": self.notes}), indent=1) + "\n")
        return path


def loaded(cfg: BenchConfig) -> dict[str, Any]:
    """Name -> (benchmark, items). DataError that names file, row and column; ConfigError for what cannot be scored."""
    if not cfg.benchmarks:
        raise ConfigError(f"no benchmark is named; there are {', '.join(BENCHMARKS.names())}")
    found = {}
    for name, chosen in cfg.benchmarks.items():
        benchmark = BENCHMARKS[name]
        _refuse_unscorable(cfg, benchmark)
        found[name] = benchmark, load_items(benchmark, chosen.data, cfg.limit_of(name), cfg.seed)
    return found


def _refuse_unscorable(cfg: BenchConfig, benchmark: Benchmark) -> None:
    name, elsewhere = benchmark.name, cfg.benchmarks[benchmark.name].ratings is not None
    if elsewhere and not benchmark.labelled:
        raise ConfigError(f"{name}: its scorer needs the answers too, so ratings made elsewhere do not suffice")
    if not elsewhere and not cfg.models:
        raise ConfigError("models is empty: name at least one model under test, e.g. --models base=PATH")
    without = [m for m in cfg.models if m.backend != "vllm"] if benchmark.measure == "log-probabilities" else []
    if without:
        raise ConfigError(
            f"{name} needs the weights of {without[0].name}, for log-probabilities of given responses; an endpoint "
            f"({without[0].backend}) does not give these"
        )
    if not elsewhere and benchmark.rubric and not benchmark.rules and not cfg.judges:
        raise ConfigError(f"{name} is scored by judges: name at least one, e.g. --judges qwen=PATH")


def bench(cfg: BenchConfig, connect: Connect, retry_errors: bool = False, console: Console | None = None) -> Found:
    """Ask, judge and score what is missing; everything that was answered before is read from disk.

    Raises ConfigError, DataError and ClusterError as `generate` and `judge` do; see `bench.answers` and `bench.judged`.
    """
    console = console or Console(highlight=False)
    every: Loaded = loaded(cfg)
    open_ = asked(cfg, every)
    if any(benchmark.rubric for benchmark, _ in open_.values()):  # before a model is asked, or paid
        families = {m.name: family(m) for m in cfg.models}
        hashes = {m.name: identity(m) for m in cfg.models}
        refuse_related(cfg.judges, families, hashes, cfg.judging.allow_related)
    said = ask_all(cfg, open_, connect, retry_errors, console) if open_ else Said()
    outcomes = Outcomes()
    tables: dict[str, pd.DataFrame] = {}
    silent: list[str] = []
    for name, (benchmark, items) in every.items():
        if benchmark.measure == "log-probabilities":
            scored = responses_scored(cfg, benchmark, items, connect, console)
            said.whole |= scored.whole
            said.failed |= scored.failed
        by_id = {item.id: item for item in items}
        elsewhere = cfg.benchmarks[name].ratings
        if elsewhere is not None:
            tables[name] = ratings_in(elsewhere)
            if cfg.limit_of(name):
                tables[name] = tables[name][tables[name]["item"].isin(by_id)]
            by_judges(benchmark, by_id, None, tables[name], outcomes)
            continue
        if benchmark.rules or not benchmark.rubric:
            by_rule(benchmark, by_id, said, outcomes)
        if benchmark.rubric and cfg.judges:
            console.print(f"Judges read the answers to {markup(benchmark.title)}.")
            table = rated(cfg, benchmark, by_id, said, connect, retry_errors, console)
            if table is None:
                silent.append(f"{benchmark.title}: no item has the answers that judges would read, so it has no rates.")
                continue
            tables[name] = table
            by_judges(benchmark, by_id, said, table, outcomes)
    lost = "are left out of its rates and of those of all judges"
    notes = _notes(cfg, said) + [
        f"{BENCHMARKS[name].title}: {n:,} items have no usable rating by {judge} and {lost}."
        for (name, judge), n in outcomes.lost.items()
    ]
    models = tuple(dict.fromkeys([*(m.name for m in cfg.models), *(row[3] for row in outcomes.rows)]))
    if not models or (cfg.base is not None and cfg.base not in models):
        there = f"there are {', '.join(models)}" if models else "no item has a usable rating, so there are none"
        raise ConfigError(f"base is {cfg.base!r}: it must be one of the models that the ratings name; {there}")
    base = cfg.base or models[0]
    table = with_all(outcomes.table(), sorted(outcomes.rules), outcomes.incomplete())
    units = {(b.name, m.name): m.unit for b, _ in every.values() for m in b.metrics}
    rows, told = _adjusted(cfg, [b for b, _ in every.values()], tables, base, console)
    found = Found(
        cfg.name,
        base,
        models,
        tuple(b for b, _ in every.values()),
        {name: source_words(cfg, b) for name, (b, _) in every.items()},
        rates(table, units),
        differences(table, units, base),
        pd.DataFrame(rows, columns=list(ADJUSTED)),
        table,
        tuple(silent + notes + told),
    )  # fmt: skip
    return replace(found, notes=(*found.notes, *found.left_out()))


def asked(cfg: BenchConfig, every: Loaded) -> Loaded:
    """The benchmarks whose items models answer."""
    return {
        name: (benchmark, items)
        for name, (benchmark, items) in every.items()
        if cfg.benchmarks[name].ratings is None and benchmark.measure == "answers"
    }


def _notes(cfg: BenchConfig, said: Said) -> list[str]:
    title = {name: BENCHMARKS[name].title for name in cfg.benchmarks}
    lost = "lack an answer (--retry-errors asks again) and are left out"
    cut = "were cut (generation.max_tokens) and count as they are"
    sample = "a few rows of our own in the published layout, for a first try; the rates say nothing"
    tried = [title[name] for name, chosen in cfg.benchmarks.items() if chosen.data == SAMPLE]
    return [
        *(f"{title[name]}: {n:,} items of {model} {lost}." for (name, model), n in said.failed.items()),
        *(f"{title[name]}: {n:,} answers of {model} {cut}." for (name, model), n in said.cut.items() if n),
        *([f"{', '.join(tried)}: {sample}."] if tried else []),
    ]


def source_words(cfg: BenchConfig, benchmark: Benchmark) -> str:
    data = cfg.benchmarks[benchmark.name].data
    return f"our own sample {benchmark.sample}" if data == SAMPLE else source_of(benchmark, data)


def _adjusted(
    cfg: BenchConfig, benchmarks: Sequence[Benchmark], tables: Mapping[str, pd.DataFrame], base: str, console: Console
) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for benchmark in benchmarks if cfg.adjust else ():
        if benchmark.name not in tables or not any(m.adjusted for m in benchmark.metrics):
            continue
        folder = cfg.folder / f"judged-{benchmark.name}"
        folder.mkdir(parents=True, exist_ok=True)
        scale = load_rubric(rubric_of(benchmark, folder)).scale
        console.print(f"{markup(benchmark.title)}: rates without the judges' severities.")
        found, said = adjusted(benchmark, tables[benchmark.name], base, scale, folder / "adjusted.json")
        rows += found
        notes += [said] * bool(said)
    return rows, notes
