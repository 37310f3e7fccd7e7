"""All that is said of a data set's quality, in one object: for the screen, a page, JSON and tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd

from dpeer.data.schema import DataSet
from dpeer.eval.audit.rates import Interval
from dpeer.eval.quality.order import LIMIT, Cell, named, order
from dpeer.eval.quality.rated import Rated
from dpeer.eval.quality.reasons import FAILS, HOLDS, OPEN
from dpeer.eval.quality.repeats import Repeat, prompts_of, repeats, responses_of
from dpeer.eval.quality.review import agreement, changed, with_people
from dpeer.eval.quality.surface import FORM, Surface, surface, text_pairs
from dpeer.eval.quality.verify import SURE, Verification, verify
from dpeer.files import write_json
from dpeer.report.table_files import write_frames

STATUSES = (HOLDS, FAILS, OPEN)


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """`surfaces`: of all dimensions together (where there are several), then of each, by form and with words.
    `verified` and what follows: empty without ratings; `agreed` and `moved`: without answers of people."""

    source: str
    records: Mapping[str, int]
    surfaces: tuple[Surface, ...]
    prompts: tuple[Repeat, ...]
    responses: tuple[Repeat, ...]
    judges: tuple[str, ...] = ()
    verified: Verification | None = None
    cells: tuple[Cell, ...] = ()
    over: tuple[str, ...] = ()
    """Cells whose order is violated more often than the limit, in words."""
    agreed: pd.DataFrame | None = None
    moved: pd.DataFrame | None = None
    rows: Mapping[str, str] = field(default_factory=dict)
    """Where records stand, "file:row"."""

    @property
    def statuses(self) -> dict[str, int]:
        """How many records hold, fail and are open."""
        counts = Counter(self.verified.records["status"]) if self.verified else Counter[str]()
        return {status: counts[status] for status in STATUSES}

    def finding(self) -> str:
        """One sentence: what is most wrong."""
        if self.verified:
            n, total = self.statuses, len(self.verified.records)
            said = f"{n[HOLDS]:,} of {total:,} records hold; {n[FAILS]:,} fail"
            return f"{said}, {n[OPEN]:,} are open" if n[OPEN] else said
        known = [s for s in self.surfaces if s.dimension and s.sees == FORM and not math.isnan(s.accuracy.rate)]
        if told := [s for s in known if s.told]:
            worst = max(told, key=lambda s: s.accuracy.low)
            share = f"{100 * worst.accuracy.rate:.0f} %"
            return f"Length, punctuation and layout alone tell golden from reject_{worst.dimension} in {share} of pairs"
        if many := len({(r.copy.split, r.copy.source) for r in (*self.prompts, *self.responses)}):
            return f"{many:,} records nearly repeat another"
        if not known:
            return "Too few prompts to say what the surface of responses gives away"
        return "Neither surface nor near repeats give anything away beyond chance"

    def frames(self) -> dict[str, pd.DataFrame]:
        """Every table, a frame each."""
        made = {
            "surface": pd.DataFrame([_flat(s) for s in self.surfaces]),
            "repeats": pd.DataFrame(
                [_pair(kind, r) for kind in ("prompts", "responses") for r in getattr(self, kind)],
                columns=["what", "kept", "kept_split", "repeated", "repeated_split", "alike"],
            ),
        }
        if self.verified:
            made |= {k: getattr(self.verified, k) for k in ("records", "responses", "units", "verifiers", "kinds")}
            made["order"] = pd.DataFrame([_flat(c) for c in self.cells])
        people = {"agreement": self.agreed, "changed": self.moved}
        made |= {name: frame for name, frame in people.items() if frame is not None}
        return {
            name: self._located(frame) if self.rows and "record" in frame else frame for name, frame in made.items()
        }

    def _located(self, frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame["record"].map(self.rows).rename("row"), frame], axis=1)

    def write(self, folder: Path) -> Path:
        """quality.json, and every table as tables/NAME.csv; returns the first."""
        frames = self.frames()
        write_frames(frames, folder / "tables", ("csv",))
        verified = self.verified
        path = folder / "quality.json"
        write_json(
            path,
            {
                "source": self.source,
                "finding": self.finding(),
                "records": dict(self.records),
                "verifiers": list(self.judges),
                "statuses": self.statuses if verified else None,
                "expected_wrong": verified.wrong if verified else None,
                "notes": list(verified.notes) if verified else [],
                "over_limit": list(self.over),
                "surface": [asdict(s) for s in self.surfaces],
                "order": [asdict(c) for c in self.cells],
                "tables": {name: frame.to_dict("records") for name, frame in frames.items() if name not in BIG},
            },
        )
        return path


BIG = ("surface", "order", "units")
"""Tables that quality.json leaves out or has in another form."""


def quality(
    source: str,
    splits: Mapping[str, DataSet],
    ratings: Rated | None = None,
    answers: Sequence[pd.DataFrame] = (),
    sure: float = SURE,
    limit: float = LIMIT,
    rows: Mapping[str, str] | None = None,
) -> Quality:
    """Look at all splits.

    ratings: of their responses by verifiers; answers: of people, see `review.read_sheet`, who have the last word
    sure: probability from which on a claim holds; limit: share of violated edges above which a cell is named
    rows: "file:row" of each record, for messages
    """
    pairs = pd.concat([text_pairs(data) for data in splits.values()], ignore_index=True)
    bare = Quality(
        source,
        {name: len(data.records) for name, data in splits.items()},
        tuple(surface(pairs)),
        tuple(repeats(prompts_of(splits))),
        tuple(repeats(responses_of(splits))),
        rows=rows or {},
    )
    if ratings is None:
        return bare
    found = verify(ratings, sure)
    cells = order(ratings)
    rated = replace(bare, judges=ratings.judges, verified=found, cells=tuple(cells), over=tuple(named(cells, limit)))
    if not answers:
        return rated
    after, told = with_people(found, answers), agreement(found, answers, ratings)
    return replace(rated, verified=after, agreed=told, moved=changed(found, after))


def _flat(row: Surface | Cell) -> dict[str, object]:
    """With the ends of intervals as columns, and lists as text."""
    flat: dict[str, object] = {}
    for key in row.__slots__:
        value = getattr(row, key)
        if isinstance(value, Interval) or key == "corrected":
            rate, low, high = (value.rate, value.low, value.high) if value else (math.nan,) * 3
            flat |= {key: rate, f"{key}_low": low, f"{key}_high": high}
        elif isinstance(value, tuple):
            flat[key] = "; ".join(f"{u.feature} {u.weight:+.2f}" for u in value)
        else:
            flat[key] = value
    return flat


def _pair(kind: str, r: Repeat) -> tuple[object, ...]:
    return kind.removesuffix("s"), r.first.source, r.first.split, r.copy.source, r.copy.split, r.alike
