"""Published layouts of preference data, and which of them the columns at hand are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from pydantic import ValidationError

from dpeer.config_sources import NONE, OWN, SHAPES, Map, Preset
from dpeer.data.faults import excerpt
from dpeer.errors import DataError

PROMPTS = ("prompt", "question", "instruction", "conversations")
DIMENSIONS = ("dimension", "attribute")
ULTRAFEEDBACK = ("instruction_following", "honesty", "truthfulness", "helpfulness")
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

PRESETS: dict[Preset, Map] = {
    "preference": Map(golden="chosen", reject="rejected"),
    "hh_rlhf": Map(golden="chosen", reject="rejected", turns="human"),
    # openbmb/UltraFeedback
    "ultrafeedback": Map(
        prompt="instruction",
        completions="completions",
        response="response",
        ratings={name: f"annotations.{name}.Rating" for name in ULTRAFEEDBACK},
    ),
    # nvidia/HelpSteer2; more complex or verbose is not better, so these two only have to be equal
    "helpsteer2": Map(
        prompt="prompt", response="response", ratings=HELPSTEER, dimensions=HELPSTEER[:3], turns="extra_id"
    ),
    # nvidia/HelpSteer3:preference
    "helpsteer3": Map(prompt="context", responses=("response1", "response2"), score="overall_preference"),
    # PKU-Alignment/PKU-SafeRLHF
    "pku_saferlhf": Map(
        prompt="prompt",
        responses=("response_0", "response_1"),
        labels={"helpfulness": "better_response_id", "safety": "safer_response_id"},
    ),
}
UNNAMED = "preference"
"""The dimension of pairs of which nothing says in what they differ."""


def detected(columns: Collection[str]) -> Preset | None:
    """The preset whose columns these are, if that leaves no doubt. DataError: it is one of several."""
    has = set(columns).issuperset
    fits: dict[Preset, bool] = {
        "preference": has({"chosen", "rejected"}),
        "ultrafeedback": has({"instruction", "completions"}),
        "helpsteer2": has({"prompt", "response", *HELPSTEER}),
        "helpsteer3": has({"context", "response1", "response2", "overall_preference"}),
        "pku_saferlhf": has({"response_0", "response_1"})
        and bool({"better_response_id", "safer_response_id"} & set(columns)),
    }
    names = [name for name, fit in fits.items() if fit]
    if len(names) > 1:
        raise DataError(
            f"the columns fit {' and '.join(names)}; say which, e.g. --map {names[0]} (in a recipe: data.map)"
        )
    return names[0] if names else None


def completed(given: Map, columns: Sequence[str], place: str, talks: bool = False) -> Map:
    """The map with its preset's keys, and with what the columns leave no doubt about: prompt, system, dimension.

    talks: both sides are conversations, which hold their prompt. DataError: the map describes nothing, or it names a
    column that is not there.
    """
    whole = with_preset(given, columns)
    whole = whole.model_copy(update=_told(whole, columns, place, talks))
    for column in needed(whole):
        if column not in columns:
            near = get_close_matches(column, columns, 1)
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise DataError(
                f"{place}: data.map names the column {column!r}, which is not there; the columns are "
                f"{excerpt(', '.join(columns), 100)}{hint}"
            )
    return whole


def with_preset(given: Map, columns: Sequence[str]) -> Map:
    """The map with its preset's keys. DataError: it describes nothing."""
    base = PRESETS[given.preset] if given.preset else Map()
    fields = base.said | {key: value for key, value in given.said.items() if key != "preset"}
    if fields.get("labels") and given.labels is None:  # sets of one dimension have one of them
        fields["labels"] = {d: c for d, c in fields["labels"].items() if c in columns} or fields["labels"]
    try:
        whole = Map(**fields)
    except ValidationError as error:
        raise DataError(f"data.map: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    if whole.shape is None:
        options = "; ".join(", ".join(keys) for keys in SHAPES.values())
        raise DataError(f"data.map does not say what the columns are: give a preset, or all keys of one of: {options}")
    return whole


def _told(given: Map, columns: Sequence[str], place: str, talks: bool) -> dict[str, object]:
    """What the columns say about keys that are not given, and None for those that are to be none."""
    told: dict[str, object] = {key: None for key in ("prompt", "system") if getattr(given, key) == NONE}
    if given.prompt is None:
        prompts = [c for c in PROMPTS if c in columns]
        if len(prompts) > 1 and not talks:
            hint = f", or {NONE} where the conversations hold it" if given.shape == "pair" else ""
            raise DataError(
                f"{place}: the prompt may be {' or '.join(prompts)}; say which, e.g. --map prompt={prompts[0]}{hint} "
                "(in a recipe: data.map.prompt)"
            )
        if len(prompts) > 1:
            prompts = []
        if prompts == ["instruction"] and "input" in columns:
            told["prompt"] = ("instruction", "input")
        elif prompts:
            told["prompt"] = prompts[0]
    if given.system is None and "system" in columns:
        told["system"] = "system"
    if given.dimension is None and given.constant is None and given.shape in ("pair", "scored pair"):
        dimensions = [c for c in DIMENSIONS if c in columns]
        if len(dimensions) > 1:
            raise DataError(
                f"{place}: the dimension may be {' or '.join(dimensions)}; say which, e.g. "
                f"--map dimension={dimensions[0]} (in a recipe: data.map.dimension)"
            )
        told["dimension" if dimensions else "constant"] = dimensions[0] if dimensions else UNNAMED
    return told


def needed(given: Map) -> list[str]:
    """The columns that a map names."""
    prompts = (given.prompt,) if isinstance(given.prompt, str) else given.prompt or ()
    own = [
        *(c for c in (*prompts, given.system) if c != NONE),
        given.golden,
        given.reject,
        given.dimension,
        given.completions,
        given.score,
    ]
    own += [*(given.responses or ()), *(given.labels or {}).values()]
    if given.completions is None:
        own += [given.response, *given.rated.values()]
    own += named_beside(given)
    return [column for column in own if column is not None]


def named_beside(given: Map) -> list[str]:
    """The columns of weights and of tools, where a map names others than are taken by their names."""
    return [column for key in sorted(OWN & given.said.keys()) if (column := getattr(given, key)) != NONE]


def said(given: Map, whole: Map) -> str:
    """In words: what the columns are taken for."""
    prompt = whole.prompt if isinstance(whole.prompt, str) else " + ".join(whole.prompt or ())
    parts = [f"prompt from {prompt}" if prompt else "prompt from what both conversations begin with"]
    if whole.system:
        parts.append(f"system message from {whole.system}")
    match whole.shape:
        case "pair":
            parts.append(f"{whole.golden} over {whole.reject}")
        case "scored pair":
            parts.append(f"{' or '.join(whole.responses or ())} by {whole.score}, from {whole.gap:g} on")
        case "labelled pair":
            labels = (whole.labels or {}).items()
            parts.append(", ".join(f"{d} from {c}" for d, c in labels) + ", a record each where they disagree")
        case _:
            others = [a for a in whole.rated if whole.dimensions and a not in whole.dimensions]
            parts.append(f"ratings of {', '.join(a for a in whole.rated if a not in others)}")
            if others:
                parts.append(f"{', '.join(others)} equal")
            parts.append(f"gap {whole.gap:g}, tie {whole.tie:g}")
    if whole.dimension:
        parts.append(f"dimension from {whole.dimension}")
    elif whole.constant:
        parts.append(f"all of dimension {whole.constant!r}")
    return f"{given.preset or whole.shape}: {'; '.join(parts)}"
