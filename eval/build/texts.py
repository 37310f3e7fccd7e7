"""Texts that generators wrote: a durable table, a row per call, and the calls that are still to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console

from dpeer.eval.backends.registry import BACKENDS, identity
from dpeer.eval.backends.types import Answer, Call, Method
from dpeer.eval.build.asking import Template, read, template
from dpeer.eval.build.slots import Slot
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.config import Served
from dpeer.eval.questions.prompting import Segment, visible
from dpeer.eval.run import Connect, Work, execute
from dpeer.eval.store.parts import content_id, done_ids, read_table, write_part
from dpeer.eval.streak import Row

TEXTS = pa.schema(
    [
        ("text_id", pa.string()),  # hash of model, sampling, prompt and attempt
        ("record", pa.string()),
        ("mask", pa.string()),
        ("stage", pa.string()),
        ("dimension", pa.string()),  # of a reject: what it is to fail
        ("attempt", pa.int32()),
        ("model", pa.string()),
        ("model_hash", pa.string()),
        ("prompt_hash", pa.string()),  # of the template
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("status", pa.string()),  # ok, unparsed (lacks what was asked for), truncated, engine_error
        ("error", pa.string()),
        ("refused", pa.bool_()),
        ("thoughts", pa.string()),
        ("thought_tokens", pa.int32()),
    ]
)
RETRIED = ("engine_error", "truncated")
UNANSWERED = ("error", "too_long", "filtered")


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that a record needs now."""

    slot: Slot
    stage: str
    dimension: str
    attempt: int
    segments: tuple[Segment, ...]
    base: Mapping[str, Any]
    """What else its id depends on: see `bases`."""

    @property
    def used(self) -> Template:
        return template(self.stage)

    @property
    def id(self) -> str:
        told = [segment.text for segment in self.segments]
        return content_id(**self.base, stage=self.stage, record=self.slot.id, attempt=self.attempt, asked=told)


def texts_folder(spec: BuildSpec) -> Path:
    return spec.folder / "texts"


def bases(spec: BuildSpec) -> dict[str, dict[str, Any]]:
    """Per generator: what answers, and how it is sampled."""
    how = spec.generation.model_dump(exclude={"samples"}) | {"seed": spec.seed}
    cfg = spec.evaluation
    return {
        served.name: {
            "model_hash": identity(served),
            "sampling": how | BACKENDS[served.backend].conditions(served, cfg.engine_of(served)),
        }
        for served in spec.generators
    }


class Texts:
    """What is on disk, by id; it grows with what is asked for."""

    def __init__(self, spec: BuildSpec) -> None:
        self.spec, self.folder = spec, texts_folder(spec)
        table = read_table(self.folder, TEXTS)
        self.rows: dict[str, Row] = {row["text_id"]: row for row in table.to_dict("records")}

    def get(self, ask: Ask) -> Row | None:
        return self.rows.get(ask.id)

    def ask(self, asks: Iterable[Ask], connect: Connect, console: Console) -> None:
        """Make the rows of these calls. Raises ClusterError where a generator gives nothing usable, as `execute`."""
        by_model: dict[str, list[Ask]] = {served.name: [] for served in self.spec.generators}
        for ask in asks:
            by_model[ask.slot.generator].append(ask)
        works = [self._work(served, by_model[served.name]) for served in self.spec.generators]
        execute(self.spec.evaluation, works, connect, self.folder, console)

    def _work(self, served: Served, asks: Sequence[Ask]) -> Work:
        by_id = {ask.id: ask for ask in asks}
        spec = self.spec.generation
        return Work(
            served,
            Method("sample", max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=spec.top_p),
            ids=frozenset(by_id),
            calls=lambda: (_call(i, ask, spec.system) for i, ask in by_id.items()),
            rows=lambda answers: [_row(by_id[answer.id], answer) for answer in answers],
            write=self._keep(served),
            usable=lambda row: row["status"] == "ok",
            conversation=("record",),
            proven=lambda: any(r["model"] == served.name and r["status"] == "ok" for r in self.rows.values()),
            saved=lambda: done_ids(self.folder, TEXTS),
        )

    def _keep(self, served: Served) -> Callable[[Sequence[Row]], None]:
        def keep(rows: Sequence[Row]) -> None:
            write_part(self.folder / f"model={served.name}", rows, TEXTS)
            self.rows.update((row["text_id"], row) for row in rows)

        return keep

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows.values(), columns=TEXTS.names)


def _call(call_id: str, ask: Ask, system: str | None) -> Call:
    return Call(call_id, ask.slot.id, ask.segments, system, seed=int(call_id[:8], 16))


def _row(ask: Ask, answer: Answer) -> Row:
    text: str | None = visible(answer.text)
    status, error = "ok", answer.error
    if answer.finish in UNANSWERED:
        status, text = "engine_error", None
    elif isinstance(fault := read(text or "", ask.used.answers), str):
        status, error = (
            ("truncated", "cut at generation.max_tokens") if answer.finish == "length" else ("unparsed", fault)
        )
    return {
        "text_id": answer.id,
        "record": ask.slot.id,
        "mask": ask.slot.mask_name,
        "stage": ask.stage,
        "dimension": ask.dimension or None,
        "attempt": ask.attempt,
        "model": ask.slot.generator,
        "model_hash": ask.base["model_hash"],
        "prompt_hash": ask.used.hash,
        "text": text,
        "tokens": answer.output_tokens,
        "status": status,
        "error": error,
        "refused": answer.finish == "refusal",
        "thoughts": visible(answer.thoughts) if answer.thoughts else None,
        "thought_tokens": answer.thought_tokens,
    }
