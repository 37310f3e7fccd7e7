"""What a build costs before anything is spent: the same walk over records, with texts that are not written yet."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dpeer.eval.build.build import limited, prepare
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.texts import Ask, Texts, bases
from dpeer.eval.build.verify import refuse_related, verification_plan
from dpeer.eval.build.walk import Walker
from dpeer.eval.judge import cost as rating_cost
from dpeer.eval.prices import load_prices, price_of
from dpeer.eval.spending import CHARACTERS_PER_TOKEN
from dpeer.eval.streak import Row

TYPICAL = 600
"""Characters of a text that is not there yet, about."""


class Foretold:
    """Texts on disk, and in place of each other one a text of typical length, whose call is counted."""

    def __init__(self, texts: Texts) -> None:
        self.texts, self.missing = texts, dict[str, Ask]()

    def get(self, ask: Ask) -> Row:
        if (row := self.texts.get(ask)) is not None:
            return row
        self.missing[ask.id] = ask
        text = f"{ask.stage} {ask.dimension} {ask.slot.id} ".ljust(TYPICAL, "x")
        return {"status": "ok", "text": "".join(f"<{tag}>{text}</{tag}>" for tag in ask.used.answers)}


def cost(spec: BuildSpec, limit: int | None = None) -> pd.DataFrame:
    """What is missing if every text is right at once, a row per generator and verifier: model, what (calls per stage),
    calls, prompt_tokens (about), output_tokens (at most), price (at most; NaN where the model's price is not known).

    Raises what `dpeer.eval.build.build.build` raises before it asks anybody.
    """
    refuse_related(spec)
    slots, _, _ = prepare(spec, limit)
    wanted = limited(spec, limit).wanted
    foretold = Foretold(Texts(spec))
    walker = Walker(spec, bases(spec), foretold.get, lambda candidate: ())
    states = [walker.state(slot) for (split, mask), some in slots.items() for slot in some[: wanted[mask].of(split)]]
    table = load_prices(spec.prices)
    rows: list[dict[str, Any]] = []
    for served in spec.generators:
        own = [ask for ask in foretold.missing.values() if ask.slot.generator == served.name]
        prompt = sum(len(s.text) for ask in own for s in ask.segments) / CHARACTERS_PER_TOKEN
        output = len(own) * (spec.generation.max_tokens + served.reasoning_budget)
        stages = pd.Series([ask.stage for ask in own], dtype="str").value_counts(sort=False)
        price = price_of(table, served)
        rows.append(
            {
                "model": served.name,
                "what": ", ".join(f"{n:,} {stage}" for stage, n in stages.items()) or "nothing",
                "calls": len(own),
                "prompt_tokens": round(prompt),
                "output_tokens": output,
                "price": price.of(prompt, 0, output) if price else float("nan"),
            }
        )
    candidates = [c for state in states if state.made for c in state.made.responses]
    cfg = spec.evaluation
    ratings = rating_cost(cfg, verification_plan(cfg, spec, candidates))
    longest = 1 if cfg.judging.mode == "logprob" else cfg.judging.max_tokens
    for served, row in zip(spec.verifiers, ratings.to_dict("records"), strict=True):
        budget = 0 if cfg.judging.mode == "logprob" else served.reasoning_budget
        output = row["calls"] * (longest + budget)
        told = {"what": "ratings", "output_tokens": output, "model": served.name}
        rows.append({k: row[k] for k in ("calls", "prompt_tokens", "price")} | told)
    return pd.DataFrame(rows)
