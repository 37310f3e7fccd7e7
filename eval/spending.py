"""What an evaluation has cost, what it may still cost, and a manifest that remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from dpeer.errors import CheckpointError, ConfigError
from dpeer.eval import prices
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.types import Answer, Call, Method, characters
from dpeer.eval.config import EvalConfig
from dpeer.integrity import read_state, write_state

MANIFEST = "manifest.json"
CHARACTERS_PER_TOKEN = 3.0
"""Fewer than English text has, so that a forecast errs upwards."""
TEMPLATE = 16
"""Tokens that a chat template adds to a request, about."""
KNOWN = 20
"""Answers from which the price of the next ones is foretold by their mean, not by their longest length."""
COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens", "thought_tokens")


class Books:
    """The manifest of a folder of rows: per model what was asked, said and spent, over all runs."""

    def __init__(self, cfg: EvalConfig, folder: Path) -> None:
        self.table = prices.load_prices(cfg.prices)
        self.budget, self.path = cfg.budget, folder / MANIFEST
        self.others = sum(
            spent_in(place) for place in (cfg.folder / "responses", cfg.folder / "ratings") if place != folder
        )
        self.models: dict[str, dict[str, Any]] = _read(self.path)
        self.lock = RLock()

    @property
    def spent(self) -> float:
        """By all models, for responses and ratings."""
        return self.others + sum(entry["spent"] or 0.0 for entry in self.models.values())

    def price(self, served: Served) -> prices.Price | None:
        """Raises ConfigError where a budget is set and the price is not known."""
        price = prices.price_of(self.table, served)
        if price is None and self.budget is not None:
            raise ConfigError(
                f"budget is {self.budget:g} {self.table.currency}, but the price of {served.path} is not known. Give a "
                f"file `prices: FILE` with models: {{{served.path}: {{input: ..., output: ...}}}} (per million tokens)."
            )
        return price

    def add(self, served: Served, answers: Sequence[Answer], price: prices.Price | None) -> float:
        """Book answers; what they cost."""
        cost = sum(_cost(answer, price) for answer in answers) if price else 0.0
        with self.lock:
            entry = self._entry(served)
            for name in COUNTS:
                entry[name] += sum(getattr(answer, name) or 0 for answer in answers)
            entry["answers"] += len(answers)
            entry["spent"] = None if price is None else (entry["spent"] or 0.0) + cost
            self._write()
        return cost

    def note(self, served: Served, line: str) -> None:
        """Keep what a backend said of a model, such as which parameters its endpoint does not take."""
        with self.lock:  # backends speak from threads of their own
            entry = self._entry(served)
            if line not in entry["said"]:
                entry["said"].append(line)
                self._write()

    def _entry(self, served: Served) -> dict[str, Any]:
        fresh = {"answers": 0, **dict.fromkeys(COUNTS, 0), "spent": 0.0, "said": []}
        entry = self.models.setdefault(served.name, fresh)
        entry |= served.model_dump(mode="json", include={"backend", "path", "base_url", "request"})
        return entry

    def _write(self) -> None:
        write_state(
            self.path, {"currency": self.table.currency, "spent": self.spent - self.others, "models": self.models}
        )


def _cost(answer: Answer, price: prices.Price) -> float:
    return price.of(answer.prompt_tokens or 0, answer.cached_tokens or 0, answer.output_tokens)


def spent_in(folder: Path) -> float:
    return sum(entry["spent"] or 0.0 for entry in _read(folder / MANIFEST).values())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    remedy = "It says what was spent: restore it from a copy, or delete it to count from nothing."
    models: dict[str, dict[str, Any]] = read_state(path, remedy, CheckpointError)["models"]
    return models


class Affordable(Iterator[Call]):
    """Calls for as long as the budget bears them: it ends early where it may not, and goes on once answers turn out to
    cost less than was foretold."""

    def __init__(self, calls: Iterable[Call], method: Method, served: Served, price: prices.Price, left: float) -> None:
        self.calls, self.method, self.price, self.left = iter(calls), method, price, left
        self.longest = method.max_tokens + (served.reasoning_budget if method.mode != "logprob" else 0)
        self.next: Call | None = None
        self.cost, self.answered, self.given, self.foretold = 0.0, 0, 0, 0.0
        self.short = False
        """Whether a call had to wait for money."""

    def paid(self, answers: int, cost: float) -> None:
        self.answered += answers
        self.cost += cost

    def __next__(self) -> Call:
        if self.next is None:
            self.next = next(self.calls)
        one = self.price.of(characters(self.next) / CHARACTERS_PER_TOKEN + TEMPLATE, 0, self.longest)
        under_way = self.given - self.answered
        each = self.cost / self.answered if self.answered >= KNOWN else (self.foretold + one) / (self.given + 1)
        self.short = self.cost + (under_way + 1) * each > self.left
        if self.short:
            raise StopIteration
        self.given += 1
        self.foretold += one
        call, self.next = self.next, None
        return call
