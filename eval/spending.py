"""What an evaluation has cost, what it may still cost, and a manifest that remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from dpeer.errors import ConfigError
from dpeer.eval import prices
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.types import Answer, Call, Method, characters
from dpeer.eval.config import EvalConfig
from dpeer.integrity import read_state, write_state

MANIFEST = "manifest.json"
PLACES = ("responses", "ratings", "texts")
"""Folders of rows that cost money, inside that of an evaluation or a build."""
CHARACTERS_PER_TOKEN = 3.0
"""Fewer than English text has, so that a forecast errs upwards."""
TEMPLATE = 16
"""Tokens that a chat template adds to a request, about."""
KNOWN = 20
"""Answers from which the price of the next ones is foretold by their mean, not by their longest length."""
ANSWERED = ("stop", "length", "refusal")
"""Ends of an answer that the model gave, and that costs money."""
COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens", "thought_tokens")


class Books:
    """The manifest of a folder of rows: per model what was asked, said and spent, over all runs."""

    def __init__(self, cfg: EvalConfig, folder: Path) -> None:
        self.table = prices.load_prices(cfg.prices)
        self.budget, self.path = cfg.budget, folder / MANIFEST
        self.others = sum(spent_in(place) for name in PLACES if (place := cfg.folder / name) != folder)
        self.models: dict[str, dict[str, Any]] = _read(self.path)
        self.rounds = read_rounds(folder)
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

    def add(self, served: Served, answers: Sequence[Answer], cost: float | None) -> None:
        """Book answers and what they cost; None: not known."""
        with self.lock:
            entry = self._entry(served)
            for name in COUNTS:
                entry[name] += sum(getattr(answer, name) or 0 for answer in answers)
            entry["answers"] += len(answers)
            # What was spent stays, also where a later table of prices no longer has the model.
            entry["spent"] = (entry["spent"] or 0.0) + (cost or 0.0) if cost is not None or entry["spent"] else None
            self._write()

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
        fields = {"currency": self.table.currency, "spent": self.spent - self.others, "models": self.models}
        write_state(self.path, fields | ({"rounds": self.rounds} if self.rounds else {}))


def spent_in(folder: Path) -> float:
    return sum(entry["spent"] or 0.0 for entry in _read(folder / MANIFEST).values())


def note_rounds(folder: Path, facts: dict[str, Any]) -> None:
    """Keep in the manifest what adaptive judging asked and saved."""
    write_state(folder / MANIFEST, _state(folder / MANIFEST) | {"rounds": facts})


def read_rounds(folder: Path) -> dict[str, Any] | None:
    """What the manifest says of adaptive judging; None where it says nothing."""
    return _state(folder / MANIFEST).get("rounds")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = _state(path).get("models", {})
    return models


def _state(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return read_state(path, "It says what was spent: restore it from a copy, or delete it to count from nothing.")


class Affordable(Iterator[Call]):
    """Calls for as long as the budget bears them: it ends early where it may not, and goes on once answers turn out to
    cost less than was foretold."""

    def __init__(self, calls: Iterable[Call], method: Method, served: Served, price: prices.Price, left: float) -> None:
        self.calls, self.method, self.price, self.left = iter(calls), method, price, left
        self.longest = method.max_tokens + (served.reasoning_budget if method.mode != "logprob" else 0)
        self.next: Call | None = None
        self.cost, self.answered, self.given, self.foretold = 0.0, 0, 0, 0.0
        self.under_way: dict[str, float] = {}
        """Calls without an answer yet, and what each may cost."""
        self.short = False
        """Whether a call had to wait for money."""
        self.guessed = False
        """Whether an answer came without its tokens, and cost what was foretold."""

    def paid(self, answers: Sequence[Answer]) -> float:
        """What these answers cost."""
        cost = sum(self._cost(answer) for answer in answers)
        self.answered += len(answers)
        self.cost += cost
        return cost

    def _cost(self, answer: Answer) -> float:
        most = self.under_way.pop(answer.id, self.price.of(TEMPLATE, 0, self.longest))
        if answer.finish in ANSWERED and answer.prompt_tokens is None and not answer.output_tokens:
            self.guessed |= most > 0
            return most
        return self.price.of(answer.prompt_tokens or 0, answer.cached_tokens or 0, answer.output_tokens)

    def __next__(self) -> Call:
        if self.next is None:
            self.next = next(self.calls)
        one = self.price.of(characters(self.next) / CHARACTERS_PER_TOKEN + TEMPLATE, 0, self.longest)
        each = self.cost / self.answered if self.answered >= KNOWN else (self.foretold + one) / (self.given + 1)
        self.short = one > 0 and self.cost + (len(self.under_way) + 1) * each > self.left
        if self.short:
            raise StopIteration
        self.given += 1
        self.foretold += one
        call, self.next = self.next, None
        self.under_way[call.id] = one
        return call
