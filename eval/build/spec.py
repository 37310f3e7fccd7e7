"""The strict, frozen config tree of a build: which dimensions, from which seeds, who writes and who verifies."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dpeer.config import LONGEST_NAME, NonNegative, Positive, Section
from dpeer.eval.backends.config import NAME, Engine, Farm, Served
from dpeer.eval.config import EvalConfig, Generation, Judging, refuse_untaken

DIMENSION = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
JOIN = "+"
SPLITS = ("train", "dual", "test")


class Check(Section):
    """A prompt with a response that surely satisfies a dimension and one that surely fails it, written by a person."""

    prompt: str = Field(min_length=1)
    """What a user says."""
    satisfying: str = Field(min_length=1)
    """A response that satisfies the dimension beyond doubt."""
    failing: str = Field(min_length=1)
    """A response of about the same length that fails it beyond doubt."""


class Trait(Section):
    title: str = ""
    """What prompts call the dimension; default: its name."""
    definition: str = Field(min_length=1)
    """What the dimension is, in a sentence or two."""
    satisfies: str = Field(min_length=1)
    """What a response that satisfies it looks like."""
    fails: str = Field(min_length=1)
    """What a response that fails it, and only it, looks like."""
    checks: tuple[Check, ...] = Field(min_length=2)
    """Known good and bad responses: a verifier that does not tell them apart is refused, and they set its scale."""


class Seeds(Section):
    path: str = Field(min_length=1)
    """Hub id, file (CSV, JSONL, Parquet) or folder with the questions or scenes that records start from."""
    column: str = "seed"
    """Column with the text of a seed."""
    split: str = "train"
    """Split of a hub id or folder."""
    dimensions: tuple[str, ...] = ()
    """Use these seeds only for masks with one of these dimensions; empty: for all."""
    language: str | None = None
    """Language of the records made from these seeds, such as de; default: `languages`, in turn."""
    licence: str = "unknown"
    """Licence of the seeds, which the data card names."""
    limit: int | None = Field(None, ge=1)
    """Use this many seeds only, chosen by the build's seed."""


class Counts(Section):
    train: int = Field(0, ge=0)
    """Records of each mask that move the policy."""
    dual: int = Field(0, ge=0)
    """Records of each mask that move the multipliers."""
    test: int = Field(0, ge=0)
    """Records of each mask for the certificate."""

    def of(self, split: str) -> int:
        return {"train": self.train, "dual": self.dual, "test": self.test}[split]


class Verification(Section):
    rubric: str | None = None
    """Name of a shipped rubric, or path of a YAML file, with all dimensions; default: made from their definitions."""
    mode: Literal["logprob", "structured"] = "logprob"
    """Read the log-probability of each rating token, or a JSON answer with a rationale."""
    repeats: int = Field(1, ge=1)
    """Ratings per verifier, response and criterion."""
    min_mass: float = Field(0.5, ge=0, le=1)
    """logprob: least probability on the rating tokens."""
    max_tokens: int = Field(512, ge=8)
    """structured: longest answer with its rationale, in tokens."""
    allow_related: bool = False
    """Allow a verifier that is a generator or of its family, and so may be lenient with its own."""
    separation: Positive = 1.0
    """Least distance that a verifier must put between known good and known bad responses, in points of the scale."""
    gap: float = Field(0.25, ge=0, le=1)
    """Least distance of a reject below its golden on the dimension that it is to fail, as a share of the distance
    between known good and known bad responses under the same verifier."""


class BuildSpec(Section):
    name: str = Field(pattern=NAME, max_length=LONGEST_NAME)
    """Name of the data set; its folder is output_dir/name."""
    output_dir: Path = Path("runs/build")
    """Folder of all builds."""
    seed: int = Field(0, ge=0)
    """Seed of the order of seeds and of sampling."""
    dimensions: dict[str, Trait] = Field(min_length=1)
    """The persona dimensions by their short names, which become the columns reject_NAME."""
    seeds: tuple[Seeds, ...] = Field(min_length=1)
    """Where records start from."""
    records: Counts = Counts(train=100, dual=10, test=20)
    """Records per mask and split."""
    masks: dict[str, Counts | None] = Field(default_factory=dict)
    """Masks such as A+T, with counts of their own or null for those of `records`; default: all of two dimensions or
    more."""
    languages: tuple[str, ...] = Field(("en",), min_length=1)
    """Languages that records are written in, in turn."""
    generators: tuple[Served, ...] = Field(min_length=1)
    """Models that write; each record is written by one."""
    verifiers: tuple[Served, ...] = Field(min_length=1)
    """Models that rate every response on every active dimension."""
    generation: Generation = Generation(temperature=0.9)
    """How the generators are sampled; `samples` is not used."""
    verification: Verification = Verification()
    retries: int = Field(2, ge=0)
    """How often a text that fails is asked for again, with the reason."""
    spare: NonNegative = 1.0
    """Further seeds that are tried where records fail, as a share of the records that are wanted."""
    reuse: int = Field(1, ge=1)
    """Most records of one mask that start from the same seed."""
    length_ratio: float = Field(2.0, gt=1, allow_inf_nan=False)
    """Most that a reject may be longer or shorter than its golden, as a ratio of characters."""
    balance: Literal["report", "cut"] = "report"
    """Where masks fall short: name them, or cut the others to the same share of what was wanted."""
    engine: Engine = Engine()
    farm: Farm = Farm()
    prices: Path | None = None
    """YAML file with prices of models that the shipped table (eval/prices.yaml) lacks, or has wrong."""
    budget: Positive | None = None
    """Most that the endpoints of this build may cost over all runs, in the currency of the price table."""

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @property
    def wanted(self) -> dict[tuple[str, ...], Counts]:
        """The masks, each in the order of the dimensions, with their counts."""
        names = list(self.dimensions)
        if self.masks:
            masks = {tuple(sorted(m.split(JOIN), key=names.index)): c or self.records for m, c in self.masks.items()}
            return masks
        return {mask: self.records for size in range(2, len(names) + 1) for mask in combinations(names, size)}

    @property
    def evaluation(self) -> EvalConfig:
        """The same as an evaluation: generators are its models, verifiers its judges."""
        how = self.verification.model_dump(include={"mode", "repeats", "min_mass", "max_tokens", "allow_related"})
        return EvalConfig(
            name=self.name,
            output_dir=self.output_dir,
            seed=self.seed,
            models=self.generators,
            generation=self.generation,
            judges=self.verifiers,
            judging=Judging(**how, rubric=self.verification.rubric or str(self.folder / "rubric.yaml")),
            engine=self.engine,
            farm=self.farm,
            prices=self.prices,
            budget=self.budget,
        )

    @field_validator("generators", "verifiers")
    @classmethod
    def _backends_take_them(cls, models: tuple[Served, ...]) -> tuple[Served, ...]:
        names = [served.name for served in models]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"the name {twice[0]} is given twice; names must differ")
        return refuse_untaken(models)

    @model_validator(mode="after")
    def _names_are_known(self) -> BuildSpec:
        known = ", ".join(self.dimensions)
        for name in self.dimensions:
            if not re.fullmatch(DIMENSION, name):
                raise ValueError(f"dimensions: {name!r} given; a name is letters, digits, '.', '_' and '-'")
        for k, seeds in enumerate(self.seeds):
            if strange := [d for d in seeds.dimensions if d not in self.dimensions]:
                raise ValueError(f"seeds.{k}.dimensions: there is no dimension {strange[0]!r}; there are {known}")
        told: dict[frozenset[str], str] = {}
        for mask in self.masks:
            names = mask.split(JOIN)
            if strange := [d for d in names if d not in self.dimensions]:
                raise ValueError(f"masks: {mask}: there is no dimension {strange[0]!r}; write dimensions of {known}")
            if len(set(names)) < len(names) or told.setdefault(frozenset(names), mask) != mask:
                raise ValueError(f"masks: {mask} names a dimension or a mask twice; keep one")
        if not self.masks and len(self.dimensions) < 2:
            raise ValueError(f"masks: with one dimension no mask has two; write masks: {{{known}: null}}")
        if not any(counts.of(split) for counts in self.wanted.values() for split in SPLITS):
            raise ValueError("records: no record is wanted; set records.train")
        return self
