"""Plots: smoothing against its closed form, and what titles, labels and alternative texts say."""

from __future__ import annotations

import base64
import json
import re

import matplotlib
import numpy as np
import pytest

from dpeer.report import figures
from dpeer.report.plot import MOST_POINTS, Line, line_plot, render, smooth, thin
from dpeer.report.run import read_run


def svg(plot) -> str:
    return base64.b64decode(plot.src.removeprefix("data:image/svg+xml;base64,")).decode()


def labels(plot) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg(plot))


def test_smooth_is_the_weighted_sum_and_its_error():
    rng = np.random.default_rng(0)
    values, se = rng.normal(size=12), rng.uniform(0.1, 0.5, size=12)
    keep = 1 - 2 / (5 + 1)
    mean, error = smooth(values, se, span=5)
    for t in range(12):
        weights = np.array([keep**t, *[(1 - keep) * keep ** (t - i) for i in range(1, t + 1)]])
        assert weights.sum() == pytest.approx(1)
        assert mean[t] == pytest.approx(weights @ values[: t + 1])
        assert error[t] == pytest.approx(np.sqrt(weights**2 @ se[: t + 1] ** 2))


def test_smooth_holds_over_unknown_steps_and_span_one_changes_nothing():
    values = np.array([np.nan, 2.0, np.nan, 4.0])
    assert smooth(values, span=3)[0] == pytest.approx([np.nan, 2, 2, 3], nan_ok=True)
    assert smooth(np.array([1.0, 5.0, 2.0]))[0].tolist() == [1, 5, 2]


@pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 20_000])
def test_thin_keeps_both_ends(count):
    index = thin(count)
    assert (index[0], index[-1]) == (0, count - 1) and len(index) == min(count, MOST_POINTS)


def test_loss_panels_say_which_dimension_is_above_its_tolerance(make_run):
    panels = figures.loss_panels(read_run(make_run()))
    sides = [re.sub(r"ends at [\d.]+", "ends", panel.title) for panel in panels]
    assert sides == [
        "E ends, above its tolerance 0.4",
        "A ends, within its tolerance 0.4",
        "T ends, above its tolerance 0.4",
        "C ends, within its tolerance 0.4",
    ]
    for panel in panels:
        assert {"optimizer step", "loss per edge (nats)", "tolerance 0.4"} <= set(labels(panel))
        assert panel.title in panel.alt


def test_loss_panels_are_about_the_dual_split(make_run):
    panels = {p.title.partition(" ")[0]: p for p in figures.loss_panels(read_run(make_run(watched=True)))}
    said = re.fullmatch(
        r"T ends at ([\d.]+) on the dual split \(([\d.]+) in training\), above its tolerance 0\.4", panels["T"].title
    )
    assert float(said[1]) == pytest.approx(float(said[2]) + 0.2, abs=0.01)
    assert "within its tolerance" in panels["A"].title
    assert {"dual split", "training", "tolerance 0.4, aim 0.33"} <= set(labels(panels["A"]))


def test_win_panels_show_both_splits(make_run):
    titles = [p.title.replace("\u00a0", " ") for p in figures.win_panels(read_run(make_run(watched=True)))]
    assert titles[2] == "T ends at 50.0 % on the dual split (80 % in training)"
    assert figures.floored(read_run(make_run("calm", watched=True))) is None
    assert figures.golden_first(read_run(make_run("bare"))) is None


def test_panels_share_one_scale(make_run):
    scales = [[x for x in labels(p) if re.fullmatch(r"0\.\d", x)] for p in figures.loss_panels(read_run(make_run()))]
    assert scales[0] and all(scale == scales[0] for scale in scales)


def test_titles_name_the_leading_dimension(make_run):
    run = read_run(make_run())
    assert figures.multipliers(run).title.startswith("E presses hardest at the end: multiplier ")
    assert figures.weights(run).title.startswith("E weighs most at the end: ")
    assert re.fullmatch(r"E has the smallest margin at the end: [\d.]+ ± [\d.]+", figures.margins(run).title)
    assert figures.drift(run).title.startswith("Golden log-probability falls from ")
    assert set("EATC") <= set(labels(figures.margins(run)))


def test_multipliers_that_never_rose(make_run, amend):
    folder = make_run(steps=4)

    def rest(line):
        return line | {"constraints": {d: c | {"multiplier": 0.0} for d, c in line["constraints"].items()}}

    amend(folder / "ledger.jsonl", rest)
    assert figures.multipliers(read_run(folder)).title == "No constraint ever pressed: all multipliers stay at zero"


def test_many_constraints_are_cut_to_those_that_rose_highest(make_run):
    run = read_run(make_run(constraint={"form": "balance", "tolerance": 0.1}))
    panels = figures.constraint_panels(run)
    assert len(panels) == 7 and panels[0].title.startswith("E over A ends at ")
    assert "5 more are not drawn" in figures.multipliers(run).note
    assert not any("tolerance" in label for panel in figures.loss_panels(run) for label in labels(panel))
    assert figures.constraint_panels(read_run(make_run("threshold"))) == []


def test_certificate_and_selection_words(make_run):
    run = read_run(make_run(steps=2))
    plot = figures.certificate(run)
    assert plot.title == "The held-out records decide 3 of 4 constraints"
    assert "E 0.620 [0.530, 0.710], tolerance 0.4, violated" in plot.alt
    assert {"violated", "satisfied", "undecided"} <= set(labels(plot))
    plot = figures.selection(run)
    assert plot.title.replace("\u00a0", " ") == "Golden ranks first in 71 % [65, 77] of records"
    assert "A+E+T+C (n = 20)" in labels(plot)


def test_throughput_reports_the_median_and_the_wait(make_run):
    plot = figures.throughput(read_run(make_run()))
    assert re.fullmatch(r"Median throughput: 11,[34]\d\d tokens per second", plot.title)
    assert plot.note.replace("\u00a0", " ") == "64.0 s in 80 training steps, 3 % of them waiting for the reference."


def test_throughput_says_how_gpus_were_used_and_where_the_time_went(make_run):
    run = make_run(steps=3)
    phases = {"forward": 0.2, "backward": 0.5, "dual": 0.0, "exchange": 0.1, "optimizer": 0.2}
    row = {"seconds": 1.0, "tokens_per_second": 100.0, "phases": phases, "tokens_per_micro_step": 4096.0}
    gpu = {"hfu": 0.5, "mfu": 0.4, "ceiling": 7.5e14, "memory_allocated": 60 * 2**30, "memory_reserved": 64 * 2**30}
    rows = [row | gpu | {"step": s, "memory_allocated": (59 + s) * 2**30} for s in (1, 2, 3)]
    (run / "timing.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    note = figures.throughput(read_run(run)).note.replace("\u00a0", " ")
    assert "forward 20 %, backward 50 %, exchange 10 %, optimizer 20 %; 4,096 tokens per micro-step." in note
    assert "HFU 50 % (recomputation counted as work), MFU 40 %, of the 750 TFLOP/s" in note
    assert "at most 62.0 GiB of tensors, 64.0 GiB held" in note
    (run / "timing.jsonl").write_text(json.dumps(row | dict.fromkeys(gpu) | {"step": 1}) + "\n")
    on_cpu = figures.throughput(read_run(run)).note
    assert "backward" in on_cpu and "HFU" not in on_cpu and "GiB" not in on_cpu


def test_plots_of_what_was_not_recorded_are_absent(make_run):
    run = read_run(make_run(steps=2, kind="sft"))
    assert figures.loss_panels(run) == [] == figures.constraint_panels(run)
    assert figures.multipliers(run) is figures.weights(run) is figures.margins(run) is figures.certificate(run) is None
    assert figures.drift(run) and figures.golden_nll(run)


def test_equal_input_gives_equal_bytes_and_dollar_signs_are_plain_text():
    steps = np.arange(3.0)
    lines = [Line("$x", steps), Line("a_$b", steps * 2, se=steps)]
    first, second = (line_plot(steps, lines, "loss", "t") for _ in range(2))
    assert first == second
    assert {"$x", "a_$b"} <= set(labels(first))


@pytest.mark.parametrize(
    "own", [{"figure.autolayout": True}, {"figure.dpi": 300}, {"lines.linewidth": 9, "savefig.bbox": "tight"}]
)
def test_the_users_matplotlibrc_does_not_matter(own):
    def files():
        return render(lambda figure: figure.add_subplot().plot([1, 3, 2]), 2.7, "svg", "png")

    plain = files()
    with matplotlib.rc_context(own):
        assert files() == plain
        assert matplotlib.rcParams[next(iter(own))] == next(iter(own.values()))
