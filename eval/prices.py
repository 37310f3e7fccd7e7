"""What tokens cost: a table of prices, and sums of it. Pure but for reading the table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from dpeer.config_io import load_section
from dpeer.eval.backends.config import Served
from dpeer.section import NonNegative, Section

SHIPPED = Path(__file__).parent / "prices.yaml"
MILLION = 1e6
_DATED = re.compile(r"[-@](?:20\d\d-?\d\d-?\d\d|latest|\d{4}|\d{2}-\d{4})$")


class Tokens(Section):
    input: NonNegative
    """Price of a million tokens of prompts."""
    output: NonNegative
    """Price of a million tokens of answers, thoughts included."""
    cached: NonNegative | None = None
    """Price of a million tokens of prompts that the server had cached; default: as input."""


class Prices(Section):
    currency: str = "USD"
    """What the numbers are in."""
    batch: float = Field(0.5, gt=0, le=1)
    """Share of the price that a request in a file costs (backend openai-batch)."""
    models: dict[str, Tokens] = Field(default_factory=dict)
    """Price by model name."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of one model, per million tokens."""

    input: float
    output: float
    cached: float

    def of(self, prompt: float, cached: float, output: float) -> float:
        """Price of that many tokens; `cached` of those of the prompt were cached."""
        cached = min(cached, prompt)
        return ((prompt - cached) * self.input + cached * self.cached + output * self.output) / MILLION


FREE = Price(0.0, 0.0, 0.0)


def load_prices(path: Path | None) -> Prices:
    """The shipped table, with the entries of a file of the user's in place of its own."""
    table = load_section(Prices, SHIPPED)
    if path is None:
        return table
    own = load_section(Prices, path)
    given = own.model_dump(include=own.model_fields_set - {"models"})
    if own.currency != table.currency:
        return own
    return table.model_copy(update=given | {"models": table.models | own.models})


def price_of(table: Prices, served: Served) -> Price | None:
    """Price of a model, None where it is not known. What runs on this machine is free unless the table has it."""
    name = served.path.rpartition("/")[2]
    names = [key for full in (served.path, name) for key in (full, _DATED.sub("", full))]
    found = next((table.models[key] for key in names if key in table.models), None)
    if found is None:
        return FREE if _own(served) else None
    share = table.batch if served.backend == "openai-batch" else 1.0
    cached = found.input if found.cached is None else found.cached
    return Price(found.input * share, found.output * share, cached * share)


def _own(served: Served) -> bool:
    host = urlsplit(served.base_url or "").hostname or ""
    return served.base_url is None or host in ("localhost", "::1") or host.startswith("127.")


def money(amount: float, currency: str) -> str:
    """An amount as people read it: 0.0042 USD, 12.30 USD."""
    return f"{amount:.2f} {currency}" if amount >= 1 else f"{amount:.2g} {currency}"
