"""The page of a comparison of releases, with every table of it as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpeer.eval.irt.conditions import Verdict
from dpeer.eval.irt.releases import Comparison
from dpeer.eval.report.picture import (
    by_dimension,
    decided,
    interval_plot,
    shared_range,
    sided,
)
from dpeer.eval.report.table import Table, bounded, build
from dpeer.eval.report.words import clear, count, fixed, label, probability, signed
from dpeer.files import write_text
from dpeer.report.page import templates
from dpeer.report.plot import Plot
from dpeer.report.table_files import write_frames
from dpeer.report.text import listing

MOST_MOVED = 40
KINDS = {
    "judges": "Judges: positive = stricter than before,\nagainst the others (logits)",
    "items": "Items: positive = harder than before,\nagainst the others (logits)",
    "models": "Models that link: positive = abler than before,\nagainst the others (logits)",
}


def tables(found: Sequence[Comparison]) -> dict[str, pd.DataFrame]:
    """The tables of all later releases, one below the other, with the release in the first column."""
    joined = {name: pd.concat([c.tables[name] for c in found], ignore_index=True) for name in found[0].tables}
    return {
        name: frame[["release", *(column for column in frame if column != "release")]] for name, frame in joined.items()
    }


def finding(found: Sequence[Comparison]) -> str:
    """One sentence on the last release."""
    last = found[-1]
    if last.reasons:
        return "No claim about these releases: a fit has not passed its diagnostics"
    rows = last.tables["changes"].query("role == 'compared'")
    down = rows[rows["difference_high"] < 0]
    up = rows[rows["difference_low"] > 0]
    parts = [f"{verb} in {listing(_places(part))}" for verb, part in (("down", down), ("up", up)) if len(part)]
    if not parts:
        return f"{last.release}: no clear change in {listing(last.dimensions)}"
    return f"{last.release}: {'; '.join(parts)}"


def _places(rows: pd.DataFrame) -> list[str]:
    several = rows["model"].nunique() > 1
    return [f"{r.dimension} ({r.later_model})" if several else str(r.dimension) for r in rows.itertuples()]


def how(found: Sequence[Comparison]) -> str:
    """What the link rests on, in words."""
    used = pd.concat([c.tables["links"].query("used") for c in found])
    parts = [
        f"{kind} ({listing(sorted(set(part['dimension'])))})" for kind, part in used.groupby("by", sort=False)
        if kind != "units"
    ]  # fmt: skip
    words = {True: "Models that are the same in both fits", False: "Items and judges that both fits share"}
    lead = words[bool((used["by"] == "models").any())]
    return (
        f"{lead} show how far the zero has moved: here {listing(parts)}. Shift: logits to add to the later fit; "
        "spread: how far shared elements move each for itself, which is where the linking error comes from; "
        "units: the factor between the logits of the two fits, from the discriminations of judges. Rows that are "
        "not used are shown for comparison."
    )


def write_page(
    found: Sequence[Comparison], first: str, folder: Path, verdicts: Sequence[Verdict] = (), chance: float = 0.95
) -> Path:
    """Write compare.html and tables/*.csv, json, md and tex; returns the page's path. `first`: the earliest release."""
    frames = tables(found)
    files = write_frames(frames, folder / "tables")
    reasons = list(dict.fromkeys(reason for c in found for reason in c.reasons))
    page = templates("dpeer.eval.report").get_template("releases.html.j2").render(
        releases=[first, *(c.release for c in found)],
        finding=finding(found),
        lead=f"Models of {listing([c.release for c in found])} on the scale of {first}.",
        claim=not reasons,
        reasons=reasons,
        notes=[f"{c.release}: {note}" if len(found) > 1 else note for c in found for note in c.notes],
        verdicts=verdicts,
        probability=chance,
        changed=list(_changed(frames["changes"])),
        changes=_changes(frames["changes"]),
        how=how(found),
        links=_links(frames["links"].query("elements > 0")),
        moved=list(_moved(frames["drift"])),
        drift=_drift(frames["drift"]),
        settings=_settings(frames["settings"]),
        files=[str(path.relative_to(folder)) for path in files],
    )  # fmt: skip
    write_text(folder / "compare.html", page)
    return folder / "compare.html"


def _name(row: Any, several: bool) -> str:
    models = row.model if row.model == row.later_model else f"{row.model} → {row.later_model}"
    return f"{row.release}: {models}" if several else str(models)


def _changed(frame: pd.DataFrame) -> Iterator[Plot]:
    frame = frame[frame["role"] == "compared"]
    several = frame["release"].nunique() > 1
    xlim = shared_range(frame, "difference_low", "difference_high")
    for dimension, part in by_dimension(frame):
        rows = [
            sided(
                _name(r, several), r.difference, r.difference_low, r.difference_high, f"P down {probability(r.p_down)}"
            )
            for r in part.itertuples()
        ]
        last = part.iloc[-1]
        side = clear(last.difference_low, last.difference_high)
        words = {1: "is up", 0: "has not clearly changed", -1: "is down"}[side]
        title = f"{dimension} {words}" if len(part) == 1 else f"{dimension}: {_name(last, several)} {words}"
        yield interval_plot(title, rows, "change of ability (logits), left = worse", xlim)


def _moved(frame: pd.DataFrame) -> Iterator[Plot]:
    several = frame["release"].nunique() > 1
    for kind, part in frame.groupby("kind", sort=False):
        order = part["difference"].abs().sort_values(ascending=False, kind="stable").index[:MOST_MOVED]
        rows = [
            decided(
                f"{f'{r.release}: ' if several else ''}{label(r.name, 24)}, {r.dimension}",
                r.difference, r.difference_low, r.difference_high,
            )
            for r in part.loc[order].itertuples(index=False)
        ]  # fmt: skip
        gone = part[part["drifted"]]["name"].nunique()
        names = part["name"].nunique()
        title = f"{gone} of {names} shared {kind} moved" if gone else f"None of the {names} shared {kind} moved clearly"
        if names > 1:
            note = f"The {MOST_MOVED} rows of {len(part):,} that moved most." if len(part) > MOST_MOVED else ""
            yield interval_plot(title, rows, KINDS[str(kind)], note=note)


def _changes(frame: pd.DataFrame) -> Table:
    return build(
        "Abilities in logits of the first fit, with 95 % intervals",
        frame.itertuples(),
        Release=lambda r: str(r.release),
        Model=lambda r: str(r.model),
        Later_model=lambda r: str(r.later_model),
        Dimension=lambda r: str(r.dimension),
        Before_n=lambda r: bounded(r, "before"),
        Now_n=lambda r: bounded(r, "now"),
        Difference_n=lambda r: bounded(r, "difference", signed),
        **{"P_(down)_n": lambda r: probability(r.p_down)},
        Unlinked_n=lambda r: signed(r.unlinked),
        Role=lambda r: str(r.role),
    )


def _links(frame: pd.DataFrame) -> Table:
    return build(
        "Links",
        frame.itertuples(),
        Release=lambda r: str(r.release),
        Dimension=lambda r: str(r.dimension),
        By=lambda r: str(r.by),
        Shift_n=lambda r: bounded(r, "shift", fixed if r.by == "units" else signed),
        Shared_n=lambda r: count(r.elements),
        Left_out_n=lambda r: count(r.dropped),
        Spread_n=lambda r: fixed(r.spread),
        Used=lambda r: "used" if r.used else "",
    )


def _drift(frame: pd.DataFrame) -> Table:
    order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
    return build(
        "Shared elements",
        frame.reindex(order).itertuples(),
        Release=lambda r: str(r.release),
        Kind=lambda r: str(r.kind),
        Name=lambda r: str(r.name),
        Dimension=lambda r: str(r.dimension),
        Moved_by_n=lambda r: bounded(r, "difference", signed),
        Verdict=lambda r: "drifted" if r.drifted else "used" if r.used else "stable",
    )


def _settings(frame: pd.DataFrame) -> Table:
    return build(
        "Settings",
        frame.itertuples(),
        Release=lambda r: str(r.release),
        What=lambda r: str(r.what),
        Before=lambda r: str(r.before),
        Later=lambda r: str(r.now),
    )
