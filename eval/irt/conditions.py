"""When a comparison of releases is to fail a pipeline: a small, strict language of conditions.

    worst dimension down [by X]   the weakest dimension of a model is weaker than the weakest one was
    any dimension down [by X]     some dimension of a model fell, by Bonferroni over models and dimensions
    NAME down [by X]              dimension NAME of a model fell
    judges drifted                a judge that both fits share has moved against the others
    gate                          a fit has not passed its diagnostics

"down" means: with posterior probability of at least P, by more than X logits (default 0). What cannot be decided counts
as met: a fit that has not passed its diagnostics, dimensions that nothing links, fewer than two shared judges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpeer.errors import ConfigError
from dpeer.eval.irt.releases import Comparison
from dpeer.eval.irt.types import Floats

FORMS = '"worst dimension down", "any dimension down", "NAME down" (each also "... by 0.2"), "judges drifted", "gate"'


@dataclass(frozen=True, slots=True)
class Condition:
    text: str
    kind: str
    """worst, any, one, drift or gate."""
    dimension: str = ""
    margin: float = 0.0
    """Logits by which something must have fallen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    condition: str
    met: bool
    why: str


def parse(text: str, dimensions: Sequence[str]) -> Condition:
    """A condition on the given dimensions, which both fits have; ConfigError for any other text."""
    words = " ".join(text.split())
    if words in ("gate", "judges drifted"):
        return Condition(words, "gate" if words == "gate" else "drift")
    found = re.fullmatch(r"(.+) down(?: by (\d+(?:\.\d*)?|\.\d+))?", words)
    if not found:
        raise ConfigError(f"--fail-if {text!r}: no such condition; write one of {FORMS}")
    what, margin = found[1], float(found[2] or 0)
    if what in ("worst dimension", "any dimension"):
        return Condition(words, what.partition(" ")[0], margin=margin)
    if what not in dimensions:
        raise ConfigError(
            f"--fail-if {text!r}: no dimension {what} in both fits; there are {', '.join(dimensions)}. Conditions: "
            f"{FORMS}"
        )
    return Condition(words, "one", what, margin)


def decide(condition: Condition, comparison: Comparison, probability: float) -> Verdict:
    """Whether a condition is met; what is not known counts as met."""
    if reason := _undecided(condition, comparison):
        return Verdict(condition.text, True, f"undecided, so it counts as met: {reason}")
    if condition.kind == "gate":
        return Verdict(condition.text, False, "both fits passed their diagnostics")
    if condition.kind == "drift":
        drift = comparison.tables["drift"]
        names = list(dict.fromkeys(drift.loc[drift["drifted"] & (drift["kind"] == "judges"), "name"]))
        return Verdict(condition.text, bool(names), f"moved: {', '.join(names)}" if names else "no judge has moved")
    labels, chance, needed = _chances(condition, comparison, probability)
    top = int(np.argmax(chance))
    return Verdict(
        condition.text,
        bool(chance[top] >= needed),
        f"{labels[top]}: P = {chance[top]:.3f}, {needed:.4g} needed",
    )


def _undecided(condition: Condition, made: Comparison) -> str | None:
    """Why nothing is known of what is asked for."""
    if made.reasons:
        return made.reasons[0]
    if condition.kind == "drift":
        judges = made.tables["drift"].query("kind == 'judges'")
        if not (judges.groupby("dimension").size() > 1).any():  # one can only be held against others
            return "the fits share fewer than two judges, so that none can be seen to have moved"
    asked = {"worst": made.unlinked, "any": made.unlinked, "one": (condition.dimension,)}.get(condition.kind, ())
    lost = [d for d in asked if d in made.unlinked]
    return f"nothing links the two fits in {', '.join(lost)}" if lost else None


def _chances(condition: Condition, made: Comparison, probability: float) -> tuple[list[str], Floats, float]:
    """What may have fallen, with which probability, and the probability that it takes."""
    models = [a if a == b else f"{a} to {b}" for a, b in made.pairs]
    if condition.kind == "worst":
        fall = made.before.min(axis=2) - made.after.min(axis=2)
        weakest = made.after.mean(axis=0).argmin(axis=1)
        labels = [f"{m}, weakest in {made.dimensions[d]}" for m, d in zip(models, weakest, strict=True)]
        return labels, (fall > condition.margin).mean(axis=0), probability
    chosen = [d for d, name in enumerate(made.dimensions) if condition.kind == "any" or name == condition.dimension]
    chance = (-made.difference[:, :, chosen] > condition.margin).mean(axis=0).ravel()
    labels = [f"{m}, {made.dimensions[d]}" for m in models for d in chosen]
    needed = 1 - (1 - probability) / len(labels) if condition.kind == "any" else probability
    return labels, chance, needed
