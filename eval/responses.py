"""Responses: what is planned, and which of those that are there can be rated."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dpeer.errors import ConfigError, DataError
from dpeer.eval.backends.registry import BACKENDS, family, identity
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.elsewhere.responses import read_responses
from dpeer.eval.questions.conversations import messages_of
from dpeer.eval.questions.prompts import load_prompts
from dpeer.eval.store.parts import content_id, read_table
from dpeer.eval.store.schema import RESPONSES

ID = RESPONSES.names[0]
KEY = ["model", "item", "sample"]


def responses_folder(cfg: EvalConfig) -> Path:
    return cfg.folder / "responses"


def planned_responses(cfg: EvalConfig) -> pd.DataFrame:
    """Every planned response: the columns of the responses table that are known before it is made."""
    if not cfg.models:
        raise ConfigError("models is empty: name at least one model under test (name, path).")
    prompts = load_prompts(cfg.prompts, cfg.seed)
    own = [i for i, p in zip(prompts["item"], prompts["prompt"], strict=True) if messages_of(p)[0].role == "system"]
    if own and cfg.generation.system:
        raise ConfigError(
            f"generation.system is set, and {len(own)} prompts begin with a system message of their own (the first: "
            f"{own[0]}); leave one of the two out."
        )
    return pd.concat([_planned(cfg, served, prompts) for served in cfg.models], ignore_index=True)


def _planned(cfg: EvalConfig, served: Served, prompts: pd.DataFrame) -> pd.DataFrame:
    samples = cfg.generation.samples
    how = cfg.generation.model_dump(exclude={"samples"}) | {"seed": cfg.seed}
    how |= BACKENDS[served.backend].conditions(served, cfg.engine_of(served))
    own = {"model": served.name, "model_hash": identity(served)}
    columns = ["item", "prompt", *({"brief"} & {*prompts})]
    planned = prompts[columns].loc[prompts.index.repeat(samples)].reset_index(drop=True)
    planned["sample"] = list(range(samples)) * len(prompts)
    keys = zip(planned["item"], planned["prompt"], planned["sample"], strict=True)
    planned.insert(0, ID, [content_id(**own, sampling=how, item=i, prompt=p, sample=s) for i, p, s in keys])
    return planned.assign(**own, family=family(served))


def load_responses(cfg: EvalConfig) -> tuple[pd.DataFrame, list[str]]:
    """Responses that can be rated, and notes on what was left out or is missing.

    Of the generated ones only those that the config plans: what other weights, prompts or sampling gave under the same
    name is not mixed in. Raises DataError where nothing is left, or where one model answers one item twice as the same
    sample.
    """
    table, notes = (read_responses(cfg.responses, cfg.prompts), []) if cfg.responses else _generated(cfg)
    path = cfg.responses or responses_folder(cfg)
    if twice := int(table.duplicated(KEY).sum()):
        first = table[table.duplicated(KEY)].iloc[0]
        raise DataError(
            f"{path}: {twice} responses repeat the model, item and sample of another (first: {first['model']}, "
            f"{first['item']}, {first['sample']}). Remove them, or number several answers of one model in `sample`; "
            "for generated responses name the models in the recipe, which says whose are meant."
        )
    failed = (table["status"] == "engine_error") | table["response"].isna()
    if failed.any():
        notes.append(
            f"{int(failed.sum())} responses failed in the engine, or were cut within thoughts, and cannot be rated."
        )
    if cut := int(((table["status"] == "truncated") & ~failed).sum()):
        notes.append(f"{cut} responses were cut at generation.max_tokens or engine.max_model_len and are rated so.")
    if failed.all():
        raise DataError(
            f"{path}: all {len(table)} responses failed (the first: {table['error'].iloc[0]}). Put that right and run "
            "`dpeer generate --retry-errors`."
        )
    return table[~failed].reset_index(drop=True), notes


def _generated(cfg: EvalConfig) -> tuple[pd.DataFrame, list[str]]:
    folder = responses_folder(cfg)
    table = read_table(folder, RESPONSES)
    if table.empty:
        raise DataError(f"{folder}: no responses. Run `dpeer generate` first, or set `responses` to a file with some.")
    if not cfg.models:
        return _briefed(table, load_prompts(cfg.prompts, cfg.seed)) if cfg.prompts.path else table, []
    planned = planned_responses(cfg).set_index(ID)
    kept = table[table[ID].isin(planned.index)]
    if kept.empty:
        raise DataError(
            f"{folder}: none of its {len(table)} responses comes from the models, prompts and generation settings of "
            "this recipe. Run `dpeer generate` with it first."
        )
    notes = []
    if stale := len(table) - len(kept):
        notes.append(
            f"{stale} responses in {folder} are not of this recipe (other weights, prompts or generation settings); "
            "they stay there and are not rated."
        )
    if missing := len(planned) - len(kept):
        notes.append(f"{missing} of {len(planned)} planned responses are not there yet; `dpeer generate` makes them.")
    return _briefed(kept.assign(family=kept[ID].map(planned["family"])), planned), notes


def _briefed(responses: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """With what the prompts' rows bring for judges."""
    if "brief" not in prompts:
        return responses
    briefs = prompts.drop_duplicates(["item", "prompt"]).set_index(["item", "prompt"])["brief"].to_dict()
    keys = zip(responses["item"], responses["prompt"], strict=True)
    return responses.assign(brief=pd.Series([briefs.get(key) for key in keys], responses.index, dtype=object))
