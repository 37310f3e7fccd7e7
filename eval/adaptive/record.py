"""What was asked in each round, and the looks that led to it, on disk before the first call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.adaptive.decide import EQUIVALENT, OPEN, Look
from dpeer.eval.adaptive.task import Task
from dpeer.eval.config import Until
from dpeer.eval.plan import Plan
from dpeer.eval.store.parts import content_id
from dpeer.integrity import read_state, write_state

REMEDY = "Restore it from a copy, or delete its folder: the rounds then begin anew, with the ratings that are there."


class Record:
    """Rounds on disk. A plan with other ratings or another base has rounds of its own; another `contrast` goes on with
    these, so that the error is spent once, and what was equivalent by the other one is open."""

    def __init__(self, folder: Path, what: Task, planned: Plan, until: Until) -> None:
        ids = sorted(planned.rows["rating_id"])
        name = content_id(ids=ids, base=what.models[what.design.base])
        self.folder, self.end, self.contrast = folder / name, folder / name / "end.json", until.contrast
        self.others = [p for p in sorted(folder.glob("*")) if p.is_dir() and p != self.folder]
        self.asked: list[set[str]] = []
        self.looks: list[Look] = []
        self.rounds: list[int] = []
        """The round after which each look was."""
        self.failures: dict[int, str] = {}
        """Why the last model could not be fitted, by round."""
        self.against_claims: list[str] = []
        """What the diagnostics of the last posterior say."""
        for number in range(1, 1 + len(list(self.folder.glob("round-*.json")))):
            state = read_state(self._path(number), REMEDY)
            self._take(state)
            self.asked.append(set(state["rating_ids"]))
        self._written = len(self.looks)
        self._ended_with: str | None = None
        if self.end.exists() and (state := read_state(self.end, REMEDY))["rounds"] == len(self.asked):
            self._take(state)
            self.against_claims = state["against_claims"]
            self._ended_with = state["ratings"] if state["contrast"] == self.contrast else None

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:03d}.json"

    def _take(self, state: dict[str, Any]) -> None:
        for fields in state["looks"]:
            self.add(_look(fields, state["contrast"] == self.contrast))
        if state["failure"]:
            self.failures[len(self.asked)] = state["failure"]

    def _state(self) -> dict[str, Any]:
        return {
            "contrast": self.contrast,
            "looks": [_fields(seen) for seen in self.looks[self._written :]],
            "failure": self.failures.get(len(self.asked)),
        }

    @property
    def ids(self) -> set[str]:
        return set().union(*self.asked)

    def add(self, seen: Look) -> None:
        self.looks.append(seen)
        self.rounds.append(len(self.asked))

    def begin(self, ids: Iterable[str]) -> None:
        """Write down what the next round asks, and the looks since the last one began. An end that was there before is
        one of fewer rounds, and does not count."""
        state = self._state()
        self.asked.append(set(ids))
        write_state(self._path(len(self.asked)), {"rating_ids": sorted(self.asked[-1])} | state)
        self._written = len(self.looks)

    def finish(self, ratings: pd.DataFrame) -> None:
        """Write down that these ratings decided what can be decided."""
        self._ended_with = _usable(ratings)
        more = {"rounds": len(self.asked), "against_claims": self.against_claims, "ratings": self._ended_with}
        write_state(self.end, self._state() | more)

    def ended(self, ratings: pd.DataFrame) -> bool:
        """Whether the rounds ended with these very ratings: failed ones may have been asked for again since."""
        return self._ended_with is not None and self._ended_with == _usable(ratings)


def _usable(ratings: pd.DataFrame) -> str:
    usable = ratings.loc[ratings["status"] == "ok", ["rating_id", "score"]].sort_values("rating_id")
    return content_id(ids=usable["rating_id"].tolist(), scores=usable["score"].astype(int).tolist())


def _fields(seen: Look) -> dict[str, Any]:
    return {name: getattr(seen, name).tolist() for name in Look.__slots__}


def _look(fields: dict[str, Any], same_contrast: bool) -> Look:
    seen = Look(**{name: np.array(fields[name]) for name in Look.__slots__})
    if not same_contrast:
        seen.verdict[seen.verdict == EQUIVALENT] = OPEN
    return seen
