"""Ratings of a data set's responses: asked of judges, or read from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from dpeer.data.schema import DataSet
from dpeer.errors import DataError
from dpeer.eval.audit.pairs import ORIGIN
from dpeer.eval.audit.plan import rating_plan
from dpeer.eval.config import EvalConfig
from dpeer.eval.elsewhere.sheets import stream
from dpeer.eval.plan import Plan
from dpeer.eval.quality.rated import Rated, failing, rated
from dpeer.eval.quality.texts import texts
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import RESPONSES


def all_texts(splits: Mapping[str, DataSet]) -> pd.DataFrame:
    """Responses of all splits as `texts` has them, with split, response_id and item, as ratings name them. A record
    that occurs twice counts once."""
    made = pd.concat([texts(data).assign(split=name) for name, data in splits.items()], ignore_index=True)
    made = made.drop_duplicates(["record", "response"], ignore_index=True)
    pairs = list(zip(made["prompt"], made["text"], strict=True))
    items = {prompt: content_id(prompt=prompt)[:16] for prompt, _ in pairs}
    return made.assign(
        response_id=[content_id(prompt=prompt, response=text) for prompt, text in pairs],
        item=[items[prompt] for prompt, _ in pairs],
    )


def needed(made: pd.DataFrame, dimensions: Collection[str]) -> pd.DataFrame:
    """record, response, mask, response_id, dimension: every response on each of its active dimensions, of those that
    are given; without the responses that fail another one, and with masks of these alone."""
    rows = []
    for record, response, mask, key in made[["record", "response", "mask", "response_id"]].itertuples(index=False):
        kept = [d for d in mask.split("+") if d in dimensions]
        if failing(response, mask.split("+")) <= set(kept):
            rows += [(record, response, "+".join(kept), key, d) for d in kept]
    return pd.DataFrame(rows, columns=["record", "response", "mask", "response_id", "dimension"])


def quality_plan(cfg: EvalConfig, made: pd.DataFrame, dimensions: Collection[str]) -> Plan:
    """Every response on every active dimension by every judge, and which of these ratings are missing."""
    once = made.drop_duplicates("response_id").rename(columns={"text": "said"})
    columns = {"model": ORIGIN, "sample": 0, "status": "ok", "response": once["said"]}
    responses = once.drop(columns="response").assign(**columns).reindex(columns=RESPONSES.names)
    return rating_plan(cfg, responses.astype({"family": object}), needed(made, dimensions))


def from_judges(cfg: EvalConfig, made: pd.DataFrame, dimensions: Collection[str], ratings: pd.DataFrame) -> Rated:
    """Ratings that judges made. Raises DataError when none of them is usable."""
    usable = ratings[ratings["status"] == "ok"]
    if usable.empty:
        counts = ratings["status"].value_counts().to_dict()
        raise DataError(
            f"none of the {len(ratings)} ratings of {cfg.name} is usable ({counts}); the column `error` of "
            f"{cfg.folder / 'ratings.parquet'} says why. Put that right and run again with --retry-errors"
        )
    score = usable["score"].astype(float)
    if cfg.judging.score == "most_likely":
        score = usable["expected"].fillna(score)
    said = usable[["response_id", "dimension", "judge"]].assign(score=score)
    units = needed(made, dimensions)
    table = units.merge(said, on=["response_id", "dimension"], how="inner")
    return rated(_whole(units, table), load_rubric(cfg.judging.rubric).scale)


def _whole(units: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """With a row without a score for each unit of the rated records that nobody has rated: it must not be forgotten."""
    keys = ["record", "response", "dimension"]
    theirs = units[units["record"].isin(set(table["record"]))]
    unrated = ~pd.MultiIndex.from_frame(theirs[keys]).isin(pd.MultiIndex.from_frame(table[keys]))
    blank = theirs[unrated].assign(judge=table["judge"].iloc[0], score=None)
    return pd.concat([table, blank[[*keys, "mask", "judge", "score"]].astype({"score": object})], ignore_index=True)


def from_file(path: Path, made: pd.DataFrame) -> Rated:
    """Ratings of a file with the columns record, response, dimension, judge and score. A record is named as "file:row"
    of the data, or by its hash; its mask is that of the data.

    Records that nobody has rated are left out; of the others, what nobody has rated stays open. Raises DataError that
    names file, row and column.
    """
    dimensions = {d for mask in made["mask"] for d in mask.split("+")}
    known = dict(zip(made["record"], made["record"], strict=True)) | dict(zip(made["row"], made["record"], strict=True))
    masks = dict(zip(made["record"], made["mask"], strict=True))
    there = set(zip(made["record"], made["response"], strict=True))
    rows = []
    for row in stream(path):
        cells = row.fields
        if lacking := [c for c in ("record", "response", "dimension", "judge", "score") if c not in cells]:
            raise DataError(
                f"{row.where}: has no column {lacking[0]}; needed are record, response, dimension, judge, score"
            )
        record = known.get(str(cells["record"]))
        if record is None:
            raise DataError(
                f"{row.where}, column record: {str(cells['record'])!r} is no record of the data; the first is called "
                f"{made['row'].iloc[0]}"
            )
        if (record, str(cells["response"])) not in there:
            names = ", ".join(made.loc[made["record"] == record, "response"])
            raise DataError(f"{row.where}, column response: {str(cells['response'])!r} is none of {names}")
        score = cells["score"] if cells["score"] not in ("", None) else None
        told = {k: cells[k] for k in ("response", "dimension", "judge")}
        rows.append({"record": record, "mask": masks[record], **told, "score": score, "where": row.where})
    return rated(_whole(needed(made, dimensions), pd.DataFrame(rows)))
