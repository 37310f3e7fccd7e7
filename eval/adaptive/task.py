"""A plan of ratings as arrays, for the choice of what to ask; and ratings as what the quick fit reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.adaptive.choose import Design
from dpeer.eval.adaptive.quick_fit import Observed
from dpeer.eval.config import EvalConfig, Until
from dpeer.eval.irt.types import Bools, Ints
from dpeer.eval.plan import Plan

SHARE = 10
"""A batch is the whole design over this, by default; the first is half of one."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A plan as arrays: the units of `design`, and which row belongs to which."""

    design: Design
    unit: Ints  # [rows]
    models: tuple[str, ...]
    items: tuple[str, ...]
    judges: tuple[str, ...]
    dimensions: tuple[str, ...]
    batch: int
    seed: int

    def rows(self, planned: Plan, asked: Bools) -> pd.DataFrame:
        return planned.rows[asked[self.unit]]

    def observed(self, ratings: pd.DataFrame) -> list[Observed]:
        """The usable ratings of each dimension."""
        usable = ratings[ratings["status"] == "ok"]
        return [self._observed(usable[usable["dimension"] == d]) for d in self.dimensions]

    def _observed(self, usable: pd.DataFrame) -> Observed:
        criteria, criterion = np.unique(usable["criterion"].to_numpy(str), return_inverse=True)
        return Observed(
            model=_codes(usable["model"], self.models),
            item=_codes(usable["item"], self.items),
            judge=_codes(usable["judge"], self.judges),
            criterion=criterion.astype(np.int64),
            category=usable["score"].to_numpy(np.int64),
            sizes=(len(self.models), len(self.items), len(self.judges), max(1, len(criteria))),
        )

    def contrasts(self, where: Bools) -> str:
        """Names of contrasts [D, M]."""
        base = self.models[self.design.base]
        named = [f"{self.models[m]} - {base} on {self.dimensions[d]}" for d, m in zip(*np.nonzero(where), strict=True)]
        return ", ".join(named)


def task(cfg: EvalConfig, planned: Plan, until: Until) -> Task:
    """Raises ConfigError for a base that has no response."""
    rows = planned.rows
    names = {name: tuple(sorted(rows[name].unique())) for name in ("model", "item", "judge", "dimension")}
    base = cfg.base or (cfg.models[0].name if cfg.models else names["model"][0])
    if base not in names["model"]:
        raise ConfigError(
            f"judging.until: base {base} has no response; set `base` to one of {', '.join(names['model'])}"
        )
    keys = ["response_id", "judge", "dimension"]
    unit = rows.groupby(keys, sort=False).ngroup().to_numpy()
    first = rows.drop_duplicates(keys)
    models, items, judges, dimensions = (names[name] for name in ("model", "item", "judge", "dimension"))
    design = Design(
        model=_codes(first["model"], models),
        item=_codes(first["item"], items),
        sample=first["sample"].to_numpy(np.int64),
        judge=_codes(first["judge"], judges),
        dimension=_codes(first["dimension"], dimensions),
        size=np.bincount(unit),
        shape=(len(models), len(items), len(judges), len(dimensions)),
        base=models.index(base),
    )
    batch = until.batch or -(-len(rows) // SHARE)
    return Task(design, unit, models, items, judges, dimensions, batch, cfg.seed)


def _codes(names: pd.Series, known: tuple[str, ...]) -> Ints:
    return np.asarray(pd.Categorical(names, categories=list(known)).codes, np.int64)
