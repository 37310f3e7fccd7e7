"""`dpeer eval plan`: how many judges, items, samples and repeats a claim takes, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    import pandas as pd

    from dpeer.eval.config import EvalConfig
    from dpeer.eval.irt.precision import Components, Design
    from dpeer.eval.plan import Plan

app = typer.Typer(no_args_is_help=True)
SHOWN = 8
WIDTH = 120  # of tables where there is no terminal


@app.callback()
def _group() -> None:
    """Plan an evaluation by the precision that it is to have."""


@app.command()
def plan(
    pilot: Annotated[
        Path | None, typer.Argument(metavar="[PILOT]", help="Folder of a fit whose variances are used; or see --set.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Without a pilot: an assumption, named as in `dpeer irt simulate`, e.g. s_u=0.8, models=4; repeat.",
        ),
    ] = None,
    half_width: Annotated[
        float | None, typer.Option(min=0.01, help="Wanted: 95 % interval of a difference of two models, ± logits.")
    ] = None,
    difference: Annotated[
        float | None, typer.Option(min=0.01, help="A true difference to be found, in logits.")
    ] = None,
    power: Annotated[
        float | None, typer.Option(min=0.5, max=0.999, help="Wanted: probability that its interval leaves out zero.")
    ] = None,
    order: Annotated[
        float | None, typer.Option(min=0.51, max=0.999, help="Wanted: probability of the right order.")
    ] = None,
    judges: Annotated[int | None, typer.Option(min=2, help="Most judges per response; default: as known, + 2.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most responses per model and item.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Most ratings per judge and response.")] = 2,
    items: Annotated[int, typer.Option(min=1, help="Most items.")] = 100_000,
    rating_price: Annotated[float, typer.Option(min=0, help="Price of one rating (dpeer judge --plan-only).")] = 0.0,
    response_price: Annotated[float, typer.Option(min=0, help="Price of one response.")] = 0.0,
    rating_seconds: Annotated[float, typer.Option(min=0, help="Seconds per rating of the whole farm.")] = 0.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables and the picture.")] = Path(
        "runs/plan"
    ),
) -> None:
    """Designs that are precise enough, cheapest first, from a pilot's variances or from assumed ones."""
    from dpeer.escape import markup
    from dpeer.eval.irt.dstudy import Costs, Goal, candidates, variances
    from dpeer.eval.irt.precision import Design
    from dpeer.eval.report.design_plan import picture
    from dpeer.files import write_bytes
    from dpeer.report.table_files import write_frames

    goal = Goal(half_width, difference, power, order)
    goal.sd()
    components = _components(pilot, set_)
    known = max(len(c.alpha) for c in components)
    counts = range(2, (judges or known + 2) + 1)
    found = candidates(
        components,
        goal,
        Costs(rating_price, response_price, rating_seconds),
        judges=counts,
        samples=range(1, samples + 1),
        repeats=range(1, repeats + 1),
        most_items=items,
    )
    shares = variances(components)
    write_frames({"designs": found, "variances": shares}, output)
    best = found.iloc[0]
    chosen = Design(int(best["items"]), int(best.judges), int(best.samples), int(best.repeats))
    wanted = float(best.half_width) if goal.half_width is None or goal.difference is not None else goal.half_width
    drawn = picture(components, counts, chosen, wanted)
    for kind, content in zip(("svg", "png"), drawn, strict=True):
        write_bytes(output / f"precision.{kind}", content)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    _show(found, shares, goal.difference is not None, known, console)
    if free := [c.dimension for c in components if goal.met_by_prior(c.s_theta)]:
        console.print(
            f"Abilities spread so little that nothing is needed for this half-width in {markup(', '.join(free))}."
        )
    console.print(f"designs     {output / 'designs.csv'}\npicture     {output / 'precision.svg'}", soft_wrap=True)


def _components(pilot: Path | None, set_: list[str] | None) -> list[Components]:
    from dpeer.errors import ConfigError
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.precision import assumed, components_of
    from dpeer.launcher.commands.irt_options import spec_of

    if pilot is not None and set_:
        raise ConfigError("--set is for plans without a pilot; with one, variances are the pilot's")
    if pilot is not None:
        return components_of(load(pilot))
    spec = spec_of(set_)
    return [assumed(spec)] * spec.dimensions


def _show(found: pd.DataFrame, shares: pd.DataFrame, asked: bool, known: int, console: Console) -> None:
    from rich.table import Table

    from dpeer.escape import markup
    from dpeer.eval.report.words import fixed, probability
    from dpeer.report.text import percent

    parts = Table("dimension", "component", title="Variance components", title_justify="left", box=None, pad_edge=False)
    for name in ("sd (logits)", "share"):
        parts.add_column(name, justify="right")
    parts.add_column("lowered by more")
    for row in shares.drop_duplicates(["component", "sd"]).itertuples():
        parts.add_row(markup(row.dimension), row.component, fixed(row.sd), percent(row.share), row.averaged_over)
    console.print(parts)
    table = Table(title="Designs, cheapest first", title_justify="left", box=None, pad_edge=False)
    priced, timed = bool(found["price"].any()), bool(found["hours"].any())
    columns = [
        "judges",
        "repeats",
        "samples",
        "items",
        "ratings",
        *["price"] * priced,
        *["hours"] * timed,
        "half-width",
    ]
    for name in (*columns, *["power", "right order"] * asked, "reliability"):
        table.add_column(name, justify="right")
    for row in found.head(SHOWN).itertuples():
        counts = [f"{n:,}" for n in (row.judges, row.repeats, row.samples, row.items, row.ratings)]
        cells = [*counts, *[fixed(row.price)] * priced, *[fixed(row.hours, 1)] * timed, f"±{fixed(row.half_width)}"]
        chances = [probability(row.power), probability(row.right_order)] if asked else []
        table.add_row(*cells, *chances, fixed(row.reliability))
    console.print(table)
    if found["judges"].head(SHOWN).max() > known:
        console.print(f"More than {known} judges: the further ones are taken to be of their kind.")


def show_precision(planned: Plan, config: EvalConfig, console: Console) -> None:
    """How precise the planned ratings will be: by the fit of this evaluation if there is one, else by assumptions."""
    from dpeer.escape import markup
    from dpeer.eval.irt.errors import IrtError
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.precision import Z95, assumed, components_of, difference_sd
    from dpeer.eval.irt.simulate import Spec

    rows = planned.rows
    models = rows["model"].nunique()
    if models < 2 or planned.judging.mode == "pairwise":  # what is known is how precise ratings are
        return
    spec = Spec(
        models=models,
        judges=max(2, rows["judge"].nunique()),
        categories=len(planned.rubric.scale),
        criteria=int(rows.groupby("dimension")["criterion"].nunique().min()),
    )
    components, source = [assumed(spec)], "usual variances, for want of a pilot"
    pilot = config.folder / "irt"
    if (pilot / "manifest.json").exists():
        try:
            components, source = components_of(load(pilot)), f"the variances in {pilot}"
        except IrtError as error:
            console.print(f"[yellow]note:[/] {markup(error)}", soft_wrap=True)
    width = Z95 * max(difference_sd(c, *parts_of(rows)) for c in components)
    console.print(
        f"Precision: a difference of two models to about ±{width:.2f} logits per dimension (by {markup(source)}). "
        "`dpeer eval plan` says what a narrower one takes.",
        soft_wrap=True,
    )


def parts_of(rows: pd.DataFrame) -> list[Design]:
    """The planned rows as designs: items whose responses have equally many judges make one."""
    from dpeer.eval.irt.precision import Design

    repeats = int(rows["repeat"].nunique())
    each = rows.groupby(["item", "response_id"])["judge"].nunique().groupby("item").mean().round().astype(int)
    samples = max(1, round(rows["response_id"].nunique() / (rows["model"].nunique() * rows["item"].nunique())))
    return [Design(int(n), int(j), samples, repeats) for j, n in each.value_counts().sort_index().items()]
