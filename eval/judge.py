"""The judge farm: planned ratings in, rated rows on disk out; and what a plan will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.markup import escape

from dpeer.escape import markup
from dpeer.eval.adaptive import rounds, summary
from dpeer.eval.asking import shown_of, spoken_of
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Call, Method
from dpeer.eval.config import EvalConfig, Served, Until
from dpeer.eval.pair_plan import read_as
from dpeer.eval.plan import Plan, plan, ratings_folder, temperature
from dpeer.eval.prices import FREE, load_prices, price_of
from dpeer.eval.progress import show_statuses
from dpeer.eval.questions.pairwise import (
    CHOICES,
    lowest_first,
    pair_segments,
    read_pair_logprobs,
    read_pair_structured,
)
from dpeer.eval.questions.prompting import Mode, encode_chat, judge_segments, prefix_length, visible
from dpeer.eval.questions.readout import Reading, read_logprobs, read_structured
from dpeer.eval.run import Connect, Work, execute, read_rates, refuse_nothing_usable
from dpeer.eval.spending import note_rounds
from dpeer.eval.store.parts import (
    done_ids,
    drop_rows,
    lock,
    parts,
    read_sealed,
    read_table,
    refuse_off_scale,
    unsealed,
    write_part,
    write_table,
)
from dpeer.eval.store.schema import PLACES, RATINGS
from dpeer.eval.streak import Row

RETRIED = ("engine_error", "truncated", "unparsed", "refused")
"""What another try may change; low_mass is what the judge computes."""
SAMPLE = 200
"""Conversations whose tokens are counted for an estimate; with fewer the count is exact."""


def judge(
    cfg: EvalConfig,
    connect: Connect,
    retry_errors: bool = False,
    console: Console | None = None,
) -> Path:
    """Make all planned ratings that are missing; returns the table of exactly the planned rows.

    With `judging.until` only those that it takes to decide the contrasts, in rounds (see `eval.adaptive.rounds`).
    Raises ClusterError where a judge has no usable rating. The rest as `rate`.
    """
    table = rate(cfg, connect, retry_errors, console, in_rounds=cfg.judging.until)
    made = pd.read_parquet(table, columns=["judge", "status", "error"])
    refuse_nothing_usable(made.assign(usable=made["status"] == "ok"), "judge", "dpeer judge")
    return table


def rate(
    cfg: EvalConfig,
    connect: Connect,
    retry_errors: bool = False,
    console: Console | None = None,
    planner: Callable[[EvalConfig], Plan] = plan,
    in_rounds: Until | None = None,
) -> Path:
    """Make all planned ratings that are missing; returns the table of exactly the planned rows, usable or not.

    `connect` gives a context in which Ray is initialised; it is entered only when something is missing. With
    `retry_errors`, rows with a status of RETRIED are taken out first and asked for again. `planner` says
    which ratings are planned; `in_rounds`, when enough of them are made.
    """
    console = console or Console(highlight=False)
    folder, table = ratings_folder(cfg), cfg.folder / "ratings.parquet"
    with lock(folder):
        if retry_errors and (dropped := drop_rows(folder, RETRIED)):
            console.print(f"{dropped} failed or truncated ratings are asked for again.")
        planned = planner(cfg)
        for note in planned.notes:
            console.print(f"[yellow]note:[/] {markup(note)}", soft_wrap=True)
        if in_rounds is None:
            _make(cfg, planned, connect, table, console)
        else:
            _make_in_rounds(cfg, planned, in_rounds, connect, table, console)
    made = pd.read_parquet(table, columns=["judge", "status", "error"])
    show_statuses(made, "judge", console)
    return table


def _make(cfg: EvalConfig, planned: Plan, connect: Connect, table: Path, console: Console) -> None:
    """Make what is missing of a plan, and the table of exactly its rows."""
    folder = ratings_folder(cfg)
    execute(cfg, [work(cfg, planned, served) for served in cfg.judges], connect, folder, console)
    refuse_off_scale(folder, planned.rubric.scale)
    if old := unsealed(parts(folder)):
        console.print(
            f"[yellow]note:[/] {len(old)} part files in {folder} have no checksums (an earlier dpeer, or another "
            "program, wrote them): damage to them would not be seen.",
            soft_wrap=True,
        )
    if len(planned.todo) or not _holds(table, folder, planned, console):
        ratings = read_table(folder).set_index("rating_id")
        # What only marks a row, such as a family that was corrected since, is not part of its id.
        marks = planned.rows.set_index("rating_id")[list(MARKS)]
        ratings = ratings.loc[marks.index].assign(**marks)
        write_table(table, ratings.reset_index()[RATINGS.names])


def _make_in_rounds(
    cfg: EvalConfig, planned: Plan, until: Until, connect: Connect, table: Path, console: Console
) -> None:
    def make(part: Plan) -> pd.DataFrame:
        _make(cfg, part, connect, table, console)
        return pd.read_parquet(table)

    def keep(asked: Plan, facts: dict[str, Any]) -> None:
        known = load_prices(cfg.prices)
        left = planned.rows[~planned.rows["rating_id"].isin(asked.rows["rating_id"])]
        if any(price_of(known, served) not in (None, FREE) for served in cfg.judges):
            facts["price_saved"] = float(cost(cfg, replace(planned, todo=left))["price"].sum())
            facts["currency"] = known.currency
        note_rounds(ratings_folder(cfg), facts)
        summary.show(facts, console)

    rounds.run(cfg, planned, until, make, keep, console)


MARKS = ("model_family", "judge_family", "other_model_family")
ERROR_EXCERPT = 500


def _holds(table: Path, folder: Path, planned: Plan, console: Console) -> bool:
    """Whether the table is that of the plan; one that cannot be read, or is older than a part file, is not."""
    columns = ["rating_id", *MARKS]
    try:
        if any(part.stat().st_mtime_ns > table.stat().st_mtime_ns for part in parts(folder)):
            return False
        written = read_sealed(table, RATINGS).select(columns).to_pandas()
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        console.print(f"[yellow]note:[/] {table} is damaged ({escape(reason)}); made again.", soft_wrap=True)
        return False
    if len(written) != len(planned.rows):
        return False
    planned_rows = planned.rows[columns].astype(object).where(planned.rows[columns].notna(), None)
    written = written.astype(object).where(written.notna(), None)
    return set(written.itertuples(index=False, name=None)) == set(planned_rows.itertuples(index=False, name=None))


def work(cfg: EvalConfig, planned: Plan, served: Served) -> Work:
    """What is left for one judge."""
    todo = planned.todo[planned.todo["judge"] == served.name]
    method = Method(
        read_as(cfg.judging),
        max_tokens=1 if read_as(cfg.judging) == "logprob" else cfg.judging.max_tokens,
        temperature=temperature(cfg),
        rubric=planned.rubric,
        choices=CHOICES if cfg.judging.mode == "pairwise" else (),
    )
    return Work(
        served,
        method,
        ids=frozenset(todo["rating_id"]),
        calls=lambda: calls(planned, todo, read_as(cfg.judging)),
        rows=_rows(cfg, planned, served, todo),
        write=lambda rows: write_part(ratings_folder(cfg) / f"judge={served.name}", rows),
        usable=lambda row: row["status"] == "ok",
        conversation=planned.conversation,
        done=int((planned.rows["judge"] == served.name).sum()) - len(todo),
        proven=lambda: _proven(cfg, planned, served),
        saved=lambda: done_ids(ratings_folder(cfg)),
    )


def _proven(cfg: EvalConfig, planned: Plan, served: Served) -> bool:
    made = read_table(ratings_folder(cfg) / f"judge={served.name}")
    return bool((made.loc[made["rating_id"].isin(planned.rows["rating_id"]), "status"] == "ok").any())


def calls(planned: Plan, rows: pd.DataFrame, mode: Mode) -> Iterator[Call]:
    """The requests behind planned rows, in their order."""
    if "other_response_id" in rows:
        yield from _pair_calls(planned, rows, mode)
        return
    columns = ["rating_id", "response_id", "dimension", "criterion", "order"]
    for response_id, group in rows[columns].groupby("response_id", sort=False):
        response = planned.responses.loc[response_id]
        spoken = spoken_of(planned.rubric, response)
        for rating_id, _, dimension, criterion, order in group.itertuples(index=False, name=None):
            shown = shown_of(planned.judging, response, dimension)
            texts = (response["prompt"], response["response"])
            segments = judge_segments(spoken, *texts, dimension, criterion, order, mode, shown)
            yield Call(rating_id, str(response_id), segments, seed=int(rating_id[:8], 16))


def _pair_calls(planned: Plan, rows: pd.DataFrame, mode: Mode) -> Iterator[Call]:
    columns = ["rating_id", "dimension", "criterion"]
    for (mine, other, place), group in rows.groupby(list(planned.conversation), sort=False):
        both = [planned.responses.loc[response_id] for response_id in (mine, other)]
        first, second = both if place == PLACES[0] else both[::-1]
        spoken, texts = spoken_of(planned.rubric, first), (first["prompt"], first["response"], second["response"])
        for rating_id, dimension, criterion in group[columns].itertuples(index=False, name=None):
            shown = (shown_of(planned.judging, first, dimension), shown_of(planned.judging, second, dimension))
            segments = pair_segments(spoken, *texts, dimension, criterion, mode, shown)
            yield Call(rating_id, f"{mine}/{other}/{place}", segments, seed=int(rating_id[:8], 16))


def _rows(
    cfg: EvalConfig, planned: Plan, served: Served, todo: pd.DataFrame
) -> Callable[[Sequence[Answer]], list[Row]]:
    by_id = todo.set_index("rating_id", drop=False)
    conditions = BACKENDS[served.backend].conditions(served, cfg.engine_of(served))
    common = {column: conditions.get(column) for column in ("dtype", "batch_invariant")}

    def rows(answers: Sequence[Answer]) -> list[Row]:
        known = by_id.loc[[a.id for a in answers]].to_dict("records")
        return [row | common | rated(a, cfg, planned, row["order"]) for row, a in zip(known, answers, strict=True)]

    return rows


def rated(answer: Answer, cfg: EvalConfig, planned: Plan, order: str = "up") -> dict[str, Any]:
    """The columns of the ratings table that an answer fills; order: that of its row."""
    reading = read(answer, cfg, planned.rubric.scale, order)
    pairwise = cfg.judging.mode == "pairwise"
    logprobs = lowest_first(answer.logprobs, order) if pairwise else answer.logprobs
    return {
        "status": reading.status,
        "score": reading.score,
        "expected": reading.expected,
        "mass": reading.mass,
        "logprobs": list(logprobs) or None,
        "rationale": reading.rationale,
        "error": reading.error,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "output_tokens": answer.output_tokens,
        "engine": answer.engine,
        "eager": answer.eager,
        "thoughts": visible(answer.thoughts) if answer.thoughts else None,
        "thought_tokens": answer.thought_tokens,
    }


def read(answer: Answer, cfg: EvalConfig, scale: Sequence[int], order: str = "up") -> Reading:
    if answer.finish == "too_long":
        return Reading("truncated", error=answer.error)
    if answer.finish == "refusal":
        return Reading("refused", error=visible(answer.text)[:ERROR_EXCERPT])
    if answer.finish in ("error", "filtered"):
        return Reading("engine_error", error=answer.error)
    pairwise = cfg.judging.mode == "pairwise"
    if read_as(cfg.judging) == "logprob":
        draw = int(answer.id[:16], 16) / 2**64 if cfg.judging.score == "sampled" else None  # an id is a uniform hash
        if pairwise:
            return read_pair_logprobs(answer.logprobs, order, cfg.judging.min_mass, draw)
        return read_logprobs(answer.logprobs, scale, cfg.judging.min_mass, draw)
    if pairwise:
        return read_pair_structured(answer.text, answer.finish, order)
    return read_structured(answer.text, answer.finish, scale)


def cost(cfg: EvalConfig, planned: Plan, tokens_per_second: float | None = None) -> pd.DataFrame:
    """What the missing ratings cost, one row per judge.

    Columns: judge, calls, prompt_tokens, shared_tokens (of these, in a prefix that an earlier call of the conversation
    has computed), exact (counted, not estimated from a sample), seconds (NaN when nothing is known about the speed:
    give tokens_per_second, computed prompt tokens and output tokens per second of all replicas together, or run once),
    price (at most, in the currency of the price table; NaN where the model's price is not known).
    """
    rates, table = read_rates(ratings_folder(cfg)), load_prices(cfg.prices)
    costs = []
    for served in cfg.judges:
        todo = planned.todo[planned.todo["judge"] == served.name]
        prompt, shared, exact = _tokens(served, planned, todo, read_as(cfg.judging))
        rate = rates.get(f"{served.name}/{read_as(cfg.judging)}")
        longest = cfg.judging.max_tokens + served.reasoning_budget
        output = len(todo) * (1 if read_as(cfg.judging) == "logprob" else longest)
        price = price_of(table, served)
        computed = prompt - shared + output
        costs.append(
            {
                "judge": served.name,
                "calls": len(todo),
                "prompt_tokens": round(prompt),
                "shared_tokens": round(shared),
                "exact": exact,
                "seconds": _seconds(len(todo), computed, tokens_per_second, rate),
                "price": price.of(prompt, 0, output) if price else float("nan"),
            }
        )
    return pd.DataFrame(costs)


def _seconds(calls: int, computed: float, tokens_per_second: float | None, rate: dict[str, Any] | None) -> float:
    """By tokens where their speed is known, else by the calls of an earlier run."""
    if not calls:
        return 0.0
    if tokens_per_second:
        return computed / tokens_per_second
    if rate and rate["tokens"]:
        return float(computed * rate["seconds"] / rate["tokens"])
    return calls * rate["seconds"] / rate["calls"] if rate and rate["calls"] else float("nan")


def _tokens(served: Served, planned: Plan, todo: pd.DataFrame, mode: Mode) -> tuple[float, float, bool]:
    """Prompt tokens, those in shared prefixes, and whether they were counted over all conversations."""
    conversation = todo.groupby(list(planned.conversation), sort=False).ngroup()
    if todo.empty:
        return 0.0, 0.0, True
    sampled = conversation < SAMPLE  # shuffled already: the first are a random sample
    tokenizer = BACKENDS[served.backend].tokenizer(served)
    prompt = shared = 0.0
    before = None
    for call in calls(planned, todo[sampled], mode):
        if tokenizer is None:
            text = [s.text for s in call.segments]
            length, prefix = len("".join(text)) / BYTES_PER_TOKEN, len("".join(text[:-1])) / BYTES_PER_TOKEN
        else:
            length, prefix = len(encode_chat(tokenizer, call.segments)), prefix_length(tokenizer, call.segments)
        prompt += length
        shared += prefix if call.conversation == before else 0
        before = call.conversation
    factor = len(todo) / int(sampled.sum())
    return prompt * factor, shared * factor, tokenizer is not None and bool(sampled.all())


BYTES_PER_TOKEN = 4.0
"""Characters per token of English text, where the tokenizer is not here."""
