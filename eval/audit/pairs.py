"""What an order audit compares: edges of data sets as pairs of texts that judges read, and their ratings as margins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeer.data.order import Edge, edges
from dpeer.data.schema import DataSet, Message, Record
from dpeer.eval.audit.rates import Floats
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import RESPONSES

ORIGIN = "data"
"""In the column `model`: who wrote these responses is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """`edges`: source, row ("file:row"), prompt (its id), dimension, better and worse (ids of responses), one row per
    edge. `responses`: the columns of the responses table; equal texts under equal prompts are one response."""

    edges: pd.DataFrame
    responses: pd.DataFrame


def pairs(sources: Mapping[str, DataSet], most: int | None, seed: int) -> Pairs:
    """All edges of the sources; with `most`, that many per source and dimension, chosen by the seed.

    A larger `most` only adds edges, so ratings that are there stay of use.
    """
    found: list[dict[str, str]] = []
    texts: dict[str, dict[str, object]] = {}
    for source, data in sources.items():
        for record, edge in _chosen(data, most, seed):
            prompt = prompt_text(record.prompt)
            item = content_id(prompt=prompt)[:16]
            ends = {}
            for end, index in (("better", edge.better), ("worse", edge.worse)):
                text = visible(record.responses[index].text)
                ends[end] = content_id(prompt=prompt, response=text)
                texts.setdefault(ends[end], {"item": item, "prompt": prompt, "response": text})
            found.append({"source": source, "row": record.source, "prompt": item, "dimension": edge.dimension, **ends})
    responses = pd.DataFrame([{"response_id": i, **text} for i, text in texts.items()]).reindex(columns=RESPONSES.names)
    common = {"model": ORIGIN, "sample": 0, "status": "ok"}
    columns = ["source", "row", "prompt", "dimension", "better", "worse"]
    return Pairs(pd.DataFrame(found, columns=columns), responses.assign(**common).astype({"family": object}))


def _chosen(data: DataSet, most: int | None, seed: int) -> Iterator[tuple[Record, Edge]]:
    by_dimension: dict[str, list[tuple[Record, Edge]]] = defaultdict(list)
    for record in data.records:
        for edge in edges(record):
            by_dimension[edge.dimension].append((record, edge))
    for dimension in data.dimensions:
        there = by_dimension[dimension]
        if most is not None and len(there) > most:
            there = sorted(there, key=lambda pair: _lot(seed, *pair))[:most]
        yield from there


def _lot(seed: int, record: Record, edge: Edge) -> str:
    return content_id(seed=seed, record=record.key, dimension=edge.dimension, better=edge.better, worse=edge.worse)


def prompt_text(messages: tuple[Message, ...]) -> str:
    """The prompt as a judge reads it: a single user message as it is, a longer conversation with its roles."""
    if len(messages) == 1:
        return visible(messages[0].content)
    return visible("\n\n".join(f"[{m.role}]\n{m.content}" for m in messages))


def margins(ratings: pd.DataFrame, edges: pd.DataFrame, by: list[str], expected: bool) -> tuple[Floats, list[str]]:
    """Better minus worse in points of the scale, [E, raters], and the raters' names.

    Both sides are compared under the same judge, criterion and repeat, so that severity, difficulty and the order in
    which the scale was listed cancel; a rater is what agrees in the columns `by`, and its margin the mean of those. nan
    where a rater has no such comparison. `expected`: compare expected scores where they are known.
    """
    usable = ratings[ratings["status"] == "ok"]
    value = usable["expected"].fillna(usable["score"]) if expected else usable["score"]
    keys = ["response_id", "dimension", "judge", "criterion", "repeat"]
    table = usable[keys].assign(value=value.astype(float)).set_index(keys)["value"].unstack(keys[2:])
    ends = [
        table.reindex(pd.MultiIndex.from_arrays([edges[end], edges["dimension"]])).to_numpy(float)
        for end in ("better", "worse")
    ]
    raters = table.columns.to_frame(index=False)[by].astype(str).agg(" #".join, axis=1)
    names = list(dict.fromkeys(raters))
    return np.stack([_mean(ends[0][:, raters == n] - ends[1][:, raters == n]) for n in names], axis=1), names


def _mean(values: Floats) -> Floats:
    """[E, C] -> [E] mean over what is known; nan where nothing is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    means: Floats = np.where(counts, np.where(known, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)
    return means
