"""Responses of a data set by the names that ratings use: record, response, and what was said."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from dpeer.data.schema import DataSet, Record
from dpeer.eval.audit.pairs import prompt_text
from dpeer.eval.quality.rated import GOLDEN, REJECT
from dpeer.eval.questions.prompting import visible

COLUMNS = ("record", "response", "mask", "row", "prompt", "text")


def names(record: Record) -> list[str]:
    """Of each response: golden, reject_D, reject_D+E; the second of a kind is golden#2."""
    kinds = [REJECT + "+".join(d for d in record.mask if d in r.fails) if r.fails else GOLDEN for r in record.responses]
    seen: Counter[str] = Counter()
    found = []
    for kind in kinds:
        seen[kind] += 1
        found.append(kind if seen[kind] == 1 else f"{kind}#{seen[kind]}")
    return found


def texts(data: DataSet) -> pd.DataFrame:
    """record (its hash), response, mask ("A+T"), row ("file:row"), prompt, text, a row per response."""
    rows = [
        (r.key[:16], name, "+".join(r.mask), r.source, prompt_text(r.prompt), visible(answer.text))
        for r in data.records
        for name, answer in zip(names(r), r.responses, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
