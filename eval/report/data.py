"""Pictures of items, side effects and of the data themselves: what was rated, by whom, and what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpeer.eval.report.picture import (
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Interval,
    Paint,
    Picture,
    by_dimension,
    decided,
    enumerated,
    heat,
    heat_height,
    intervals,
    matrix,
    named,
    rows_height,
)
from dpeer.eval.report.words import (
    TERMS,
    Frames,
    clear,
    estimate,
    fixed,
    known,
    label,
    losses,
    plural,
    signed,
    slug,
)
from dpeer.report.plot import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUS_COLOURS = {
    "ok": "#a9cbe2",
    "unparsed": VERMILLION,
    "truncated": ORANGE,
    "low_mass": PURPLE,
    "refused": "#56B4E9",
    "engine_error": INK,
}


def items(frames: Frames) -> Iterator[Picture]:
    """Per dimension: histogram of item difficulties."""
    for dimension, part in by_dimension(frames["items"]):
        values = part["difficulty"].to_numpy(dtype=np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        low, high = np.percentile(values, [2.5, 97.5])
        yield Picture(
            f"items_{slug(dimension)}",
            f"{dimension}: difficulty of {plural(len(values), 'item')}",
            f"{dimension}: 95 % of {plural(len(values), 'item')} lie between {fixed(low)} and {fixed(high)}",
            f"Histogram of the difficulty of {plural(len(values), 'item')} in logits, from {fixed(values.min())} to "
            f"{fixed(values.max())}, mean {fixed(values.mean())}.",
            _histogram(values),
            2.3,
        )


def _histogram(values: NDArray[np.float64]) -> Paint:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.hist(
            values,
            bins=int(np.clip(np.sqrt(len(values)) * 1.5, 5, 40)),
            color="#b9c3cc",
            edgecolor="white",
            linewidth=0.5,
        )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(xlabel="difficulty (logits; positive = harder)", ylabel="items")
        axes.locator_params(axis="x", nbins=7)
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.grid(visible=False, axis="x")

    return paint


def effects(frames: Frames) -> Iterator[Picture]:
    """Halo, self-preference, length and order, whichever were fitted."""
    frame = frames["effects"]
    rows = [decided(term_words(r), r.estimate, r.estimate_low, r.estimate_high) for r in frame.itertuples()]
    shifts = [row for row in frame.itertuples() if "(sd)" not in term_words(row)]
    reliable = [row for row in shifts if clear(row.estimate_low, row.estimate_high)]
    if reliable:
        top = max(reliable, key=lambda row: abs(row.estimate))
        finding = f"{term_words(top)[0].upper()}{term_words(top)[1:]} shifts ratings by {signed(top.estimate)} logits"
    else:
        finding = (
            "No covariate shifts ratings reliably"
            if shifts
            else "How much single judges and models depart was measured"
        )
    words = "; ".join(f"{term_words(row)} {estimate(row, 'estimate')}" for row in frame.itertuples())
    yield Picture(
        "effects",
        "Effects besides ability, difficulty and severity",
        finding,
        f"Dot plot of effects in logits with 95 % intervals. {words}.",
        intervals(rows, "effect (logits)"),
        rows_height(len(rows)),
    )


def term_words(row: Any) -> str:
    words = TERMS.get(str(row.term), str(row.term))
    return f"{words}, {row.dimension}" if isinstance(row.dimension, str) and row.dimension else words


def correlation(frames: Frames) -> Iterator[Picture]:
    """Correlation of abilities between dimensions."""
    frame = frames["correlation"]
    names = tuple(dict.fromkeys([*frame["dimension"], *frame["other"]]))
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for row in frame.itertuples():
        i, j = names.index(row.dimension), names.index(row.other)
        values[i, j] = values[j, i] = row.correlation
    texts = [[fixed(value) if known(value) else "" for value in line] for line in values]
    pairs = frame[frame["dimension"] != frame["other"]]
    certain = [row for row in pairs.itertuples() if clear(row.correlation_low, row.correlation_high)]
    if certain:
        top = max(certain, key=lambda row: abs(row.correlation))
        finding = f"Abilities on {top.dimension} and {top.other} go {'together' if top.correlation > 0 else 'apart'}: "
        finding += estimate(top, "correlation")
    else:
        finding = "No two dimensions have reliably correlated abilities"
    words = "; ".join(f"{row.dimension} with {row.other} {estimate(row, 'correlation')}" for row in pairs.itertuples())
    yield Picture(
        "correlation",
        "Correlation of abilities between dimensions",
        finding,
        f"Heat map of correlations of abilities. {words}.",
        heat(values, names, names, texts, colours="PuOr_r", limits=(-1, 1)),
        heat_height(len(names), names),
    )


def statuses(frames: Frames) -> Iterator[Picture]:
    """What became of every planned rating, per judge."""
    frame = frames["statuses"]
    values, judges, names = matrix(frame, "judge", "status", "count")
    values = np.nan_to_num(values)
    lost = [k for k, name in enumerate(names) if name != "ok" and values[:, k].sum()]
    if not lost:
        return
    share = 100 * values / np.maximum(1, values.sum(axis=1, keepdims=True))
    words = enumerated(
        [
            f"{label(judge)} " + ", ".join(f"{names[k]} {row[k]:.1f} %" for k in lost)
            for judge, row in zip(judges, share, strict=True)
        ]
    )
    finding = losses(frame)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = np.zeros(len(judges))
        for k in lost:
            colour = STATUS_COLOURS.get(str(names[k]), PALETTE[k % len(PALETTE)])
            axes.barh(range(len(judges)), share[:, k], left=left, height=0.6, color=colour, label=label(names[k]))
            left += share[:, k]
        axes.set_yticks(*named(judges))
        axes.set(xlabel="ratings without a usable score (%)", ylim=(len(judges) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, handlelength=1.2)

    yield Picture(
        "statuses",
        finding,
        finding,
        f"Stacked bars: share of each judge's ratings without a usable score. {words}.",
        paint,
        rows_height(len(judges), 0.95),
        "Such ratings stay in the table and are left out of the fit.",
        counted=True,
    )


def connectivity(frames: Frames) -> Iterator[Picture]:
    """Ratings per judge and model: one picture where all dimensions have the same empty cells, else one each."""
    frame = frames["connectivity"]
    total, models, judges = matrix(frame, "model", "judge", "n")
    parts = {d: matrix(part, "model", "judge", "n") for d, part in by_dimension(frame)}
    patterns = {(rows, columns, (np.nan_to_num(values) > 0).tobytes()) for values, rows, columns in parts.values()}
    if len(patterns) <= 1:
        yield _connectivity("connectivity", "", total, models, judges)
        return
    for dimension, (values, rows, columns) in parts.items():
        yield _connectivity(f"connectivity_{slug(dimension)}", f"{dimension}: ", values, rows, columns)


def _connectivity(
    name: str, prefix: str, values: NDArray[np.float64], models: tuple[Any, ...], judges: tuple[Any, ...]
) -> Picture:
    counts = np.nan_to_num(values)
    empty, groups = int((counts == 0).sum()), _groups(counts > 0)
    if groups > 1:
        sentence = f"judges and models fall into {groups} groups without a link"
    elif empty:
        sentence = f"{empty} of {counts.size} judge-model cells are empty, and all are linked"
    else:
        least, most = int(counts.min()), int(counts.max())
        span = plural(most, "rating") if least == most else f"{least:,} to {most:,} ratings"
        sentence = f"every judge rated every model, {span} per pair"
    sentence = prefix + sentence if prefix else sentence[0].upper() + sentence[1:]
    texts = [[f"{n:,.0f}" if n else "" for n in line] for line in counts]
    return Picture(
        name,
        sentence,
        sentence,
        f"Heat map of ratings per model and judge: {sentence}.",
        heat(
            np.where(counts > 0, counts, np.nan),
            models,
            judges,
            texts,
            colours="Blues",
            limits=(0, 1.5 * max(1, counts.max())),
        ),
        heat_height(len(models), judges),
        "Cells: ratings used in the fit; grey: none.",
        counted=True,
    )


def _groups(linked: NDArray[np.bool_]) -> int:
    """Connected components of the bipartite graph with adjacency `linked` [models, judges]."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(linked)
    size = sum(linked.shape)
    graph = csr_array((np.ones(len(rows)), (rows, columns + linked.shape[0])), shape=(size, size))
    return int(connected_components(graph, directed=False)[0])


def drift(frames: Frames) -> Iterator[Picture]:
    """How far judges and items have moved since an earlier fit."""
    frame = frames["drift"]
    most = 20
    order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
    ranked = frame.reindex(order)
    shown = ranked[:most]
    rows = [
        Interval(_anchor(r), r.difference, r.difference_low, r.difference_high, VERMILLION if r.drifted == 1 else GREY)
        for r in shown.itertuples()
    ]
    moved = ranked[ranked["drifted"].fillna(False).astype(bool)]
    if len(moved):
        finding = f"{len(moved)} of {plural(len(frame), 'anchor')} drifted: {label(moved.iloc[0]['name'])} by "
        finding += f"{signed(moved.iloc[0]['difference'])}"
    else:
        finding = f"None of {plural(len(frame), 'anchor')} drifted"
    words = "; ".join(f"{_anchor(row)} {estimate(row, 'difference')}" for row in shown.itertuples())
    yield Picture(
        "drift",
        "Judges and items now and in an earlier fit",
        finding,
        f"Dot plot of the change of judges and items in logits with 95 % intervals. {words}.",
        intervals(rows, "now minus before (logits)"),
        rows_height(len(rows)),
        "Orange: drifted." + (f" The {most} largest of {len(frame)}." if len(frame) > most else ""),
    )


def _anchor(row: Any) -> str:
    where = f", {row.dimension}" if isinstance(row.dimension, str) and row.dimension else ""
    return f"{label(row.name, 18)}{where}"
