"""Any source as a file in the general form."""

from __future__ import annotations

import json
from pathlib import Path

from dpeer.config_sources import Map
from dpeer.data.load import load
from dpeer.data.schema import DataSet, Record
from dpeer.errors import DataError
from dpeer.files import write_text


def convert(source: str, output: Path, map: Map | None = None) -> DataSet:
    """Write the training split of a source (or the one that it names) as JSONL; what was written.

    DataError: the file is there already or has another suffix, or the source has faults.
    """
    if output.suffix != ".jsonl":
        raise DataError(f"{output}: the general form is written as JSON lines; give a name that ends in .jsonl")
    if output.exists():
        raise DataError(f"{output} is there already and is not overwritten; remove it or give another name")
    data = load(source, map=map)
    write_text(output, "".join(json.dumps(general_form(r), ensure_ascii=False) + "\n" for r in data.records))
    return data


def general_form(record: Record) -> dict[str, object]:
    """The record as a row that loads back as it is."""
    first = record.prompt[0]
    plain = len(record.prompt) == 1 and not first.content.lstrip().startswith("[")  # messages, when read as JSON
    messages = [{"role": m.role, "content": m.content, **m.more} for m in record.prompt]
    weight = {} if record.weight == 1 else {"weight": record.weight}
    tools = {"tools": json.loads(record.tools)} if record.tools else {}
    return {
        "prompt": first.content if plain else messages,
        "mask": list(record.mask),
        "responses": [{"text": r.text, **r.more, "fails": sorted(r.fails)} for r in record.responses],
        **tools,
        **weight,
    }
