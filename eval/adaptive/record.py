"""What was asked in each round, and the look that led to it, on disk before the first call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.eval.adaptive.decide import Look
from dpeer.eval.adaptive.task import Task
from dpeer.eval.config import Until
from dpeer.eval.plan import Plan
from dpeer.eval.store.parts import content_id
from dpeer.integrity import read_state, write_state

REMEDY = "Restore it from a copy, or delete its folder: the rounds then begin anew, with the ratings that are there."


class Record:
    """Rounds on disk. A plan with other ratings, another base or another `contrast` has rounds of its own."""

    def __init__(self, folder: Path, what: Task, planned: Plan, until: Until) -> None:
        ids = sorted(planned.rows["rating_id"])
        name = content_id(ids=ids, base=what.models[what.design.base], contrast=until.contrast)
        self.folder, self.end = folder / name, folder / name / "end.json"
        self.asked: list[set[str]] = []
        self.looks: list[Look] = []
        for number in range(1, 1 + len(list(self.folder.glob("round-*.json")))):
            state = read_state(self._path(number), REMEDY)
            self.asked.append(set(state["rating_ids"]))
            if state["look"]:
                self.looks.append(_look(state["look"]))
        self.ended = False
        self.against_claims: list[str] = []
        """What the diagnostics of the last posterior say."""
        if self.end.exists() and (state := read_state(self.end, REMEDY))["rounds"] == len(self.asked):
            self.ended = True
            self.looks.append(_look(state["look"]))
            self.against_claims = state["against_claims"]

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:03d}.json"

    @property
    def ids(self) -> set[str]:
        return set().union(*self.asked)

    def begin(self, ids: Iterable[str]) -> None:
        """Write down what the next round asks, and the newest look."""
        seen = self.looks[-1] if self.asked else None
        self.asked.append(set(ids))
        fields = {"rating_ids": sorted(self.asked[-1]), "look": _fields(seen) if seen else None}
        write_state(self._path(len(self.asked)), fields)
        self.ended = False

    def finish(self) -> None:
        fields = {"rounds": len(self.asked), "against_claims": self.against_claims}
        write_state(self.end, fields | {"look": _fields(self.looks[-1])})
        self.ended = True


def _fields(seen: Look) -> dict[str, Any]:
    return {name: getattr(seen, name).tolist() for name in Look.__slots__}


def _look(fields: dict[str, Any]) -> Look:
    return Look(**{name: np.array(fields[name]) for name in Look.__slots__})
