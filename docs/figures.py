"""Figures of docs/concepts.md, drawn from the shipped sample and from the results of the demo; see screenshots.py."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from dpeer.data.bins import plan_packs
from dpeer.data.load import load
from dpeer.data.order import edges
from dpeer.data.packing import build_pack, forward_tokens
from dpeer.data.tokenize import TokenTree, tokenize
from dpeer.heldout_file import read_heldout
from dpeer.report.plot import DASHES, LIMIT, PALETTE, render, smooth
from dpeer.report.run import read_run

INK, GREY, PALE = "#1c1e21", "#5f6368", "#eef1f4"
WIDE_IN = 7.4
SAMPLE = Path(__file__).parents[1] / "dpeer" / "data" / "sample"
RECORDS = 12
BUDGET = 1024
"""Records and token budget of the packs that are drawn."""


def figures(demo: Path) -> dict[str, bytes]:
    """SVG by name; the same bytes for the same run."""
    if not (demo / "lagrangian" / "ledger.jsonl").is_file():
        raise SystemExit(f"{demo} is no run of the demo. Run `make demo`, or name its folder: --run FOLDER")
    return {name: render(partial(paint, demo=demo), height, "svg")[0] for name, (height, paint) in PAINTERS.items()}


def paint_order(figure: Figure, demo: Path | None = None) -> None:
    """One record of the sample: boxes are responses, arrows its edges."""
    figure.set_size_inches(WIDE_IN, 3.7)
    record = next(r for r in load(str(SAMPLE)).records if "Yorkshire" in r.prompt[0].content)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set(xlim=(0, 100), ylim=(-4, 62))
    colours = dict(zip(record.mask, PALETTE, strict=False))
    golden = record.responses[record.golden].text
    rejects = [i for i in range(len(record.responses)) if i != record.golden]
    places = {record.golden: (50.0, 43.0)} | {i: (14.5 + 35.5 * k, 7.0) for k, i in enumerate(rejects)}
    for i, (x, y) in places.items():
        response = record.responses[i]
        (failed, colour) = ("nothing", INK) if i == record.golden else _failed(response.fails, colours)
        text = response.text if i == record.golden else departure(response.text, golden)
        half = 20 if i == record.golden else 13.2
        box = FancyBboxPatch((x - half, y - 9.5), 2 * half, 17, boxstyle="round,pad=0.6", fc="white", ec=colour)
        axes.add_patch(box)
        axes.text(x, y + 5, f"fails {failed}", ha="center", va="center", fontsize=9, fontweight="bold", color=colour)
        axes.text(x, y - 3.2, _begun(text, int(1.95 * half), 4), ha="center", va="center", fontsize=7.3, color=GREY)
    for edge in edges(record):
        (x, y), (to_x, to_y) = places[edge.worse], places[edge.better]
        start, end = (x, y + 9), (to_x + (x - to_x) * 0.3, to_y - 10.5)
        colour = colours[edge.dimension]
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.6})
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        words = f"edge of {edge.dimension}"
        axes.text(*middle, words, ha="center", va="center", color=colour, fontsize=9, fontweight="bold", bbox=paper)
    for left, right in pairwise(rejects):
        middle = (places[left][0] + places[right][0]) / 2
        axes.text(middle, 6, "no\norder", ha="center", va="center", color=GREY, fontsize=7.3)
    prompt = _begun(record.prompt[0].content, 112, 2)
    axes.text(50, 59, f"Prompt: {prompt}", ha="center", va="center", fontsize=7.8, color=INK)


def departure(text: str, golden: str) -> str:
    """The text from the sentence on in which it differs from the golden one."""
    same = next((i for i, (a, b) in enumerate(zip(text, golden, strict=False)) if a != b), 0)
    start = max(text.rfind(mark, 0, same) for mark in (". ", "? ", "! ", ": ")) + 2
    return f"… {text[start:]}" if start > 1 else text


def _failed(fails: frozenset[str], colours: dict[str, str]) -> tuple[str, str]:
    return ", ".join(sorted(fails)), colours[min(fails)]


def paint_margins(figure: Figure, demo: Path) -> None:
    """What a margin costs, and the margins of T on held-out records, before and after there was a constraint."""
    figure.set_size_inches(WIDE_IN, 2.9)
    loss, held = figure.subplots(1, 2, width_ratios=[1, 1.15])
    m = np.linspace(-2, 4, 121)
    loss.plot(m, np.logaddexp(0, -m), color=INK, linewidth=1.8)
    for tolerance, colour in ((np.log(2), GREY), (0.5, PALETTE[1]), (0.25, PALETTE[0])):
        at = -np.log(np.expm1(tolerance))
        loss.plot([-2, at, at], [tolerance, tolerance, 0], color=colour, linewidth=1, linestyle=(0, (4, 2)))
        loss.plot(at, tolerance, "o", color=colour, markersize=5)
        words = "untrained: margin 0, loss 0.69" if colour == GREY else f"loss {tolerance:g}: margin {at:.2f}"
        loss.annotate(words, (at, tolerance), xytext=(6, 4), textcoords="offset points", fontsize=8.5, color=colour)
    loss.set(xlabel="margin of a pair (nats, scaled by β)", ylabel="sigmoid loss (nats)", ylim=(0, 2.2), xlim=(-2, 4.4))
    _title(loss, "A wider margin, a smaller loss")
    shares = []
    for arm, name, colour in (("pooled", "pooled DPO", PALETTE[1]), ("lagrangian", "with constraints", PALETTE[0])):
        margins = margins_of(demo / arm, "T")
        bins = np.linspace(-2.5, 3, 23)
        held.hist(np.clip(margins, -2.5, 3), bins, color=colour, alpha=0.6, label=name)
        shares.append(f"{100 * float((margins > 0).mean()):.0f} %")
    held.axvline(0, color=INK, linewidth=1)
    held.legend(fontsize=8.5, loc="upper right")
    held.set(xlabel="margin of a held-out pair of T", ylabel="pairs")
    _title(held, f"Pairs of T ranked right: {shares[0]}, then {shares[1]}")


def margins_of(run: Path, dimension: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Margins [E] of the held-out pairs of a dimension."""
    found = read_heldout(run / "heldout.safetensors")
    if found is None:
        raise SystemExit(f"{run} has no heldout.safetensors. Run `make demo`.")
    edges_ = found.edges
    return np.asarray(edges_.margins[edges_.dims == found.dimensions.index(dimension)].double())


def paint_multipliers(figure: Figure, demo: Path) -> None:
    """The dual split's loss of two dimensions, the multipliers, and the weights that follow."""
    figure.set_size_inches(WIDE_IN, 3.1)
    run = read_run(demo / "lagrangian")
    steps = np.array([step.step for step in run.ledger], float)
    loss, multiplier, weight = figure.subplots(1, 3)
    for i, name in enumerate(run.dimensions):
        look: dict[str, Any] = {"color": PALETTE[i], "linestyle": DASHES[i], "linewidth": 1.6, "label": name}
        mine = [step.dimensions[name] for step in run.ledger]
        if name in ("A", "T"):
            loss.plot(steps, smooth(np.array([d.dual.loss for d in mine]), span=5)[0], **look)
            tolerance = run.ledger[-1].constraints[name].tolerance
            loss.axhline(tolerance, color=PALETTE[i], linestyle=(0, (1, 2)), linewidth=1.4)
            words = f"tolerance of {name}: {tolerance:g}"
            loss.annotate(words, (steps[-1], tolerance), (0, 3), textcoords="offset points", ha="right", fontsize=8)
        multiplier.plot(steps, [step.constraints[name].multiplier for step in run.ledger], **look)
        weight.plot(steps, [100 * d.weight for d in mine], **look)
    loss.set(xlabel="optimizer step", ylabel="loss on the dual split (nats)", ylim=(0, None))
    multiplier.set(xlabel="optimizer step", ylabel="multiplier λ", ylim=(-0.05, None))
    weight.set(xlabel="optimizer step", ylabel="weight of the dimension (%)", ylim=(0, None))
    for axes, words in (
        (loss, "T is above its tolerance,"),
        (multiplier, "so its multiplier rises,"),
        (weight, "and it weighs more"),
    ):
        _title(axes, words)
    multiplier.legend(fontsize=8.5, loc="center right")


def paint_tree(figure: Figure, demo: Path) -> None:
    """One record of the demo as pairs and as a tree, and records in packs."""
    figure.set_size_inches(WIDE_IN, 3.3)
    trees = token_trees(demo)
    tree = next(t for t in trees if len(t.responses) == 5)
    one, many = figure.subplots(1, 2, width_ratios=[1.35, 1])
    y, pair_tokens = 0, 0
    for _, better, worse in tree.edges:
        for k in (better, worse):
            pair_tokens += len(tree.prompt) + len(tree.responses[k])
            _bar(one, y, [(len(tree.prompt), PALETTE[0]), (len(tree.responses[k]), _response_colour(tree, k))])
            y += 1
        y += 0.5
    top = y - 0.5
    y += 1.2
    for k, response in enumerate(tree.responses):
        lead = [(len(tree.prompt), PALETTE[0] if k == tree.golden else PALE)]
        _bar(one, y, [*lead, (len(response), _response_colour(tree, k))])
        y += 1
    tokens = forward_tokens(tree)
    one.set(ylim=(y, -1.6), xlabel="tokens", yticks=[])
    one.grid(visible=False)
    one.text(0, -0.9, f"as {len(tree.edges)} pairs: {pair_tokens} tokens", fontsize=8.5, fontweight="bold")
    one.text(0, top + 0.6, f"as a tree: {tokens} tokens", fontsize=8.5, fontweight="bold")
    for colour, words in (
        (PALETTE[0], "prompt"),
        (PALETTE[2], "golden"),
        (PALETTE[1], "reject"),
        (PALE, "not repeated"),
    ):
        one.barh(0, 0, color=colour, label=words)
    one.legend(fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.62), handlelength=1)
    one.set_xlim(0, 1.45 * tree.longest)
    _title(one, f"One record: {tokens} tokens instead of {pair_tokens}")
    chosen = trees[:RECORDS]
    costs = [forward_tokens(t) for t in chosen]
    packs = [pack for rank in plan_packs(costs, 1, BUDGET) for pack in rank]
    for row, items in enumerate(packs):
        build_pack([chosen[i] for i in items], items)  # what the step would compute
        left = 0
        for n, i in enumerate(items):
            shade = PALETTE[0] if n % 2 == 0 else PALETTE[5]
            many.add_patch(Rectangle((left, row - 0.35), costs[i], 0.7, facecolor=shade, edgecolor="white"))
            left += costs[i]
    many.axvline(BUDGET, **LIMIT)
    many.text(BUDGET, -0.62, f"budget {BUDGET:,} ", ha="right", fontsize=8.5)
    many.set(xlim=(0, BUDGET * 1.05), ylim=(len(packs) - 0.4, -0.8), xlabel="tokens", yticks=range(len(packs)))
    many.set_yticklabels([f"pack {k + 1}" for k in range(len(packs))])
    many.grid(visible=False)
    _title(many, f"{RECORDS} records fill {len(packs)} packs")


def token_trees(demo: Path) -> list[TokenTree]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo / "base")
    return list(tokenize(load(str(demo / "world" / "train.jsonl")), tokenizer, 512, "drop").trees)


def paint_judges(figure: Figure, demo: Path) -> None:
    """Mean scores that judges gave in T, and abilities once severity is taken out."""
    figure.set_size_inches(WIDE_IN, 3.1)
    tables = demo / "evaluation" / "irt" / "tables"
    ratings = pd.read_parquet(demo / "evaluation" / "ratings.parquet")
    mean = ratings[ratings["dimension"] == "T"].groupby(["judge", "model"])["score"].mean().unstack()
    ability = pd.read_csv(tables / "ability.csv").query("dimension == 'T'").sort_values("ability")
    severity = pd.read_csv(tables / "judges.csv").set_index("judge")["severity"]
    raw, fit = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(ability))
    for i, judge in enumerate(severity.sort_values().index):
        label = f"{judge}\n{severity[judge]:+.2f} logits".replace("-", "\N{MINUS SIGN}")
        raw.plot(mean.loc[judge, ability["model"]], at, "osD"[i % 3], color=PALETTE[i], label=label, markersize=5.5)
    raw.set(xlabel="mean score in T (1 to 5)", yticks=at, xlim=(1, 5), ylim=(-0.3, len(at) + 0.1))
    raw.set_yticklabels(ability["model"])
    raw.legend(fontsize=8, loc="upper left", ncols=3, columnspacing=1, handletextpad=0.1, borderaxespad=0)
    _title(raw, "The same replies, three opinions")
    fit.hlines(at, ability["ability_low"], ability["ability_high"], color=INK, linewidth=1.6)
    fit.plot(ability["ability"], at, "o", color=INK, markersize=5.5)
    fit.axvline(0, color=GREY, linewidth=0.8)
    fit.set(xlabel="ability in T (logits), 95 % intervals")
    _title(fit, "One ability per model")


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, loc="left", fontsize=9.5, fontweight="bold")


def _begun(text: str, width: int, lines: int) -> str:
    """The beginning of a text, wrapped."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def _response_colour(tree: TokenTree, k: int) -> str:
    return PALETTE[2] if k == tree.golden else PALETTE[1]


def _bar(axes: Axes, y: float, parts: list[tuple[int, str]]) -> None:
    left = 0
    for length, colour in parts:
        axes.barh(y, length, left=left, height=0.8, color=colour)
        left += length


PAINTERS: dict[str, tuple[float, Callable[..., None]]] = {
    "order": (3.7, paint_order),
    "margins": (2.9, paint_margins),
    "multipliers": (3.1, paint_multipliers),
    "tree": (3.3, paint_tree),
    "judges": (3.1, paint_judges),
}
"""Name -> height in inches, and what draws it."""
