"""A build as files: splits in PersonaKnob's columns as Parquet and CSV, what was dropped, numbers, the data card."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dpeer.data.load import load
from dpeer.data.places import place
from dpeer.errors import DataError
from dpeer.escape import csv_cell, markdown
from dpeer.eval.audit.rates import Interval, share
from dpeer.eval.build.asking import STAGES, template
from dpeer.eval.build.build import Built
from dpeer.eval.build.gate import first_attempts, meanings, rated_of, texts_of, together
from dpeer.eval.build.spec import JOIN, SPLITS
from dpeer.eval.build.walk import GOLDEN, Made
from dpeer.eval.quality.order import Cell, order
from dpeer.eval.quality.quality import Quality, quality
from dpeer.eval.quality.reasons import FAILS, OPEN
from dpeer.eval.quality.review import answered, sheet, with_people, with_texts, write_sheet
from dpeer.eval.quality.surface import FORM, sentence
from dpeer.eval.report.order_audit import shown
from dpeer.eval.report.quality import write_page
from dpeer.files import write_bytes, write_json, write_text
from dpeer.report.card import is_hub_id
from dpeer.report.page import templates

FORMS = ("parquet", "csv")


def table_of(built: Built, split: str) -> pd.DataFrame:
    """The records of a split in PersonaKnob's columns, with id, language and generator behind them; masks in turn."""
    rows = [_row(built, one) for place, ones in built.records.items() if place[0] == split for one in ones]
    columns = ["mask", "seed_scene", "context", "trigger", "prompt", GOLDEN]
    columns += [*(f"reject_{d}" for d in built.spec.dimensions), "id", "language", "generator"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("id", kind="stable", ignore_index=True)  # a hash: masks are mixed


def _row(built: Built, made: Made) -> dict[str, Any]:
    own = {c.kind: c.text for c in made.responses}
    return {
        "mask": json.dumps(list(made.slot.mask)),
        "seed_scene": made.slot.seed.text,
        "context": made.context,
        "trigger": made.trigger,
        "prompt": made.prompt,
        **own,
        "id": made.slot.id,
        "language": made.slot.language,
        "generator": made.slot.generator,
    }


def write(built: Built) -> list[Path]:
    """Write everything into the build's folder; the files of splits, then build.json and the card."""
    folder, written = built.spec.folder, list[Path]()
    for split in SPLITS:
        table = table_of(built, split)
        for form in FORMS:
            path = folder / form / f"{split}.{form}"
            if table.empty:
                path.unlink(missing_ok=True)
                continue
            write_bytes(path, _bytes(table, form))
            written.append(path)
    dropped = pd.DataFrame(
        [
            (d.slot.id, d.slot.split, d.slot.mask_name, d.stage, d.kind, csv_cell(d.slot.seed.text))
            for d in built.dropped
        ],
        columns=["id", "split", "mask", "stage", "reason", "seed"],
    )
    write_text(folder / "dropped.csv", dropped.to_csv(index=False))
    found = look(built)
    if found is not None:
        found.write(folder / "quality")
        write_page(found, folder / "quality" / "quality.html")
    facts = facts_of(built, found)
    write_json(folder / "build.json", facts)
    write_text(folder / "README.md", card(built, facts, found))
    return [*written, folder / "build.json", folder / "README.md"]


def look(built: Built) -> Quality | None:
    """What the records are worth as a data set; None without any."""
    places = [s for s in SPLITS if any(ones for (split, _), ones in built.records.items() if split == s)]
    if not places:
        return None
    source, dimensions = str(built.spec.folder / FORMS[0]), tuple(built.spec.dimensions)
    splits = {split: load(source, split, dimensions) for split in places}
    given = rated_of(built.verdicts, (c for one in built.made for c in one.responses))
    found = quality(built.spec.name, splits, given)
    if given is None or found.verified is None:
        return found
    units = with_texts(given.units[~given.known], texts_of(built.made))
    said = [mine for sheet in built.sheets for mine, _ in [answered(sheet, units)] if len(mine)]
    return replace(found, verified=with_people(found.verified, said)) if said else found


def write_review(built: Built, most: int, path: Path) -> Path:
    """A sheet of kept responses for people, in blind order. DataError: the file exists, or nothing is rated."""
    found, _ = together(built.verdicts, built.made)
    if found is None:
        raise DataError("no rated record is left, so there is nothing to review; see dropped.csv")
    return write_sheet(sheet(found, texts_of(built.made), meanings(built.spec), most, built.spec.seed), path)


def before_choice(built: Built) -> list[Cell]:
    """The order of what generators wrote at first, per dimension: how often verifiers contradict it."""
    given = rated_of(built.verdicts, first_attempts(built.candidates), checks=False)
    return [cell for cell in order(given) if not cell.mask] if given else []


def _bytes(table: pd.DataFrame, form: str) -> bytes:
    if form == "csv":
        return str(table.to_csv(index=False, lineterminator="\n")).encode()
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    content: bytes = buffer.getvalue()
    return content


def verified(built: Built) -> dict[str, Interval]:
    """Of first attempts, the share that verifiers uphold: of goldens, and of the rejects of each dimension."""
    passed: dict[str, list[bool]] = {}
    records: dict[str, list[str]] = {}
    for candidate in built.candidates:
        if candidate.attempt == 0 and (candidate.golden is None or candidate.golden.attempt == 0):
            faults = built.verdicts.faults(candidate)
            passed.setdefault(candidate.kind, []).append(not faults)
            records.setdefault(candidate.kind, []).append(candidate.slot.id)
    kinds = [k for k in (GOLDEN, *(f"reject_{d}" for d in built.spec.dimensions)) if k in passed]
    return {k: share(np.array(passed[k]), pd.factorize(np.array(records[k]))[0].astype(np.int64)) for k in kinds}


def edges_upheld(built: Built) -> dict[str, dict[str, Interval]]:
    """Dimension -> verifier -> share of the kept records whose golden it rates above the reject."""
    found: dict[str, dict[str, Interval]] = {}
    for dimension, judge in built.verdicts.scales:
        above = list(_above(built, built.made, dimension, judge))
        if above:
            found.setdefault(dimension, {})[judge] = share(np.array(above), np.arange(len(above), dtype=np.int64))
    return found


def _above(built: Built, made: list[Made], dimension: str, judge: str) -> Iterator[bool]:
    for one in made:
        own = {c.kind: built.verdicts.places(c, dimension).get(judge) for c in one.responses}
        golden, reject = own[GOLDEN], own.get(f"reject_{dimension}")
        if golden is not None and reject is not None:
            yield golden > reject


def facts_of(built: Built, found: Quality | None) -> dict[str, Any]:
    """What build.json holds."""
    spec = built.spec
    counts = {
        split: {JOIN.join(m): len(ones) for (s, m), ones in built.records.items() if s == split} for split in SPLITS
    }
    return {
        "name": spec.name,
        "records": {split: sum(masks.values()) for split, masks in counts.items()},
        "masks": counts,
        "short": {f"{s} {JOIN.join(m)}": list(of) for (s, m), of in built.short.items()},
        "seeds": {
            "kept": built.seeds,
            "left_out": dict(built.left_out),
            "sources": [{"path": _public(s.path), "licence": s.licence} for s in spec.seeds],
        },
        "dropped": [{"stage": s, "reason": r, "records": n} for (s, r), n in built.drops.items()],
        "texts": _texts(built.texts),
        "ratings": built.ratings["status"].value_counts().to_dict(),
        "prompts": {s: {"version": template(s).version, "hash": template(s).hash} for s in STAGES},
        "generators": _models(built, "generators"),
        "verifiers": _models(built, "verifiers"),
        "scales": [
            {"dimension": d, "verifier": j, **asdict(scale), "refused": refused}
            for scales, refused in ((built.verdicts.scales, False), (built.verdicts.refused, True))
            for (d, j), scale in scales.items()
        ],
        "verified": {kind: asdict(interval) for kind, interval in verified(built).items()},
        "order_at_first": [asdict(cell) for cell in before_choice(built)],
        "open": found.statuses[OPEN] if found else 0,
        "fail": found.statuses[FAILS] if found else 0,
        "expected_wrong": found.verified.wrong if found and found.verified else None,
        "over_limit": list(found.over) if found else [],
        "surface": [sentence(s) for s in found.surfaces] if found else [],
        "order": {d: {j: asdict(i) for j, i in judges.items()} for d, judges in edges_upheld(built).items()},
        "notes": list(built.notes),
    }


def _public(path: str) -> str:
    """A card says nothing of the folders of this machine."""
    return path if is_hub_id(place(path).path) else Path(path).name


def _texts(texts: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Stage -> status -> calls, of all that was ever written in this folder."""
    return {str(s): g["status"].value_counts().to_dict() for s, g in texts.groupby("stage", sort=False)}


def _models(built: Built, key: str) -> list[dict[str, Any]]:
    include = {"name", "path", "revision", "backend", "family"}
    return [served.model_dump(mode="json", include=include) for served in getattr(built.spec, key)]


def card(built: Built, facts: Mapping[str, Any], found: Quality | None) -> str:
    """The data card: README.md with the front matter that hubs read."""
    spec = built.spec
    licences = sorted({s.licence for s in spec.seeds} - {"unknown"})
    splits = [s for s in SPLITS if facts["records"][s]]
    front = {
        "language": sorted({one.slot.language for ones in built.records.values() for one in ones})
        or list(spec.languages),
        "tags": ["dpeer", "preference", "persona"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": s, "path": f"parquet/{s}.parquet"} for s in splits]}
        ],
    }
    known = {"license": licences[0]} if len(licences) == 1 and all(s.licence != "unknown" for s in spec.seeds) else {}
    page = templates("dpeer.eval.build", autoescape=False)
    page.filters |= {"markdown": markdown, "shown": shown}
    return page.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(known | front, sort_keys=False, allow_unicode=True),
        spec=spec,
        facts=facts,
        splits=splits,
        masks=[JOIN.join(mask) for mask in spec.wanted],
        verified=verified(built),
        order=edges_upheld(built),
        cells=before_choice(built),
        surface=[sentence(s) for s in found.surfaces if s.sees == FORM] if found else [],
        scales=built.verdicts.scales,
    )
