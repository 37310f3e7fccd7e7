"""Conversations that the model under test carries on: its earlier answers, one row each, beside the responses.

The last answer is the response. An earlier one is a row of the same form in a folder of its own, so that a stopped run
goes on in the middle of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.backends.types import Answer, Call
from dpeer.eval.config import EvalConfig
from dpeer.eval.questions.conversations import conversation, so_far, turns, written
from dpeer.eval.questions.prompting import Segment, visible
from dpeer.eval.responses import ID, responses_folder
from dpeer.eval.store.parts import content_id, read_table, write_part
from dpeer.eval.store.schema import RESPONSES
from dpeer.eval.streak import Row

CUT_EARLIER = "turn {} was cut (generation.max_tokens)"


def turns_folder(cfg: EvalConfig) -> Path:
    return cfg.folder / "turns"


def turn_id(response_id: str, turn: int) -> str:
    """Id of an answer before the last, counted from 0."""
    return content_id(response=response_id, turn=turn)


@dataclass(frozen=True, slots=True)
class Said:
    """Earlier answers on disk, (text, whether it or one before it was cut) by id."""

    answers: Mapping[str, tuple[str, bool]]

    @classmethod
    def read(cls, cfg: EvalConfig) -> Said:
        table = read_table(turns_folder(cfg), RESPONSES)
        cut = table["status"] == "truncated"
        return cls(dict(zip(table[ID], zip(table["response"], cut, strict=True), strict=True)))

    def before(self, response_id: str, turn: int) -> list[tuple[str, bool]] | None:
        """Answers to the turns before this one; None where one is missing."""
        ids = [turn_id(response_id, k) for k in range(turn)]
        return [self.answers[i] for i in ids] if all(i in self.answers for i in ids) else None

    def missing(self, response_id: str, prompt: str) -> list[tuple[int, int]]:
        """Per turn of a response that is still to be answered: characters that are given before it, and answers."""
        count = turns(prompt)
        known = next((k for k in range(count - 1) if turn_id(response_id, k) not in self.answers), count - 1)
        before = [text for text, _ in self.before(response_id, known) or ()]
        told = [so_far(prompt, [*before, *[""] * (k - known)]) for k in range(known, count)]
        return [(sum(len(m.content) for m in said), k) for k, said in enumerate(told)]


def due(rows: pd.DataFrame, said: Said, turn: int) -> pd.DataFrame:
    """Those of the planned responses whose answer to a turn before the last is missing, and that can be asked for."""
    wanted = [
        turns(prompt) > turn + 1
        and turn_id(response_id, turn) not in said.answers
        and said.before(response_id, turn) is not None
        for response_id, prompt in zip(rows[ID], rows["prompt"], strict=True)
    ]
    return rows[np.array(wanted, dtype=bool)]


def calls(rows: pd.DataFrame, said: Said, system: str | None, turn: int | None = None) -> Iterator[Call]:
    """Requests for the answers to a turn, or to the last one of each conversation."""
    for response_id, item, prompt in rows[[ID, "item", "prompt"]].itertuples(index=False, name=None):
        last = turns(prompt) - 1
        answers = [text for text, _ in said.before(response_id, last if turn is None else turn) or ()]
        *history, question = so_far(prompt, answers)
        call_id = response_id if turn is None else turn_id(response_id, turn)
        own = visible(history.pop(0).content) if history and history[0].role == "system" else system
        told = tuple((m.role, visible(m.content)) for m in history)
        segments = (Segment(visible(question.content), False),)
        yield Call(call_id, item, segments, own, seed=int(call_id[:8], 16), history=told)


def transcript(row: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """Columns of a response that end a conversation: all that was said, and whether an earlier answer was cut."""
    prompt, response = row["prompt"], row["response"]
    if not conversation(prompt) or response is None:
        return {}
    before = said.before(row[ID], turns(prompt) - 1) or []
    told: dict[str, Any] = {"transcript": written(so_far(prompt, [*(text for text, _ in before), response]))}
    if cut := [k for k, (_, cut) in enumerate(before, 1) if cut]:
        told |= {"status": "truncated", "error": CUT_EARLIER.format(cut[0])}
    return told


def rows_of(
    due: pd.DataFrame, said: Said, turn: int, response_of: Callable[[Answer], Row]
) -> Callable[[Sequence[Answer]], list[Row]]:
    """Answers to a turn as rows of the form of responses, whose prompt is the conversation so far."""
    by_id = {turn_id(row[ID], turn): row for row in due.to_dict("records")}

    def rows(answers: Sequence[Answer]) -> list[Row]:
        made = []
        for answer in answers:
            row, filled = by_id[answer.id], response_of(answer)
            before = said.before(row[ID], turn) or []
            if filled["status"] == "ok" and any(cut for _, cut in before):
                filled |= {"status": "truncated", "error": "an earlier turn was cut (generation.max_tokens)"}
            prompt = written(so_far(row["prompt"], [text for text, _ in before]))
            made.append(row | {ID: answer.id, "prompt": prompt} | filled)
        return made

    return rows


def write(cfg: EvalConfig, name: str, due: pd.DataFrame, turn: int) -> Callable[[Sequence[Row]], None]:
    """Keeps answers; a turn without one ends its conversation, whose response has failed then."""
    by_id = {turn_id(row[ID], turn): row for row in due.to_dict("records")}

    def keep(rows: Sequence[Row]) -> None:
        said = [row for row in rows if row["response"] is not None]
        failed = [
            row | by_id[row[ID]] | {"error": f"turn {turn + 1} of {turns(by_id[row[ID]]['prompt'])}: {row['error']}"}
            for row in rows
            if row["response"] is None
        ]
        for folder, part in ((turns_folder(cfg), said), (responses_folder(cfg), failed)):
            if part:
                write_part(folder / f"model={name}", part, RESPONSES)

    return keep
