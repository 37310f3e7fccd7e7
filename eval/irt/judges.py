"""The judge table: how severe, how discriminating and how predictable each judge is, with a note in words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeer.eval.irt.ability import estimates
from dpeer.eval.irt.comparison_fit import of_judges
from dpeer.eval.irt.fit_statistics import FitStatistics
from dpeer.eval.irt.types import Posterior

LEADS = 1.5
"""From this discrimination on, a judge weighs enough to set the consensus."""
FIT_RANGE = (0.5, 1.5)
"""Mean squares that are productive for measurement (Linacre, 2002)."""


def judge_table(posterior: Posterior, statistics: FitStatistics, found: pd.DataFrame) -> pd.DataFrame:
    """`found`: biases. judge, severity, alpha, infit, infit_p, outfit, outfit_p, n, mean_score, note; with comparisons
    also their number, tie_share and position."""
    r = posterior.ratings
    J = len(r.judges)
    severity = posterior.draws.get("severity_judge")
    overall = posterior.flat("severity").mean(axis=2) if severity is None else posterior.flat("severity_judge")
    alpha = np.exp(posterior.flat("log_alpha")) if "log_alpha" in posterior.draws else np.ones((1, J))
    n = np.bincount(r.judge, minlength=J)
    total = np.bincount(r.judge, np.asarray(r.scale, dtype=float)[r.category], J)
    frame = pd.DataFrame({"judge": r.judges, **estimates("severity", overall), **estimates("alpha", alpha)})
    frame = frame.merge(statistics.judges, on="judge", how="left")
    frame["n"], frame["mean_score"] = n, np.where(n, total / np.maximum(n, 1), np.nan)
    if len(r.comparisons):
        frame = frame.assign(**of_judges(posterior))
    middle = set(found.loc[found["kind"] == "middle", "judge"])
    return frame.assign(note=[_note(posterior, statistics, row, middle) for row in frame.to_dict(orient="records")])


def _note(posterior: Posterior, statistics: FitStatistics, row: dict[str, float], middle: set[str]) -> str:
    """What stands out about a judge; empty if nothing does."""
    r = posterior.ratings
    given = np.unique(r.category[r.judge == r.judges.index(str(row["judge"]))])
    if len(given) == 1:
        return f"constant: gives the score {r.scale[given[0]]} only"
    words = _misfits(statistics.misfit, str(row["judge"]))
    low, high = FIT_RANGE
    if row["infit"] > high:
        words.append(f"noisy: varies more than the model expects (infit {row['infit']:.1f})")
    elif row["infit"] < low:
        words.append(f"too regular: varies less than the model expects (infit {row['infit']:.1f})")
    if str(row["judge"]) in middle:  # wide steps are what alpha shows then
        words.append(f"keeps to the middle of the scale (alpha {row['alpha']:.1f} follows from its wide score steps)")
    elif row["alpha_high"] < 1:
        words.append(f"agrees less with the others (alpha {row['alpha']:.1f})")
    elif row["alpha_low"] > 1 and row["alpha"] > LEADS:
        words.append(f"sets the consensus (alpha {row['alpha']:.1f}), which is not validity")
    if row.get("position_low", np.nan) > 0 or row.get("position_high", np.nan) < 0:
        side = "first" if row["position"] > 0 else "second"
        words.append(f"prefers what is shown {side} (by {abs(row['position']):.2f} logits)")
    return "; ".join(words)


def _misfits(misfit: pd.DataFrame, judge: str) -> list[str]:
    """The notable cell of a judge that fits worst."""
    bad = misfit[(misfit["judge"] == judge) & misfit["notable"]]
    if not len(bad):
        return []
    worst = bad.loc[bad["z"].abs().idxmax()]
    side = "higher" if worst["z"] > 0 else "lower"
    more = f", and {len(bad) - 1} more such cells" if len(bad) > 1 else ""
    by = f"{abs(worst['observed'] - worst['expected']):.2f}"
    return [f"misfits: scores {worst['model']} {side} in {worst['dimension']} than the model expects (by {by}){more}"]
