"""The page of a comparison of models of judging (`irt.loo`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dpeer.eval.irt.diagnostics import gate
from dpeer.eval.irt.loo import DOUBTFUL
from dpeer.eval.irt.types import Posterior
from dpeer.eval.report.table import Table, build
from dpeer.eval.report.words import fixed, signed
from dpeer.files import write_text
from dpeer.report.page import templates


def write_page(table: pd.DataFrame, fits: Mapping[str, Posterior], path: Path) -> Path:
    """`table`: of `loo.compare_models`. Fits that did not pass their diagnostics are named."""
    notes = []
    for name, posterior in fits.items():
        if not (verdict := gate(posterior))["green"]:
            notes.append(f"{name} has not passed its diagnostics: {'; '.join(verdict['reasons'])}.")
    page = templates("dpeer.eval.report").get_template("models.html.j2").render(
        finding=finding(table),
        lead="A model that predicts better describes how these judges score; whether they are right it cannot say. "
        "Logits of different models are not comparable: compare fair averages.",
        models=_table(table),
        notes=notes,
        units=f"{int(table['units'].iloc[0]):,}",
    )  # fmt: skip
    write_text(path, page)
    return path


def finding(table: pd.DataFrame) -> str:
    """The headline."""
    best, others = table.iloc[0], table.iloc[1:]
    if table["verdict"].str.startswith(DOUBTFUL).any():
        return "Importance weights fail for answers that matter: no model can be said to predict best"
    alike = others[others["verdict"] != "predicts worse"]["fit"]
    if not len(others):
        return f"{best['fit']} is the only model"
    if len(alike):
        return f"{best['fit']} predicts best, but {', '.join(alike)} may predict as well"
    second = others.iloc[0]
    return f"{best['fit']} predicts best, by {-second['difference']:.1f} (se {second['difference_se']:.1f})"


def _table(table: pd.DataFrame) -> Table:
    return build(
        "How well answers left out are predicted",
        table.itertuples(),
        Fit=lambda r: str(r.fit),
        Model=lambda r: str(r.model),
        elpd_n=lambda r: f"{fixed(r.elpd, 1)}\nse {fixed(r.elpd_se, 1)}",
        Difference_n=lambda r: f"{signed(r.difference, 1)}\nse {fixed(r.difference_se, 1)}",
        Effective_parameters_n=lambda r: fixed(r.p_loo, 1),
        **{"k-hat_above_0.7_n": lambda r: f"{r.unreliable} of {r.units}"},
        Weight_n=lambda r: fixed(r.weight),
        Verdict=lambda r: str(r.verdict),
    )
