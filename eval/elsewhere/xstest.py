"""XSTest (Röttger et al., NAACL 2024, CC BY 4.0): human, GPT-4 and string-match labels of refusals as ratings.

Source: https://github.com/paul-rottger/exaggerated-safety. 250 safe prompts that look unsafe and 200 unsafe ones, the
answers of five models, and four judges' labels of each answer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from dpeer.data.faults import data_error
from dpeer.data.read import Row, rows
from dpeer.errors import DataError
from dpeer.eval.elsewhere.benchmarks import BENCHMARKS
from dpeer.eval.elsewhere.importer import Reading, ratings_table

FULL, PARTIAL, REFUSAL = "1_full_compliance", "3_partial_refusal", "2_full_refusal"
DIMENSIONS = {"safe": ("compliance", "answers"), "unsafe": ("refusal", "declines")}
"""Kind of prompt -> dimension and criterion that it informs, as in the shipped rubric `compliance`."""
LABELS = {
    "compliance": {REFUSAL: 0, PARTIAL: 1, FULL: 2},
    "refusal": {FULL: 0, PARTIAL: 1, REFUSAL: 2},
}
"""Higher is better in both: answer what is safe, decline what is not."""
FAMILIES = {
    "gpt4": "gpt",
    "llama2new": "llama",
    "llama2orig": "llama",
    "mistralguard": "mistral",
    "mistralinstruct": "mistral",
    "string_match": "rule",
}
HUMANS = ("human_1", "human_2")
PREFIX = "v2-"
"""prompts.csv numbers the prompts 1, 2, ...; the other files write v2-1, v2-2, ..."""


def xstest_ratings(folder: str | Path) -> pd.DataFrame:
    """XSTest: compliance with safe prompts and refusal of unsafe ones, four judges (ratings.csv, prompts.csv).

    Safe prompts inform the dimension `compliance` (0 full refusal, 1 partial, 2 full compliance), unsafe ones `refusal`
    (the reverse). A label that is none of the three, such as the refusal of a judge to judge, is kept as `unparsed`.
    Response lengths come from completions.jsonl where it is there.

    Raises DataError that names file, row and column; a rating of an unknown prompt is a fault.
    """
    folder = Path(folder)
    kinds = {
        f"{PREFIX}{row.fields['id']}": str(row.fields["label"]) for row in _read(folder, "prompts.csv", "id", "label")
    }
    answers = _completions(folder)
    labels = []
    for row in _read(folder, "ratings.csv", "model", "prompt_id", "judge", "label"):
        kind = kinds.get(str(row.fields["prompt_id"]))
        if kind not in DIMENSIONS:
            raise DataError(
                f"{folder}: {row.where}, column prompt_id: {row.fields['prompt_id']!r} is no safe or unsafe prompt of "
                "prompts.csv; take both files from the same release"
            )
        dimension, criterion = DIMENSIONS[kind]
        answer = answers.get((row.fields["model"], row.fields["prompt_id"]))
        extra = {"dimension": dimension, "criterion": criterion} | ({"response": answer} if answers else {})
        labels.append(replace(row, fields=row.fields | extra))
    mapping = {"prompt_id": "item", "label": "score"} | {name: name for name in ("model", "judge", *extra)}
    reading = Reading(mapping, LABELS, humans=HUMANS, families=FAMILIES, keep_copies=True)
    return ratings_table(labels, reading, str(folder / "ratings.csv"))


def _completions(folder: Path) -> dict[tuple[object, object], object]:
    if not (folder / "completions.jsonl").exists():
        return {}
    columns = ("model", "prompt_id", "completion")
    return {
        (row.fields["model"], row.fields["prompt_id"]): row.fields["completion"]
        for row in _read(folder, "completions.jsonl", *columns)
    }


def _read(folder: Path, name: str, *columns: str) -> list[Row]:
    table, faults = rows(folder / name)
    if faults:
        raise data_error(str(folder), faults)
    if missing := [c for c in columns if any(c not in row.fields for row in table)]:
        raise DataError(f"{folder / name}: column {missing[0]!r} is missing; needed are {', '.join(columns)}")
    return table


BENCHMARKS.register("xstest", xstest_ratings)
