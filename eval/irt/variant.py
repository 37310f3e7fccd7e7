"""Which model a fit is of: the options that decide how long its logits are and from where they count."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from dpeer.eval.irt.types import GRADED, Options, Posterior

SAMPLING = ("chains", "warmup", "draws", "seed", "threads", "approx", "anchors")
"""Options that leave the model as it is."""


def variant(
    options: Options, alpha: bool, response_effect: bool, model_item: bool, people_scale: bool = False
) -> dict[str, Any]:
    """All options but `SAMPLING`, with what the ratings made of those that depend on them."""
    chosen = {f.name: getattr(options, f.name) for f in fields(Options) if f.name not in SAMPLING}
    if options.model == GRADED:
        model = GRADED if alpha else f"{GRADED} with equal discriminations"
    else:
        model = "gmfrm" if alpha and options.model == "gmfrm" else "rasch"
    return chosen | {
        "model": model,
        "response_effect": response_effect,
        "model_item": model_item,
        "people_scale": people_scale,
    }


def variant_of(posterior: Posterior) -> dict[str, Any]:
    """The same of a fit."""
    names = ("log_alpha", "s_u", "s_v", "favour")
    found = variant(posterior.options, *(name in posterior.draws for name in names))
    return found | {"ratings": bool(len(posterior.ratings))}  # off: comparisons only, which have a unit of their own


def differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, what both variants name and is not the same; empty where they are one model."""
    names = [name for name, value in now.items() if name in before and before[name] != value]
    return ", ".join(f"{name} {_word(before[name])} and {_word(now[name])}" for name in names)


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
