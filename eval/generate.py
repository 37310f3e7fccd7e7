"""Responses of the models under test to a prompt set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from dpeer.eval import turns
from dpeer.eval.backends.types import Answer, Method
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.prices import load_prices, price_of
from dpeer.eval.progress import show_statuses
from dpeer.eval.questions.conversations import turns as turn_count
from dpeer.eval.questions.prompting import visible
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
        if retry_errors:
            drop_rows(turns.turns_folder(cfg), ("truncated",), RESPONSES)
            if dropped := drop_rows(folder, ("engine_error", "truncated"), RESPONSES):
                console.print(f"{dropped} failed or truncated responses are asked for again.")
        rows = planned_responses(cfg)
        _converse(cfg, rows, connect, console)
        todo, said = anti_join(rows, done_ids(folder, RESPONSES), ID), turns.Said.read(cfg)
        works = [_work(cfg, rows, todo, said, served) for served in cfg.models]
        execute(cfg, works, connect, folder, console)
        made = read_table(folder, RESPONSES)
    planned = made[made[ID].isin(rows[ID])]
    show_statuses(planned, "model", console)
    if thinking := int(planned["thoughts"].notna().sum()):
        console.print(f"{thinking:,} responses came with thoughts, which are kept beside them (column `thoughts`).")
    refuse_nothing_usable(planned.assign(usable=planned["response"].notna()), "model", "dpeer generate")
    return folder


def _converse(cfg: EvalConfig, rows: pd.DataFrame, connect: Connect, console: Console) -> None:
    """Make the missing answers before the last of each conversation, turn by turn."""
    counts = rows["prompt"].map(turn_count)
    if (several := counts > 1).any():
        console.print(
            f"{int(several.sum()):,} of {len(rows):,} planned responses end conversations of up to {counts.max()} "
            "turns, which are asked for one after the other.",
            soft_wrap=True,
        )
    for turn in range(int(counts.max()) - 1):
        todo = anti_join(rows[several], done_ids(responses_folder(cfg), RESPONSES), ID)
        said = turns.Said.read(cfg)
        works = [_turn(cfg, rows, turns.due(todo, said, turn), said, served, turn) for served in cfg.models]
        execute(cfg, works, connect, responses_folder(cfg), console)


def _turn(cfg: EvalConfig, rows: pd.DataFrame, due: pd.DataFrame, said: turns.Said, served: Served, turn: int) -> Work:
    left = due[due["model"] == served.name]
    spec = cfg.generation
    return Work(
        served,
        _method(cfg),
        ids=frozenset(turns.turn_id(i, turn) for i in left[ID]),
        calls=lambda: turns.calls(left, said, spec.system, turn),
        rows=turns.rows_of(left, said, turn, _response),
        write=turns.write(cfg, served.name, left, turn),
        usable=lambda row: row["response"] is not None,
        conversation=("item",),
        proven=lambda: _proven(cfg, rows, served),
        saved=lambda: {*said.answers, *done_ids(responses_folder(cfg), RESPONSES)},
    )


def _method(cfg: EvalConfig) -> Method:
    spec = cfg.generation
    return Method("sample", max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=spec.top_p)


def cost(cfg: EvalConfig) -> pd.DataFrame:
    """What the missing responses cost, one row per model: model, calls, prompt_tokens (about), output_tokens (at most),
    price (at most, in the currency of the price table; NaN where the model's price is not known)."""
    rows, table = planned_responses(cfg), load_prices(cfg.prices)
    todo, said = anti_join(rows, done_ids(responses_folder(cfg), RESPONSES), ID), turns.Said.read(cfg)
    costs = []
    for served in cfg.models:
        left = todo[todo["model"] == served.name]
        system, longest = len(cfg.generation.system or ""), cfg.generation.max_tokens
        asked = [turn for i, prompt in zip(left[ID], left["prompt"], strict=True) for turn in said.missing(i, prompt)]
        tokens = sum((text + system) / CHARACTERS_PER_TOKEN + answers * longest for text, answers in asked)
        output = len(asked) * (longest + served.reasoning_budget)
        price = price_of(table, served)
        costs.append(
            {
                "model": served.name,
                "calls": len(asked),
                "prompt_tokens": round(tokens),
                "output_tokens": output,
                "price": price.of(tokens, 0, output) if price else float("nan"),
            }
        )
    return pd.DataFrame(costs)


def _work(cfg: EvalConfig, rows: pd.DataFrame, todo: pd.DataFrame, said: turns.Said, served: Served) -> Work:
    left = todo[todo["model"] == served.name]
    return Work(
        served,
        _method(cfg),
        ids=frozenset(left[ID]),
        calls=lambda: turns.calls(left, said, cfg.generation.system),
        rows=_rows(left, said),
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


def _rows(left: pd.DataFrame, said: turns.Said) -> Callable[[Sequence[Answer]], list[Row]]:
    by_id = left.set_index(ID, drop=False)

    def rows(answers: Sequence[Answer]) -> list[Row]:
        known = by_id.loc[[a.id for a in answers]].to_dict("records")
        made = [row | _response(answer) for row, answer in zip(known, answers, strict=True)]
        return [row | turns.transcript(row, said) for row in made]

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
