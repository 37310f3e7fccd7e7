"""The words and numbers of a report: what a run is, what it found, and how values are written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpeer.objective.forms import FORMS, Form
from dpeer.report.run import Certificate, Certified, Rate, Run

UNKNOWN = "\u2013"
MINUS = "\u2212"
NBSP = "\u00a0"
MOST_NAMES, MOST_CLAIMS = 12, 24
WORST_FIRST = ("violated", "undecided", "satisfied")


def number(value: float, digits: int = 3) -> str:
    """About `digits` significant digits, as decimals; an unknown value is a dash, an infinite one "none"."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "none"
    value = value if abs(value) >= 1e-6 else 0.0
    rounded = float(f"{value:.{digits}g}")
    places = digits - 1 - math.floor(math.log10(abs(rounded))) if rounded else digits
    most = digits if abs(rounded) >= 10**-digits else 6
    text = f"{value:,.{min(max(places, 0), most)}f}"
    return text.replace("-", MINUS)


def exact(value: float) -> str:
    """A value that a person chose, as they would write it; inf is "none"."""
    return f"{value:g}" if math.isfinite(value) else "none"


def percent(share: float, places: int = 0) -> str:
    """Rounded as the share itself would be: 0.465, elsewhere printed as 0.47, is 47 %."""
    return UNKNOWN if math.isnan(share) else f"{100 * round(share, 2 + places):.{places}f}{NBSP}%"


def interval(rate: Rate) -> str:
    """E.g. "71 % [62, 79]"."""
    return f"{percent(rate.rate)} [{bounds(rate)}]"


def bounds(rate: Rate) -> str:
    """Interval in percent, e.g. "62, 79"."""
    return UNKNOWN if math.isnan(rate.lower) else f"{100 * rate.lower:.0f}, {100 * rate.upper:.0f}"


def listing(names: Sequence[str]) -> str:
    """E.g. "A", "A and T", "A, T and E"; of many the first, and how many more."""
    if len(names) > MOST_NAMES + 1:
        names = [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES:,} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def method_name(run: Run) -> str:
    """What kind of training the run is, in a few words."""
    if run.get("config.objective.kind") == "sft":
        return "Supervised fine-tuning"
    if run.lagrangian:
        return "Lagrangian DPO"
    primary = run.get("config.objective.primary", "uniform")
    names = {"pooled": "Pooled DPO", "uniform": "DPO with equal weights per dimension"}
    return "DPO with fixed weights" if isinstance(primary, Mapping) else names.get(primary, "DPO")


def constraint_form(run: Run) -> type[Form]:
    """The form of the run's constraints. ConfigError: this installation does not know it."""
    return FORMS[run.get("config.objective.constraint.form", "threshold")]


def progress(run: Run) -> str:
    """E.g. "20 of 80 steps"."""
    done, planned = len(run.ledger), run.get("config.training.steps")
    return f"{done} of {planned} steps" if planned and planned != done else f"{done} step{'s' * (done != 1)}"


def finding(run: Run) -> str:
    """The one sentence that heads the page."""
    certificate = run.certificate
    if certificate is None:
        state = "" if run.get("finished") else "unfinished, "
        return f"{method_name(run)}: {state}{progress(run)} and no certificate yet"
    constraints = certificate.constrained
    if constraints:
        met = sum(c.verdict == "satisfied" for c in constraints)
        count = "All" if met == len(constraints) > 1 else f"{met} of"
        if all(len(c.dimensions) == 1 for c in constraints):
            noun = "dimension" if len(constraints) == 1 else "dimensions"
            verb = "meets its" if met == 1 else "meet their"
            return f"{count} {len(constraints)} {noun} {verb} tolerance on held-out records"
        verb = "holds" if met == 1 else "hold"
        return f"{count} {len(constraints)} constraint{'s' * (len(constraints) > 1)} {verb} on held-out records"
    if certificate.selection:
        overall = certificate.selection.overall
        return f"{method_name(run)}, no constraints: golden ranks first in {percent(overall.rate)} of held-out records"
    return f"{method_name(run)}, no constraints: {progress(run)}"


def subtitle(run: Run) -> str:
    """What the finding leaves open, e.g. "Violated: E. Undecided: T and C."."""
    constraints = run.certificate.constrained if run.certificate else ()
    names = {verdict: [c.name for c in constraints if c.verdict == verdict] for verdict in ("violated", "undecided")}
    return " ".join(
        f"{verdict.capitalize()}: {listing(constraints)}." for verdict, constraints in names.items() if constraints
    )


def foremost(claims: Sequence[Certified]) -> list[Certified]:
    """All claims, or of many those that a reader looks for: violated, then undecided ones, the farthest above their
    tolerances first."""
    if len(claims) <= MOST_CLAIMS:
        return list(claims)
    return sorted(claims, key=lambda c: (WORST_FIRST.index(c.verdict), c.tolerance - c.estimate))[:MOST_CLAIMS]


def left_out(claims: Sequence[Certified]) -> str:
    """What `foremost` does not show, by verdict; empty where it shows all."""
    shown = foremost(claims)
    counts = {v: sum(c.verdict == v for c in claims) - sum(c.verdict == v for c in shown) for v in WORST_FIRST}
    words = listing([f"{n:,} {v}" for v, n in counts.items() if n])
    return f"{len(claims) - len(shown):,} more stand in certificate.json: {words}." if words else ""


def certified_words(certificate: Certificate) -> str:
    """What is certified, in plain words."""
    confidence = percent(certificate.confidence)
    if math.isnan(certificate.bound):
        return (
            "An earlier version of dpeer made this certificate, of the mean with every pair counted in full. Intervals "
            f"cluster by prompt and were meant to hold for all constraints together at {confidence}; rare, huge losses "
            "can break that."
        )
    return (
        f"What is certified is the mean with each pair counted up to {exact(certificate.bound)}, over prompts like the "
        f"held-out ones. With {confidence} confidence no \u201csatisfied\u201d here is false, and with {confidence} "
        "confidence no \u201cviolated\u201d is. A tolerance inside the range would be undecided; one that is chosen "
        "after looking at the range needs fresh held-out records."
    )


def rare_words(certificate: Certificate) -> str:
    """What the held-out records cannot show."""
    return (
        f"Kinds of prompts rarer than {percent(certificate.rarest, 1)} (3 / {certificate.prompts:,}) may be absent "
        "from the held-out records, and nothing is known about them."
    )


def win_words(certificate: Certificate) -> str:
    """E.g. "A 88 % (at least 84 %)" of every dimension."""
    return ", ".join(f"{d} {percent(w.rate)} (at least {percent(w.lower)})" for d, w in certificate.wins.items())


def stop_words(run: Run) -> str:
    """Why training ended early; empty where it did not."""
    stop = run.stop
    if stop is None:
        return ""
    if stop.reason == "certified":
        return (
            f"Training ended early, at step {stop.step}: the dual split proved every tolerance, at look {stop.look} "
            f"with {100 * stop.confidence:.4g}{NBSP}% confidence; all looks together have that of the certificate."
        )
    worse = "the last checkpoint was" if stop.patience == 1 else f"the last {stop.patience} checkpoints were"
    return f"Training ended early, at step {stop.step}: {worse} worse than the best one, by the loss on the dual split."


def exported_words(run: Run) -> str:
    """Which checkpoint was certified and exported; empty while it is open."""
    step = run.get("exported_step")
    if step is None:
        return ""
    best = run.get("config.training.keep") == "best" and not (run.stop and run.stop.reason == "certified")
    return f"step {step}" + (", the lowest loss of the worst dimension on the dual split" if best else "")


def relaxed_words(run: Run) -> str:
    """The constraints that were found impossible together, and by how much each gave way; empty where none was."""
    given = {name: c for name, c in run.ledger[-1].constraints.items() if c.relaxed}
    if not given:
        return ""
    one = len(given) == 1
    stays = ", ".join(
        f"{'it' if one else name} stays about {number(c.relaxation, 2)} above {exact(c.tolerance)}"
        for name, c in given.items()
    )
    kept = [name for name in run.constraints if name not in given]
    rest = f" {listing(kept)} keep{'s its own' if len(kept) == 1 else ' theirs'}." if kept else ""
    return (
        f"Not all tolerances can be met{'' if one else ' together'}, so {listing(list(given))} "
        f"{'was' if one else 'were'} relaxed: {stays}.{rest}"
    )


def printable(value: str) -> str:
    """Text of a model, which may hold any character, for a page."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in value)


def extra_records(constraint: Certified) -> str:
    """How many more held-out records an undecided constraint needs."""
    if constraint.verdict != "undecided":
        return UNKNOWN
    return f"about {constraint.extra_records:,}" if constraint.extra_records else "cannot be estimated"


def saturated(run: Run) -> list[str]:
    """Constraints whose multiplier sits at its cap at the last step: not attainable at this tolerance."""
    return [name for name, c in run.ledger[-1].constraints.items() if c.saturated]


def edge_words(split: Mapping[str, Any]) -> str:
    """Edges per dimension of a manifest's data split, e.g. "A 300, T 100"."""
    return ", ".join(f"{d} {n:,}" for d, n in split.get("edges", {}).items()) or "none"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) pairs as `dpeer train --set` takes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
