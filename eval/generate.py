"""Responses of the models under test to a prompt set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from dpeer.eval.backends.types import Answer, Call, Method
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.prices import load_prices, price_of
from dpeer.eval.progress import show_statuses
from dpeer.eval.questions.prompting import Segment, visible
from dpeer.eval.responses import ID, planned_responses, responses_folder
from dpeer.eval.run import Connect, Work, execute, refuse_nothing_usable
from dpeer.eval.spending import CHARACTERS_PER_TOKEN
from dpeer.eval.store.parts import anti_join, done_ids, drop_rows, lock, read_table, write_part
from dpeer.eval.store.schema import RESPONSES
from dpeer.eval.streak import Row


def generate(cfg: EvalConfig, connect: Connect, retry_errors: bool = False, console: Console | None = None) -> Path:
    """Make all planned responses that are missing; returns the folder of their part files.

    Every response has its own seed, which follows from its id: a resumed run gives the samples that an uninterrupted
    one gives (up to the rounding of other batches). With `retry_errors`, those that failed or were cut are asked for
    again.
    """
    console = console or Console(highlight=False)
    folder = responses_folder(cfg)
    with lock(folder):
        if retry_errors and (dropped := drop_rows(folder, ("engine_error", "truncated"), RESPONSES)):
            console.print(f"{dropped} failed or truncated responses are asked for again.")
        rows = planned_responses(cfg)
        todo = anti_join(rows, done_ids(folder, RESPONSES), ID)
        works = [_work(cfg, rows, todo, served) for served in cfg.models]
        execute(cfg, works, connect, folder, console)
        made = read_table(folder, RESPONSES)
    planned = made[made[ID].isin(rows[ID])]
    show_statuses(planned, "model", console)
    if thinking := int(planned["thoughts"].notna().sum()):
        console.print(f"{thinking:,} responses came with thoughts, which are kept beside them (column `thoughts`).")
    refuse_nothing_usable(planned.assign(usable=planned["response"].notna()), "model", "dpeer generate")
    return folder


def cost(cfg: EvalConfig) -> pd.DataFrame:
    """What the missing responses cost, one row per model: model, calls, prompt_tokens (about), output_tokens (at most),
    price (at most, in the currency of the price table; NaN where the model's price is not known)."""
    rows, table = planned_responses(cfg), load_prices(cfg.prices)
    todo = anti_join(rows, done_ids(responses_folder(cfg), RESPONSES), ID)
    costs = []
    for served in cfg.models:
        left = todo[todo["model"] == served.name]
        texts = int(left["prompt"].str.len().sum()) + len(cfg.generation.system or "") * len(left)
        output = len(left) * (cfg.generation.max_tokens + served.reasoning_budget)
        price = price_of(table, served)
        costs.append(
            {
                "model": served.name,
                "calls": len(left),
                "prompt_tokens": round(texts / CHARACTERS_PER_TOKEN),
                "output_tokens": output,
                "price": price.of(texts / CHARACTERS_PER_TOKEN, 0, output) if price else float("nan"),
            }
        )
    return pd.DataFrame(costs)


def _work(cfg: EvalConfig, rows: pd.DataFrame, todo: pd.DataFrame, served: Served) -> Work:
    left = todo[todo["model"] == served.name]
    spec = cfg.generation
    return Work(
        served,
        Method("sample", max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=spec.top_p),
        ids=frozenset(left[ID]),
        calls=lambda: _calls(left, spec.system),
        rows=_rows(left),
        write=lambda rows: write_part(responses_folder(cfg) / f"model={served.name}", rows, RESPONSES),
        usable=lambda row: row["response"] is not None,
        conversation=("item",),
        done=int((rows["model"] == served.name).sum()) - len(left),
        proven=lambda: _proven(cfg, rows, served),
        saved=lambda: done_ids(responses_folder(cfg), RESPONSES),
    )


def _proven(cfg: EvalConfig, rows: pd.DataFrame, served: Served) -> bool:
    made = read_table(responses_folder(cfg) / f"model={served.name}", RESPONSES)
    return bool(made.loc[made[ID].isin(rows[ID]), "response"].notna().any())


def _calls(rows: pd.DataFrame, system: str | None) -> Iterator[Call]:
    for response_id, item, prompt in rows[[ID, "item", "prompt"]].itertuples(index=False, name=None):
        segments = (Segment(visible(prompt), False),)
        yield Call(response_id, item, segments, system, seed=int(response_id[:8], 16))


def _rows(left: pd.DataFrame) -> Callable[[Sequence[Answer]], list[Row]]:
    by_id = left.set_index(ID, drop=False)

    def rows(answers: Sequence[Answer]) -> list[Row]:
        known = by_id.loc[[a.id for a in answers]].to_dict("records")
        return [row | _response(answer) for row, answer in zip(known, answers, strict=True)]

    return rows


def _response(answer: Answer) -> Row:
    failed = answer.finish in ("error", "too_long", "filtered")
    status = "engine_error" if failed else "truncated" if answer.finish == "length" else "ok"
    # Cut within its thoughts, shown or hidden, a model has said nothing; an empty text that it ended itself is what it
    # said.
    nothing = failed or (status == "truncated" and not answer.text.strip())
    return {
        "response": None if nothing else visible(answer.text),
        "tokens": answer.output_tokens,
        "status": status,
        "error": CUT_IN_THOUGHTS if nothing and not failed else answer.error,
        "refused": answer.finish == "refusal",
        "thoughts": visible(answer.thoughts) if answer.thoughts else None,
        "thought_tokens": answer.thought_tokens,
    }


CUT_IN_THOUGHTS = "cut within its thoughts (generation.max_tokens, reasoning_budget)"
