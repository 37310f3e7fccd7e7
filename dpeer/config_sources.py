"""Sources of preference data in a recipe: where they lie, what they weigh, and what their columns mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dpeer.section import NonNegative, Positive, Section

Preset = Literal["preference", "hh_rlhf", "ultrafeedback", "helpsteer2", "helpsteer3", "pku_saferlhf"]

SHAPES: dict[str, tuple[str, ...]] = {
    "pair": ("golden", "reject"),
    "rated completions": ("completions", "response", "ratings"),
    "rated rows": ("response", "ratings"),
    "scored pair": ("responses", "score"),
    "labelled pair": ("responses", "labels"),
}
"""What a map describes, by the keys that it must have; the first that fits counts."""
OWN = frozenset({"weight", "tools"})
"""What a map may say of rows in a form of dpeer's own."""
ANY = ("preset", "prompt", "system", "turns", *sorted(OWN))
READ: dict[str, tuple[str, ...]] = {
    "pair": ("dimension", "constant"),
    "rated completions": ("dimensions", "gap", "tie"),
    "rated rows": ("dimensions", "gap", "tie"),
    "scored pair": ("dimension", "constant", "gap"),
    "labelled pair": (),
}
"""What else is read of a map of each shape, beside ANY."""
NONE = "none"
"""The word for no column, where one would be taken by its name."""


class Map(Section):
    """Which columns hold what. Give `golden` and `reject`; or `response` and `ratings`, for rows with one response each
    or, with `completions`, for a column that lists several; or `responses` with a `score` or `labels`. Without any of
    these the other keys complete the preset that the columns belong to."""

    preset: Preset | None = None
    """Start from a published layout; keys beside it replace its own."""
    prompt: str | tuple[str, ...] | None = None
    """Column of the prompt (text or messages), or several that are joined by line breaks. Without it, a column with a
    usual name; without one, or by the word none, the prompt is what both conversations begin with."""
    system: str | None = None
    """Column of a system message; without it, the column `system`, if there is one; by the word none, no column."""
    golden: str | None = None
    """Column of the better response: text, or messages of which the last is the response."""
    reject: str | None = None
    """Column of the worse one."""
    dimension: str | None = None
    """Column that names the dimension in which a pair differs."""
    constant: str | None = None
    """Name of the dimension in which every pair differs; instead of `dimension`."""
    completions: str | None = None
    """Column with a list of completions."""
    response: str | None = None
    """Column (of a completion: key) of the response."""
    responses: tuple[str, str] | None = None
    """Columns of two responses."""
    score: str | None = None
    """Column of a number that is negative where the first response is better, positive where the second one is."""
    labels: dict[str, str] | None = None
    """Dimension -> column with the number (0 or 1) of the response that is better in it."""
    ratings: tuple[str, ...] | dict[str, str] | None = None
    """Attributes that are rated, higher being better: columns, or attribute -> column; in completions a.b means key b
    of key a."""
    dimensions: tuple[str, ...] | None = None
    """Rated attributes that become dimensions; default: all. The others must be equal."""
    gap: Positive = 1.0
    """Ratings (or a score) must differ by at least this in the dimension of an edge."""
    tie: NonNegative = 0.0
    """Ratings may differ by at most this in every other attribute."""
    turns: str | None = None
    """Marks of turns in texts that hold whole conversations: human ("Human:", "Assistant:") or extra_id
    ("<extra_id_1>User", "<extra_id_1>Assistant")."""
    weight: str = "weight"
    """Column of weights: how often a record is drawn in training, relative to 1. Where it is missing: 1."""
    tools: str = "tools"
    """Column of the schemas of tools. Where it is missing, and by the word none: no tools."""

    @property
    def rated(self) -> dict[str, str]:
        """Attribute -> column."""
        return self.ratings if isinstance(self.ratings, dict) else {name: name for name in self.ratings or ()}

    @property
    def shape(self) -> str | None:
        """Which of SHAPES it is; None where a preset says it."""
        return next((s for s, keys in SHAPES.items() if all(getattr(self, key) for key in keys)), None)

    @property
    def said(self) -> dict[str, Any]:
        """The keys that say something: those of a resolved recipe, which has them all, are the same."""
        fields = type(self).model_fields
        return {key: value for key, value in self if value != fields[key].default}

    @model_validator(mode="after")
    def _says_one_thing(self) -> Map:
        if (
            self.preset is None
            and self.shape is None
            and self.said.keys() & {k for keys in SHAPES.values() for k in keys}
        ):
            options = "; ".join(", ".join(keys) for keys in SHAPES.values())
            raise ValueError(
                f"the map does not say what its columns are; give a preset, or all keys of one of: {options}"
            )
        if self.dimension and self.constant:
            raise ValueError(
                f"dimension ({self.dimension}) is a column and constant ({self.constant}) a name for all: give one"
            )
        if self.tie >= self.gap:
            raise ValueError(
                f"tie ({self.tie:g}) must be below gap ({self.gap:g}): else a pair could differ in several attributes "
                "at once and still belong to one"
            )
        if outside := [d for d in self.dimensions or () if self.ratings and d not in self.rated]:
            raise ValueError(f"dimensions names {outside[0]!r}, which is not rated ({', '.join(self.rated)})")
        if self.turns not in (None, "human", "extra_id"):
            raise ValueError(f"turns is {self.turns!r}; it may be human or extra_id")
        if (
            self.preset is None
            and self.shape
            and (unread := self.said.keys() - {*ANY, *SHAPES[self.shape], *READ[self.shape]})
        ):
            raise ValueError(
                f"{', '.join(sorted(unread))}: not read where {', '.join(SHAPES[self.shape])} say what the columns "
                f"are; beside them there may be {', '.join((*READ[self.shape], *ANY))}"
            )
        return self


def as_map(value: Any) -> Any:
    """A preset's name as the map that it stands for."""
    return {"preset": value} if isinstance(value, str) else value


GivenMap = Annotated[Map | None, BeforeValidator(as_map, json_schema_input_type=Map | str | None)]


class Source(Section):
    path: str = Field(min_length=1)
    """Hub id, file or folder, as in `data.train`."""
    weight: Positive = 1.0
    """How often its records are drawn in training, relative to those of a source of weight 1."""
    map: GivenMap = None
    """What its columns mean; default: `data.map`."""


Sources = str | Annotated[tuple[Source, ...], Field(min_length=1)]


def listed(sources: Sources, default: Map | None) -> tuple[Source, ...]:
    """Every source with its map."""
    if isinstance(sources, str):
        return (Source(path=sources, map=default),)
    return tuple(s if s.map is not None else s.model_copy(update={"map": default}) for s in sources)


def own_maps(sources: Sources) -> tuple[bool, ...]:
    """Of every source, whether it has a map of its own."""
    return (False,) if isinstance(sources, str) else tuple(s.map is not None for s in sources)


def paths(sources: Any) -> list[str]:
    """Their paths, also from a manifest."""
    if isinstance(sources, list | tuple):
        return [s.path if isinstance(s, Source) else str(s["path"]) for s in sources]
    return [] if sources is None else [str(sources)]
