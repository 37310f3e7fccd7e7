"""The report of one run: everything a person needs to judge it, as one HTML file without any outside reference."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dpeer.config_sources import paths
from dpeer.errors import DpeerError
from dpeer.escape import visible
from dpeer.files import write_text
from dpeer.report import figures, text
from dpeer.report.plot import Plot
from dpeer.report.run import NoSteps, Run, read_run

MOST_REPLIES = 6
MARKS = {"satisfied": "✓", "violated": "✗", "undecided": "?"}
MOST_DOWNLOADED = 200
"""Rows of a table that a page carries as files within itself; `dpeer tables` writes any."""


@dataclass(frozen=True, slots=True)
class Part:
    heading: str
    text: str
    plots: list[Plot]


def templates(*packages: str, autoescape: bool = True) -> Environment:
    """The templates of `packages`, then those beside this file, with the number formats of `text`."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, package_path=".") for package in (*packages, "dpeer.report")]),
        autoescape=autoescape,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for words in (
        text.number, text.exact, text.percent, text.extra_records, text.certified_words, text.rare_words,
        text.win_words, text.foremost, text.left_out,
    ):  # fmt: skip
        environment.filters[words.__name__] = words
    return environment


def _visible(value: Any) -> Any:
    """Values of a template; what is markup already has been through this."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder and return its path. An unfinished run gets a page that says so.

    Raises:
        DpeerError: the folder has no ledger, or no complete step in it.
    """
    write_text(run_dir / "report.html", report_html(read_run(run_dir)))
    return run_dir / "report.html"


def live_html(run_dir: Path) -> str:
    """The report as far as the run has come, or a page that says what it waits for."""
    try:
        return report_html(read_run(run_dir))
    except NoSteps:
        words = "Waiting for the first step", "Data and model are being loaded; this page follows by itself."
    except DpeerError as error:
        words = "This run cannot be shown", str(error)
    name = run_dir.resolve().name
    return templates().get_template("waiting.html.j2").render(name=name, heading=words[0], reason=words[1])


def _downloads(run: Run) -> list[tuple[str, str, str]]:
    """(format, file name, data URI) of the table of constraints, which are in the page itself; none of a long one."""
    if run.certificate is None or not 0 < len(run.certificate.constraints) <= MOST_DOWNLOADED:
        return []
    from dpeer.report.frames import certificate_frames
    from dpeer.report.table_files import as_csv, as_latex, as_markdown

    frame = certificate_frames(run.certificate)["constraints"]
    kinds = (("CSV", "csv", as_csv), ("Markdown", "md", as_markdown), ("LaTeX", "tex", as_latex))
    return [
        (title, f"constraints.{end}", f"data:text/plain;base64,{b64encode(as_text(frame).encode()).decode()}")
        for title, end, as_text in kinds
    ]


def report_html(run: Run) -> str:
    return templates().get_template("report.html.j2").render(
        name=run.get("config.name", run.path.resolve().name),
        method=text.method_name(run),
        progress=text.progress(run),
        finding=text.finding(run),
        subtitle=text.subtitle(run),
        notes=[*run.notes, *_warnings(run)],
        certificate=run.certificate,
        marks=MARKS,
        downloads=_downloads(run),
        heldout_plots=[plot for plot in (figures.certificate(run), figures.selection(run)) if plot],
        sections=list(_sections(run)),
        metadata=list(_metadata(run)),
        samples=_samples(run),
        config=list(text.flatten(run.get("config", {}))),
        versions=list(text.flatten(run.get("versions", {}))),
    )  # fmt: skip


def _warnings(run: Run) -> list[str]:
    warnings = []
    if stuck := text.saturated(run):
        cap = run.get("config.objective.dual.max")
        warnings.append(
            f"The multiplier of {text.listing(stuck)} sits at its upper bound{f' {cap:g}' if cap else ''} at the end: "
            "this tolerance may not be attainable together with the others. Allow a larger tolerance, or train longer."
        )
    warnings += [words for words in (text.stop_words(run), text.relaxed_words(run)) if words]
    if not run.timing:
        warnings.append("timing.jsonl is missing: throughput is unknown.")
    return warnings


def _samples(run: Run) -> list[tuple[str, list[tuple[int, str]]]]:
    """(prompt, [(step, reply)]) of every sampled prompt; of a long run the first, the last and a few between."""
    replies: dict[str, dict[int, str]] = {}
    for sample in run.samples:
        replies.setdefault(sample.prompt, {})[sample.step] = text.printable(sample.reply)
    return [
        (text.printable(prompt), [(step, said[step]) for step in few(sorted(said), MOST_REPLIES)])
        for prompt, said in replies.items()
    ]


def few(values: Sequence[int], most: int) -> list[int]:
    """At most so many of them, first and last among them."""
    last, count = len(values) - 1, min(most, len(values))
    return [values[round(i * last / max(1, count - 1))] for i in range(count)]


def _sections(run: Run) -> Iterator[Part]:
    span = figures.smoothing_span(run)
    smoothed = f"Bold: moving average over about {span} steps; faint: single steps."
    yield Part(
        "Loss per dimension",
        f"Mean loss over the edges of each dimension in a step. {_about_dual(run)}{_about_aims(run)}{smoothed}"
        f"{_undrawn(run)}",
        figures.loss_panels(run),
    )
    constraint_panels = figures.constraint_panels(run)
    hidden = len(run.constraints) - len(constraint_panels)
    yield Part(
        "Constraints",
        f"What the form “{text.constraint_form(run).name}” holds below its tolerance. {smoothed}"
        + (f" Shown are those that rose highest; {hidden} more are not drawn." if hidden else ""),
        constraint_panels,
    )
    yield Part(
        "Pairs ranked right",
        f"Share of edges whose better response gained more over the reference than the worse one. {_about_dual(run)}"
        f"{smoothed}{_undrawn(run)}",
        [*figures.win_panels(run), *(plot for plot in (figures.golden_first(run),) if plot)],
    )
    yield Part(
        "How the dimensions were balanced",
        "A violated constraint raises its multiplier, and that raises the weight of its dimension in the loss. "
        "A margin is how much more than the reference the policy prefers the better response of an edge.",
        [
            plot
            for draw in (figures.multipliers, figures.weights, figures.floored, figures.margins)
            if (plot := draw(run))
        ],
    )
    yield Part(
        "Side effects and speed",
        f"Training against rejected responses can lower the probability of golden ones with them. {smoothed}",
        [plot for plot in (figures.drift(run), figures.golden_nll(run), figures.throughput(run)) if plot],
    )


def _undrawn(run: Run) -> str:
    hidden = len(run.dimensions) - len(figures.hardest(run))
    return f" Shown are the dimensions with the highest loss at the end; {hidden} more are not drawn." if hidden else ""


def _about_dual(run: Run) -> str:
    """What the dual split is, where the run has one."""
    return "The policy never trains on the records of the dual split. " if run.get("data.dual") else ""


def _about_aims(run: Run) -> str:
    if not any(c.aim < c.tolerance for step in run.ledger for c in step.constraints.values()):
        return ""
    return "Dotted: where the multipliers aim, so that the tolerance can be proven. "


def _metadata(run: Run) -> Iterator[tuple[str, Any]]:
    """(label, value) pairs of what identifies the run; what is unknown is left out."""
    yield "Method", text.method_name(run)
    labels = {
        "config.model.path": "Model",
        "model.hash": "Model hash",
        "reference.hash": "Reference hash",
        "git": "Source revision",
        "config.cluster.policy_workers": "Policy workers",
        "config.cluster.reference": "Reference mode",
        "created": "Started",
        "finished": "Finished",
    }
    if words := text.exported_words(run):
        yield "Exported checkpoint", words
    splits = (("train", "Training data"), ("dual", "Dual split"), ("heldout", "Held-out data"))
    for split, label in splits:
        if run.get(f"data.{split}"):
            yield label, _data_words(run, split)
            yield f"{label} sha256", run.get(f"data.{split}.sha256", "unknown")
    for key, label in labels.items():
        if (value := run.get(key)) is not None:
            yield label, value


def _data_words(run: Run, split: str) -> str:
    """E.g. "records.jsonl: 600 records; edges A 300, T 100; 2 dropped, 0 cut as too long"."""
    facts = run.get(f"data.{split}")
    source = ", ".join(paths(run.get(f"config.data.{split}", "test split of the training data")))
    overlong = f"{facts.get('dropped', 0)} dropped, {facts.get('cut', 0)} cut as too long"
    return f"{source}: {facts.get('records', 0):,} records; edges {text.edge_words(facts)}; {overlong}"
