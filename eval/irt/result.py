"""What a fit says: every table, the verdict on whether claims may be made, and the draws behind them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeer.eval.irt.inference_data import inference_data
from dpeer.eval.irt.types import Posterior


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result:
    """Every table of a fit, one pandas frame each; see `dpeer.eval.irt.tables` for the columns."""

    tables: dict[str, pd.DataFrame]
    gate: dict[str, Any]
    """green (bool), reasons (list of str), advice (list of str), and the figures behind them."""
    notes: tuple[str, ...]
    facts: dict[str, Any]
    posterior: Posterior | None = None
    """The draws behind the tables; None where the tables came without them."""

    @property
    def abilities(self) -> pd.DataFrame:
        """A row per model and dimension: ability in logits with its 95 % interval, and the fair average score."""
        return self._columns("ability", "ability_low", "ability_high", "fair", "fair_low", "fair_high", "n")

    @property
    def contrasts(self) -> pd.DataFrame:
        """A row per dimension and model other than the base: ability minus the base's, in logits, with its 95 %
        interval, the bounds within which all of them hold at once, and probabilities. Claims need a green gate.

        About new prompts of this kind; where models answered enough prompts again, columns that end in `_these` are
        about these prompts alone."""
        return self.tables["contrasts"]

    def to_inference_data(self) -> Any:
        """The draws with named dimensions, as ArviZ takes them; see `dpeer.eval.irt.inference_data`."""
        return inference_data(self.posterior)

    def _columns(self, *names: str) -> pd.DataFrame:
        return self.tables["ability"][["model", "dimension", *names]]

    def _verdict(self) -> str:
        return "green" if self.gate["green"] else f"no claims: {'; '.join(self.gate['reasons'])}"

    def __repr__(self) -> str:
        return f"Result({self.facts['ratings']:,} ratings, base {self.facts['base']}, {self._verdict()})"

    def _repr_html_(self) -> str:
        table = self.abilities.rename(columns={"ability_low": "2.5 %", "ability_high": "97.5 %"})
        return f"<p>{html.escape(self._verdict())}</p>{table.to_html(index=False, float_format='{:.2f}'.format)}"
