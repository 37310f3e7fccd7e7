"""The strict, frozen config of a run of benchmarks: which of them, on which data, for which models, judged by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dpeer.config import LONGEST_NAME, Positive, Section
from dpeer.errors import ConfigError
from dpeer.eval.backends.config import NAME, Engine, Farm, Served
from dpeer.eval.bench.benchmark import BENCHMARKS
from dpeer.eval.config import EvalConfig, Generation, Judging


class Chosen(Section):
    data: str = ""
    """File, folder or hub id in the published layout; `sample`: a few rows of our own; default: the published data."""
    limit: int | None = Field(None, ge=1)
    """Use this many items only, chosen by the seed; default: the common limit."""
    ratings: Path | None = None
    """Table of ratings of this benchmark's answers made elsewhere, as `dpeer ratings` writes them; then no model is
    asked, and no judge."""


class Judges(Section):
    mode: Literal["logprob", "structured"] = "logprob"
    """Rate by the log-probability of each rating token, or by a JSON answer with a rationale."""
    repeats: int = Field(1, ge=1)
    """Ratings per judge and text; every second one lists the scale from the top."""
    min_mass: float = Field(0.5, ge=0, le=1)
    """logprob: least probability on the rating tokens; less gives the status `low_mass`."""
    max_tokens: int = Field(512, ge=8)
    """structured: longest answer with its rationale, in tokens."""
    allow_related: bool = False
    """Allow a judge that is a model under test or of its family; its ratings are marked."""


class BenchConfig(Section):
    name: str = Field("bench", pattern=NAME, max_length=LONGEST_NAME)
    """Name of the run; its folder is output_dir/name."""
    output_dir: Path = Path("runs/bench")
    """Folder of all runs of benchmarks."""
    seed: int = Field(0, ge=0)
    """Seed of sampling, of which items a limit takes, and of the order in which judges read."""
    benchmarks: dict[str, Chosen] = Field(default_factory=dict)
    """Benchmarks by name, each with its data."""
    limit: int | None = Field(None, ge=1)
    """Use this many items of each benchmark only, chosen by the seed; a larger limit only adds items."""
    models: tuple[Served, ...] = ()
    """Models under test."""
    base: str | None = None
    """Name of the model that the others are compared with; default: the first."""
    generation: Generation = Generation(temperature=0.0)
    """How models answer; greedy by default."""
    judges: tuple[Served, ...] = ()
    """Judge models; without any, a benchmark is scored by its rule, if it has one."""
    judging: Judges = Judges()
    adjust: bool = True
    """Where two judges or more rated, estimate rates without their severities (a fit of the rating model)."""
    engine: Engine = Engine()
    farm: Farm = Farm()
    prices: Path | None = None
    """YAML file with prices of models that the shipped table (eval/prices.yaml) lacks, or has wrong."""
    budget: Positive | None = None
    """Most that the endpoints of this run may cost, over all of its stages, in the currency of the price table."""

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    def limit_of(self, name: str) -> int | None:
        return self.benchmarks[name].limit or self.limit

    def evaluation(self, stage: str, **changes: object) -> EvalConfig:
        """An evaluation with these engines, in a folder of its own below that of the run."""
        values: dict[str, object] = {
            "name": stage,
            "output_dir": self.folder,
            "seed": self.seed,
            "generation": self.generation,
            "engine": self.engine,
            "farm": self.farm,
            "prices": self.prices,
        }
        return EvalConfig.model_validate(values | changes)

    def judging_by(self, rubric: str) -> Judging:
        return Judging(rubric=rubric, **self.judging.model_dump())

    @model_validator(mode="after")
    def _known_and_named_once(self) -> BenchConfig:
        for name in self.benchmarks:
            try:
                BENCHMARKS[name]
            except ConfigError as error:
                raise ValueError(f"benchmarks: {error}") from None
        EvalConfig(name=self.name, models=self.models, judges=self.judges, base=self.base)
        return self
