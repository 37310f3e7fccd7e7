"""Which ratings an order audit needs: both ends of every edge, on that edge's dimension, by every judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from dpeer.data.schema import DataSet
from dpeer.errors import ConfigError
from dpeer.eval.audit.pairs import Pairs
from dpeer.eval.config import EvalConfig
from dpeer.eval.plan import Plan, asked, planned_rows, ratings_folder
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.parts import anti_join, done_ids


def audit_config(recipe: EvalConfig, purpose: str = "audit") -> EvalConfig:
    """The recipe with a folder of its own beside that of its evaluation."""
    return recipe.model_copy(update={"name": f"{recipe.name}-{purpose}"})


def only_dimensions(cfg: EvalConfig, sources: Mapping[str, DataSet]) -> tuple[EvalConfig, dict[str, DataSet]]:
    """The config and the data reduced to the dimensions that are audited: all, or those of `judging.dimensions`.

    Raises ConfigError for one that the rubric, or with `judging.dimensions` the data, does not have.
    """
    rubric = load_rubric(cfg.judging.rubric)
    there = tuple(dict.fromkeys(d for data in sources.values() for d in data.dimensions))
    chosen = cfg.judging.dimensions or there
    if strange := [d for d in chosen if d not in there]:
        raise ConfigError(
            f"judging.dimensions names {', '.join(strange)}, but the data have {', '.join(there)}; name some of these."
        )
    if missing := [d for d in chosen if d not in rubric.dimensions]:
        raise ConfigError(
            f"rubric {rubric.name} (judging.rubric) has no {', '.join(missing)}, which the data have; it has "
            f"{', '.join(rubric.dimensions)}. Add what is missing (a rubric may say `extends: {rubric.name}`), give "
            "another rubric, or name the dimensions to audit in judging.dimensions."
        )
    reduced = {
        name: replace(data, dimensions=tuple(d for d in data.dimensions if d in chosen))
        for name, data in sources.items()
    }
    judging = cfg.judging.model_copy(update={"dimensions": chosen})
    return cfg.model_copy(update={"judging": judging}), reduced


def audit_plan(cfg: EvalConfig, compared: Pairs) -> Plan:
    """The ratings of an audit, and which of them are missing. Raises ConfigError as `dpeer.eval.plan.plan` does."""
    ends = compared.edges.melt(["dimension"], ["better", "worse"], value_name="response_id")
    return rating_plan(cfg, compared.responses, ends[["response_id", "dimension"]])


def rating_plan(cfg: EvalConfig, responses: pd.DataFrame, needed: pd.DataFrame) -> Plan:
    """Ratings of responses (the columns of the responses table) by every judge on the dimensions that are needed:
    response_id, dimension. Raises ConfigError as `dpeer.eval.plan.plan` does."""
    if not cfg.judges:
        raise ConfigError("judges is empty: name at least one judge model (name, path).")
    if cfg.judging.mode == "pairwise":
        raise ConfigError(
            "judging.mode is pairwise, but each response of a data set is rated by itself; set logprob or structured."
        )
    rubric = load_rubric(cfg.judging.rubric)
    wanted = pd.MultiIndex.from_frame(needed[["response_id", "dimension"]].drop_duplicates())
    rows = []
    for judge in range(len(cfg.judges)):
        every = planned_rows(cfg, rubric, judge, asked(cfg, rubric), responses)
        rows.append(every[pd.MultiIndex.from_frame(every[["response_id", "dimension"]]).isin(wanted)])
    planned = pd.concat(rows, ignore_index=True)
    todo = anti_join(planned, done_ids(ratings_folder(cfg)))
    return Plan(rubric, responses.set_index("response_id"), planned, todo, (), cfg.judging)
