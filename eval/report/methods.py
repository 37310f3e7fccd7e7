"""The methods section of an evaluation: what was rated by whom, the model of the ratings, and what it found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpeer.eval.report import words
from dpeer.report.methods import Writer

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result


def evaluation_methods(result: Result, writer: Writer) -> str:
    """What one fit did and found, in the words and numbers of a methods section; claims only where the gate allows."""
    facts, gate = result.facts, result.gate
    judges = result.tables["judges"] if "judges" in result.tables else pd.DataFrame()
    options = facts.get("options", {})
    return writer.write(
        "methods_of_ratings.j2",
        "dpeer.eval.report",
        facts=facts,
        items=facts.get("items", "an unknown number of"),
        options=options,
        terms=list(_terms(facts)),
        given=list(_given(facts)),
        alpha=_alpha(result),
        judges=list(judges["judge"].astype(str)) if "judge" in judges else [],
        gate=gate,
        green=bool(gate.get("green")),
        reasons=[str(reason).rstrip(".") for reason in gate.get("reasons", ())],
        scale=result.posterior.ratings.scale if result.posterior is not None else (),
        contrasts=list(_contrasts(result)),
        fixed=words.fixed,
        count=lambda value: words.count(value) if words.known(value) else "an unknown number of",
    )  # fmt: skip


TERMS = {
    "response_effect": "an effect of each response, which all of its ratings share",
    "model_item": "an effect of model by item",
    "halo": "a halo of each judge on each response",
    "judge_model": "an effect of judge by model",
    "judge_item": "an effect of judge by item",
    "groups": "effects of models on groups of items",
    "length": "response length",
    "order": "order of presentation",
    "self_family": "judges' own family",
    "self_model": "judges' own model",
}


def _terms(facts: dict[str, Any]) -> Iterator[str]:
    """The terms that were in the model: what the fit decided counts before what was asked."""
    options = facts.get("options", {})
    for name, meaning in TERMS.items():
        if facts.get(name, options.get(name)):
            yield meaning


def _given(facts: dict[str, Any]) -> Iterator[str]:
    for name, what in (("ratings", "usable ratings"), ("comparisons", "comparisons")):
        if words.known(number := facts.get(name)) and number:
            yield f"{words.count(number)} {what}"


def _alpha(result: Result) -> bool:
    """Judges have discriminations: asked for, and more than one who could differ."""
    if result.posterior is not None:
        return "log_alpha" in result.posterior.draws
    return bool(result.facts.get("options", {}).get("model") == "gmfrm")


def _contrasts(result: Result) -> Iterator[dict[str, str]]:
    if not result.gate.get("green") or "contrasts" not in result.tables:
        return
    for row in result.contrasts.dropna(subset=["family_low", "family_high"]).itertuples():
        yield {
            "model": row.model,
            "dimension": row.dimension,
            "estimate": words.signed(row.contrast),
            "bounds": words.between(row.family_low, row.family_high),
        }
