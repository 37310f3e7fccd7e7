"""How robust a fit is: each judge left out, and the pull of the prior. Computed once for a fit, kept in its folder."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpeer.eval.irt.claims import Claims
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.loo import GOOD_K
from dpeer.eval.irt.marginal import DRAWS, chosen_draws, log_likelihood
from dpeer.eval.irt.power_scaling import NOTABLE, sensitivity_table
from dpeer.eval.irt.types import Floats, Ints, Posterior
from dpeer.eval.irt.weaknesses import names_of
from dpeer.eval.irt.without_judge import REFITS, Without, by_refit, by_weights, without_table
from dpeer.files import write_bytes

FILE = "robustness.npz"
Say = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Robustness:
    fingerprint: str
    """Of the draws that it was computed from."""
    draws: Ints  # [S] flat
    likelihood: Floats  # [S] log likelihood of all ratings; empty where comparisons join the responses
    judges: tuple[Without, ...] = ()
    """Those examined so far."""
    note: str = ""
    """Why something was not examined."""
    refits: int = field(default=REFITS)


def robustness(
    posterior: Posterior,
    refits: int = REFITS,
    draws: int = DRAWS,
    progress: Say | None = None,
    earlier: Robustness | None = None,
    keep: Callable[[Robustness], None] | None = None,
) -> Robustness:
    """Leave out each judge in turn, and compute what `sensitivity_table` needs.

    refits: judges at most whose ratings are left out by a fit of the others (0: none), those with most ratings first.
    earlier, keep: a result that was stopped, and what is told each step, so that it goes on from there.
    """
    say = progress or (lambda what, done: None)
    r, mark = posterior.ratings, fingerprint(posterior)
    index, place = chosen_draws(posterior, draws)
    say("likelihood", 0.0)
    note = ""
    try:
        density = log_likelihood(posterior, index, place)
    except IrtError as error:
        density, note = np.zeros((0, len(index))), str(error)
    total = density.sum(axis=0) if len(density) else np.zeros(0)
    done = {one.judge: one for one in earlier.judges if one.how} if earlier and earlier.fingerprint == mark else {}
    if len(r.judges) < 2:
        return _kept(
            Robustness(mark, index, total, (), "One judge: no claim can be checked against another.", refits), keep
        )
    busiest = np.argsort(-np.bincount(np.r_[r.judge, r.comparisons.judge], minlength=len(r.judges)), kind="stable")
    left = refits
    for number, j in enumerate(busiest.tolist()):
        name = r.judges[j]

        def told(what: str, share: float, number: int = number) -> None:
            say(what, (number + share) / len(r.judges))

        if name not in done:
            told(f"without {name}", 0.0)
            one = by_weights(posterior, j, index, place, density) if len(density) else None
            if one is None or not one.khat <= GOOD_K:
                khat = one.khat if one else float("nan")
                if left > 0:
                    one = by_refit(posterior, j, khat, told)
                    left -= one.how != ""
                else:
                    nothing = np.zeros((0, len(r.models), len(r.dimensions)))
                    one = Without(name, nothing, khat, "", _too_many(khat, refits))
            done[name] = one
        else:
            left -= done[name].how == "refit"
        found = Robustness(mark, index, total, tuple(done[n] for n in r.judges if n in done), note, refits)
        _kept(found, keep)
    return found


def _too_many(khat: float, refits: int) -> str:
    guide = f"importance weights are no guide (k-hat {khat:.2f} > {GOOD_K})"
    weights = "no importance weights" if np.isnan(khat) else guide
    made = f"no more than {refits} judges were left out by a new fit: --refits allows more"
    return f"{weights}, and " + (made if refits else "no fit was to be made")


def _kept(found: Robustness, keep: Callable[[Robustness], None] | None) -> Robustness:
    if keep:
        keep(found)
    return found


def tables(posterior: Posterior, found: Robustness, base: str, wanted: Claims) -> dict[str, pd.DataFrame]:
    """without_judge (`irt.without_judge`) and sensitivity (`irt.power_scaling`), as far as they are known."""
    made = {}
    if found.judges:
        made["without_judge"] = without_table(posterior, found.judges, base, wanted)
    if len(found.likelihood):
        made["sensitivity"] = sensitivity_table(posterior, base, found.draws, found.likelihood)
    return made


def notes(found: Robustness, made: dict[str, pd.DataFrame]) -> list[str]:
    """What a reader must know, in words."""
    said = [found.note] * bool(found.note)
    for one in found.judges:
        if not one.how:
            said.append(f"Not known what would be claimed without judge {one.judge}: {one.why}.")
    if (table := made.get("sensitivity")) is not None:
        if (least := float(table["prior_counts"].max())) > NOTABLE:
            said.append(
                f"How sensitive quantities are to the prior is known to {least:.2f} only, where {NOTABLE} would count: "
                "more draws would tell."
            )
        contrasts = table[table["quantity"].str.contains(" - ", regex=False)]
        for diagnosis, rows in contrasts[contrasts["diagnosis"] != ""].groupby("diagnosis"):
            said.append(f"Differences that are sensitive to the prior ({diagnosis}): {names_of(rows['quantity'])}.")
    return said


def fingerprint(posterior: Posterior) -> str:
    return hashlib.sha256(np.ascontiguousarray(posterior.draws["theta"]).tobytes()).hexdigest()


def save(found: Robustness, folder: Path) -> None:
    """Write `folder`/robustness.npz, whole or not at all."""
    head = {
        "fingerprint": found.fingerprint,
        "note": found.note,
        "refits": found.refits,
        "judges": [{"judge": w.judge, "khat": w.khat, "how": w.how, "why": w.why} for w in found.judges],
    }
    arrays: dict[str, Any] = {f"theta{i}": one.theta.astype(np.float32) for i, one in enumerate(found.judges)}
    buffer = io.BytesIO()
    np.savez(buffer, head=np.array(json.dumps(head)), draws=found.draws, likelihood=found.likelihood, **arrays)
    write_bytes(folder / FILE, buffer.getvalue())


def load(folder: Path, posterior: Posterior) -> Robustness | None:
    """What was found about this fit; None where there is nothing, or it is about other draws."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            head = json.loads(str(kept["head"]))
            if head["fingerprint"] != fingerprint(posterior):
                return None
            judges = tuple(
                Without(theta=kept[f"theta{i}"].astype(np.float64), **one) for i, one in enumerate(head["judges"])
            )
            return Robustness(
                head["fingerprint"], kept["draws"], kept["likelihood"], judges, head["note"], head["refits"]
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise IrtError(
            f"{path} is damaged ({error}); delete it, and run dpeer irt sensitivity {folder} again"
        ) from error
