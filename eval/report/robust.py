"""Tables of the page on how robust a fit is: without each judge, and against the prior."""

from __future__ import annotations

from dataclasses import replace

from dpeer.eval.report.table import Table, bounded, build, text
from dpeer.eval.report.words import Frames, between, fixed, signed

HOW = {"weights": "draws of this fit, weighted", "refit": "a fit without its ratings"}


def stable(frames: Frames) -> Table:
    """A row per contrast: what becomes of its verdict without a judge."""
    return build(
        "Differences to the base, and the judges that they rest on",
        frames["contrasts"].itertuples(),
        Model=lambda r: str(r.model),
        Dimension=lambda r: str(r.dimension),
        Difference_n=lambda r: signed(r.contrast),
        All_at_once_n=lambda r: between(r.family_low, r.family_high),
        Verdict=lambda r: text(r.verdict),
        Judges_left_out=lambda r: text(r.stable),
    )


def without_judge(frames: Frames) -> Table:
    """A row per judge and contrast, as far as known; those that change first."""
    frame = frames["without_judge"]
    frame = frame[frame["how"] != ""]
    order = frame["changes"].eq(True).sort_values(ascending=False, kind="stable").index
    table = build(
        "Differences to the base in logits with one judge left out, with 95 % intervals",
        frame.reindex(order).itertuples(),
        Judge_left_out=lambda r: str(r.judge),
        Model=lambda r: str(r.model),
        Dimension=lambda r: str(r.dimension),
        Difference_n=lambda r: bounded(r, "contrast", signed),
        All_at_once_n=lambda r: between(r.family_low, r.family_high),
        Verdict=lambda r: text(r.verdict),
        Changes=lambda r: "changes" if r.changes is True else "",
        How=lambda r: HOW[r.how],
        Pareto_k_n=lambda r: fixed(r.khat),
    )
    return replace(table, minor=True)


def sensitivity(frames: Frames) -> Table:
    """A row per quantity, the most sensitive to the prior first."""
    frame = frames["sensitivity"].sort_values("prior", ascending=False, kind="stable")
    counts = " and ".join(f"{fixed(frame[f'{kind}_counts'].iloc[0], 3)} ({kind})" for kind in ("prior", "likelihood"))
    return build(
        f"How far quantities move when the prior, or the likelihood, is scaled; it counts from {counts} on",
        frame.itertuples(),
        Quantity=lambda r: str(r.quantity),
        Prior_n=lambda r: fixed(r.prior, 3),
        Likelihood_n=lambda r: fixed(r.likelihood, 3),
        Diagnosis=lambda r: text(r.diagnosis),
    )
