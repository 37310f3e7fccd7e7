"""The strict, frozen config tree of an evaluation: which models answer what, and who judges it how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dpeer.config import LONGEST_NAME, NonNegative, Positive, Section
from dpeer.errors import ConfigError
from dpeer.eval.backends.config import NAME, Engine, Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.questions.config import Prompts

__all__ = ["Design", "Engine", "EvalConfig", "Farm", "Generation", "Judging", "Prompts", "Served", "Until"]


class Generation(Section):
    samples: int = Field(1, ge=1)
    """Responses per model and prompt."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling mass."""
    max_tokens: int = Field(1024, ge=1)
    """Longest response, in tokens; a longer one is cut and marked."""
    system: str | None = None
    """System message before each prompt."""


class Until(Section):
    contrast: float = Field(0.3, gt=0, le=10)
    """Smallest difference from the base that matters, in logits: a contrast is decided when its interval lies on one
    side of 0, or between minus and plus this."""
    batch: int | None = Field(None, ge=1)
    """Ratings per round, about; fewer in the first and towards the end. Default: a tenth of the design."""


class Judging(Section):
    rubric: str = "persona"
    """Name of a shipped rubric, or path of a YAML file."""
    dimensions: tuple[str, ...] = ()
    """Dimensions to rate; empty: all of the rubric."""
    mode: Literal["logprob", "structured", "pairwise"] = "logprob"
    """Rate each response by the log-probability of each rating token or by a JSON answer with a rationale; or compare
    two responses at a time."""
    pairs: Literal["all", "base"] = "all"
    """pairwise: compare every two models, or each with the base only."""
    pairwise_read: Literal["logprob", "structured"] = "logprob"
    """pairwise: read the log-probability of A, B and C (a tie), or a JSON answer with a rationale."""
    score: Literal["most_likely", "sampled"] = "most_likely"
    """logprob: take the most probable score, or draw one from the judge's distribution (seeded by the rating's id)."""
    rate: Literal["last", "conversation"] = "last"
    """Of a conversation: rate the model's last message, or all of its messages together."""
    item_criteria: Literal["also", "instead"] = "also"
    """Criteria that a prompt brings (`prompts.rubric`) hold beside those of the rubric, or in their place."""
    repeats: int = Field(1, ge=1)
    """Ratings per judge, response and criterion; every second one lists the scale from the top. pairwise: how often a
    pair is asked in each order."""
    min_mass: float = Field(0.5, ge=0, le=1)
    """Least probability on the rating tokens; less gives the status `low_mass`."""
    max_tokens: int = Field(512, ge=8)
    """structured: longest answer with its rationale, in tokens."""
    allow_related: bool = False
    """Allow a judge that is the model under test or of its family; its ratings are marked for self-preference."""
    until: Until | None = None
    """Judge in rounds, each of which asks only what narrows contrasts that are not decided, until all are. Not for
    pairwise."""

    @model_validator(mode="after")
    def _rounds_are_of_ratings(self) -> Judging:
        if self.until is not None and self.mode == "pairwise":
            raise ValueError("until: rounds choose ratings, not comparisons; leave it out, or set mode to logprob")
        return self


class Design(Section):
    kind: Literal["full", "linked"] = "full"
    """Every judge rates everything, or a sparse design that links all judges."""
    anchors: int = Field(20, ge=0)
    """linked: prompts that every judge rates for every model."""
    judges_per_response: int = Field(2, ge=1)
    """linked: judges of each response outside the anchor set."""


def refuse_untaken(models: tuple[Served, ...]) -> tuple[Served, ...]:
    """The models. ValueError: the backend of one lacks a setting."""
    for served in models:
        try:
            BACKENDS[served.backend].check(served)
        except ConfigError as error:
            raise ValueError(f"{served.name}: {error}") from None
    return models


class EvalConfig(Section):
    name: str = Field(pattern=NAME, max_length=LONGEST_NAME)
    """Name of the evaluation; its folder is output_dir/name."""
    output_dir: Path = Path("runs/eval")
    """Folder of all evaluations."""
    seed: int = Field(0, ge=0)
    """Seed of sampling, item order and the linked design."""
    prompts: Prompts = Prompts()
    models: tuple[Served, ...] = ()
    """Models under test."""
    base: str | None = None
    """Name of the model that the others are compared with; default: the first."""
    generation: Generation = Generation()
    responses: Path | None = None
    """Judge these responses (JSONL, CSV, Parquet) instead of those that `dpeer generate` wrote."""
    judges: tuple[Served, ...] = ()
    """Judge models."""
    judging: Judging = Judging()
    design: Design = Design()
    engine: Engine = Engine()
    farm: Farm = Farm()
    prices: Path | None = None
    """YAML file with prices of models that the shipped table (eval/prices.yaml) lacks, or has wrong."""
    budget: Positive | None = None
    """Most that the endpoints of this evaluation may cost over all runs, in the currency of the price table."""

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    def engine_of(self, served: Served) -> Engine:
        """Engine settings of a model: its own, else the common ones."""
        return served.engine or self.engine

    @field_validator("models", "judges")
    @classmethod
    def _backends_take_them(cls, models: tuple[Served, ...]) -> tuple[Served, ...]:
        return refuse_untaken(models)

    @model_validator(mode="after")
    def _names_differ(self) -> EvalConfig:
        for kind in ("models", "judges"):
            names = [served.name for served in getattr(self, kind)]
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"{kind}: the name {twice[0]} is given twice; names must differ")
        if self.base is not None and self.models and self.base not in {m.name for m in self.models}:
            raise ValueError(f"base: {self.base} is not among the models")
        return self
