"""Calls to answers on disk: one model after another, each through its backend, every call written exactly once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from dpeer.errors import CheckpointError, ClusterError
from dpeer.escape import markup
from dpeer.eval import config
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Call, Job, Method, Say, Useless
from dpeer.eval.prices import FREE, Price, money
from dpeer.eval.progress import Meter
from dpeer.eval.questions.thoughts import Bare, thoughts_apart
from dpeer.eval.spending import Affordable, Books
from dpeer.eval.streak import GIVE_UP, Row, Streak, advice, reasons
from dpeer.integrity import read_state, refuse_damaged_model, write_state

Connect = Callable[[], AbstractContextManager[Any]]
RATES = "rates.json"


class OverBudget(ClusterError):
    """The budget does not bear the calls that are left."""


@dataclass(frozen=True, slots=True)
class Work:
    """The calls of one model that are still to be answered, conversation by conversation."""

    served: config.Served
    method: Method
    ids: frozenset[str]
    calls: Callable[[], Iterator[Call]]
    rows: Callable[[Sequence[Answer]], list[Row]]
    """Answers as rows of the table."""
    write: Callable[[Sequence[Row]], object]
    usable: Callable[[Row], bool]
    """Whether a row holds what was asked for."""
    conversation: tuple[str, ...]
    """Columns that tell conversations apart."""
    done: int = 0
    """Rows of this model that are on disk already."""
    proven: Callable[[], bool] = lambda: False
    """Whether one of these is usable."""
    saved: Callable[[], Collection[str]] = frozenset
    """Ids of all rows on disk, those of earlier plans too."""


def execute(
    cfg: config.EvalConfig, works: Sequence[Work], connect: Connect, folder: Path, console: Console | None = None
) -> None:
    """Answer and write all calls. Ray is entered (`connect`) only when a model whose backend needs it has calls left.

    Raises ClusterError when engines cannot be had; all that was finished before is on disk.
    """
    console = console or Console(highlight=False)
    works = [w for w in works if w.ids]
    connected = False
    sessions: dict[str, Answers] = {}
    books = Books(cfg, folder)
    priced = {work.served.name: books.price(work.served) for work in works}  # unknown ones end the run before it begins
    asked: list[config.Served] = []

    def say(line: str) -> None:
        console.print(markup(line), soft_wrap=True)
        books.note(asked[-1], line)

    with ExitStack() as stack:
        for work in works:
            name = work.served.backend
            asked.append(work.served)
            if name not in sessions:
                backend = BACKENDS[name]
                if backend.needs_ray and not connected:
                    stack.enter_context(connect())
                    connected = True
                sessions[name] = stack.enter_context(backend.session(cfg.farm, say))
            _execute_one(cfg, work, sessions[name], books, priced[work.served.name], console, say)


def _execute_one(
    cfg: config.EvalConfig,
    work: Work,
    session: Answers,
    books: Books,
    price: Price | None,
    console: Console,
    say: Say,
) -> None:
    refuse_damaged_model(work.served.path)
    folder = books.path.parent
    memory = folder / f"batches-{work.served.name}.json"
    proven = bool(work.done) and work.proven()
    job = Job(
        work.served,
        cfg.engine_of(work.served),
        work.method,
        count=len(work.ids),
        memory=memory,
        pending=work.ids,
        proven=proven,
    )
    pending = set(work.ids)
    tokens: int | None = 0
    began = time.monotonic()
    left = math.inf if books.budget is None else books.budget - books.spent
    calls = Affordable(work.calls(), work.method, work.served, price or FREE, left)
    stream = session(job, calls)
    streak = Streak(work.usable, work.conversation)
    bare = _bare(work.served)
    with Meter(console, work.served.name, work.done + len(pending), work.done) as meter:
        for answers in stream:
            fresh = [_thoughts_apart(a, bare) for a in answers if a.id in pending]
            pending -= {a.id for a in fresh}
            rows = work.rows(fresh)
            if kept := streak.passed(rows, [a.finish for a in fresh]):
                work.write(kept)
            _book(work, calls, books, [*fresh, *_of_others(work, answers)], price, say)
            meter.advance(len(fresh), money(books.spent, books.table.currency) if books.spent else "")
            if streak.broken and not proven:
                raise _given_up(stream, work, streak)
            if streak.broken:
                say(_borne_with(work, streak))
                work.write(streak.released())
            tokens = _added(tokens, fresh)
        if streak.held:
            work.write(streak.released())
    if pending and calls.short:
        raise OverBudget(
            f"{work.served.name}: the budget of {money(books.budget or 0, books.table.currency)} does not bear more: "
            f"{money(books.spent, books.table.currency)} is spent and {len(pending):,} calls are left. What was "
            "answered is saved; raise `budget` and run the same command again."
        )
    if pending:
        raise ClusterError(
            f"{work.served.name}: {len(pending)} of {len(work.ids)} calls came back without an answer; the others are "
            "saved. Run the same command again to ask for these."
        )
    _save_rate(folder / RATES, work, tokens, time.monotonic() - began)


def _of_others(work: Work, answers: Sequence[Answer]) -> list[Answer]:
    """Answers to calls of an earlier recipe, which cost money, and are no rows of this one."""
    others = [answer for answer in answers if answer.id not in work.ids]
    saved = work.saved() if others else ()
    return [answer for answer in others if answer.id not in saved]


def _book(
    work: Work, calls: Affordable, books: Books, answers: Sequence[Answer], price: Price | None, say: Say
) -> None:
    guessed = calls.guessed
    cost = calls.paid(answers)
    books.add(work.served, answers, None if price is None else cost)
    if calls.guessed and not guessed:
        say(
            f"{work.served.name}: the endpoint does not say how many tokens an answer took; such answers are booked at "
            "the most that they may cost."
        )


def _bare(served: config.Served) -> Bare:
    if BACKENDS[served.backend].writes_prompts:
        return "never"
    return "anywhere" if served.reasoning_budget else "alone"


def _thoughts_apart(answer: Answer, bare: Bare) -> Answer:
    """The answer without thoughts in its text. Thoughts that never end are an answer that was cut."""
    if answer.finish not in ("stop", "length", "refusal"):
        return answer
    text, thoughts, ended = thoughts_apart(answer.text, bare)
    if ended and text == answer.text:
        return answer
    both = "\n".join(part for part in (answer.thoughts, thoughts) if part)
    return replace(answer, text=text, thoughts=both, finish=answer.finish if ended else "length")


def _given_up(stream: Iterator[list[Answer]], work: Work, streak: Streak) -> ClusterError:
    if isinstance(stream, Generator):
        with suppress(Useless):
            stream.throw(Useless())
    return _useless(work, streak)


def _borne_with(work: Work, streak: Streak) -> str:
    told = reasons((row["status"], row["error"]) for row in streak.held)
    return (
        f"{work.served.name}: more than {GIVE_UP} conversations in a row gave nothing usable ({told}). It has given "
        "usable answers before, so the run goes on, and these are rows."
    )


def _useless(work: Work, streak: Streak) -> ClusterError:
    statuses = [row["status"] for row in streak.held]
    return ClusterError(
        f"{work.served.name}: more than {GIVE_UP} conversations in a row gave nothing usable "
        f"({reasons((row['status'], row['error']) for row in streak.held)}); {advice(statuses)}. The same command asks "
        "for these again, and goes on with what was saved before."
    )


def refuse_nothing_usable(table: pd.DataFrame, by: str, command: str) -> None:
    """ClusterError where one of the models or judges has no usable row. Columns: `by`, usable, status, error."""
    if said := nothing_usable(table, by):
        raise ClusterError(f"{'. '.join(said)}. Then run `{command}` again with --retry-errors.")


def nothing_usable(table: pd.DataFrame, by: str) -> list[str]:
    """A sentence for each of the models or judges without a usable row, and what to do about it."""
    empty = [(str(name), rows) for name, rows in table.groupby(by, sort=False) if not rows["usable"].any()]
    return [
        f"{name}: none of {len(rows):,} rows is usable ({reasons(_faults(rows))}); {advice(rows['status'])}"
        for name, rows in empty
    ]


def _faults(rows: pd.DataFrame) -> Iterator[tuple[str, str | None]]:
    for status, error in rows[["status", "error"]].itertuples(index=False, name=None):
        yield status, error if isinstance(error, str) else None


def _added(tokens: int | None, answers: Sequence[Answer]) -> int | None:
    """With the tokens that these answers took to compute; None when a backend does not tell which were cached."""
    for answer in answers:
        if answer.cached_tokens is None and answer.finish in ("stop", "length"):
            return None
        if tokens is not None:
            tokens += (answer.prompt_tokens or 0) - (answer.cached_tokens or 0) + answer.output_tokens
    return tokens


def _save_rate(path: Path, work: Work, tokens: int | None, seconds: float) -> None:
    """Remember how fast this model answered, for the next plan."""
    rates = read_rates(path.parent)
    rates[f"{work.served.name}/{work.method.mode}"] = {
        "calls": len(work.ids),
        "tokens": tokens,
        "seconds": round(seconds, 3),
    }
    write_state(path, rates)


def read_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """Measured calls, computed tokens (None: unknown) and seconds per model/mode of earlier runs in this folder."""
    path = folder / RATES
    if not path.exists():
        return {}
    try:
        return read_state(path, "Rates only foretell times: the file is ignored, and made again by the next run.")
    except CheckpointError as error:
        print(f"note: {error}", file=sys.stderr, flush=True)
        return {}
