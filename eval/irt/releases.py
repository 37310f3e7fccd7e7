"""Releases compared: what changed from one fit to a later one, on one scale, and what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import estimates, interval
from dpeer.eval.irt.comparison_fit import comparison_table
from dpeer.eval.irt.diagnostics import gate
from dpeer.eval.irt.equating import Link, all_known, draws_of, link, moved_elements, positions
from dpeer.eval.irt.fit_statistics import fit_statistics
from dpeer.eval.irt.types import Floats, Options, Posterior
from dpeer.eval.irt.variant import variant_of

ABSENT = "\u2013"
ROUNDING = 1e-9
"""Logits up to which the change of a model that alone sets the zero differs from none."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One later fit against the first."""

    release: str
    pairs: tuple[tuple[str, str], ...]
    """(model of the first fit, model of the later one) whose difference is asked for."""
    dimensions: tuple[str, ...]
    """Those that are linked."""
    unlinked: tuple[str, ...]
    """Those that both fits have and nothing links."""
    before: Floats
    """[S, P, D] positions mu + theta in the first fit."""
    after: Floats
    """[S, P, D] in the later one, on the scale of the first."""
    tables: dict[str, pd.DataFrame]
    """changes, drift, links, settings: see the functions of these names."""
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why no claim can be made, by either fit's gate; empty where both are green."""

    @property
    def difference(self) -> Floats:
        """[S, P, D] later minus earlier, in logits of the first fit."""
        return self.after - self.before


def compare(
    before: Posterior,
    now: Posterior,
    release: str = "later",
    *,
    same: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    reasons: Sequence[str] | None = None,
) -> Comparison:
    """The later fit on the scale of the earlier one.

    same: models that are the same in both fits, and so link them; those whose weights have the same known hash count by
        themselves
    pairs: (earlier name, later name) to compare; default: equal names that are not `same`, and the two models that are
        left where each fit has one model of its own
    reasons: why the fits support no claim (`unsound`), where that is known already

    Raises ConfigError: unknown names, nothing left to compare, or nothing that links the fits (see `equating.link`).
    """
    same = _same(before, now, same)
    pairs = _pairs(before, now, same, pairs)
    made = link(before, now, same, seed)
    kept = np.flatnonzero(all_known(made.shift))
    dimensions = tuple(made.dimensions[d] for d in kept)
    old = positions(before, dimensions, len(made.unit))
    new = positions(now, dimensions, len(made.unit)) / made.unit[:, None, None] + made.shift[:, None, kept]
    mine = [before.ratings.models.index(a) for a, _ in pairs]
    theirs = [now.ratings.models.index(b) for _, b in pairs]
    tables = {
        "changes": changes(before, now, dimensions, old, new, pairs, same),
        "drift": moved_elements(made, before, now),
        "links": links(made),
        "settings": settings(before, now),
    }
    notes = (*made.notes, *_drifted(tables["drift"]), *_programs(before, now))
    return Comparison(
        release=release,
        pairs=pairs,
        dimensions=dimensions,
        unlinked=tuple(d for d in made.dimensions if d not in dimensions),
        before=old[:, mine],
        after=new[:, theirs],
        tables={name: table.assign(release=release) for name, table in tables.items()},
        notes=notes,
        reasons=(*unsound(before, "the earlier fit"), *unsound(now, "the later fit"))
        if reasons is None
        else (*reasons,),
    )


def _same(before: Posterior, now: Posterior, named: Sequence[str]) -> tuple[str, ...]:
    old, new = (p.ratings.sources.get("model", {}) for p in (before, now))
    for name in named:
        for which, posterior in (("earlier", before), ("later", now)):
            if name not in posterior.ratings.models:
                raise ConfigError(
                    f"--same {name}: the {which} fit has no such model; it has {', '.join(posterior.ratings.models)}"
                )
        if name in old and name in new and old[name] != new[name]:
            raise ConfigError(
                f"--same {name}: its weights have another hash in the later fit, so it is not the same model"
            )
    known = [name for name in old if name in new and old[name] == new[name]]
    return tuple(dict.fromkeys((*named, *known)))


def _pairs(
    before: Posterior, now: Posterior, same: Sequence[str], given: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    old, new = before.ratings.models, now.ratings.models
    for pair in given:
        for name, which, models in zip(pair, ("earlier", "later"), (old, new), strict=True):
            if name not in models:
                raise ConfigError(
                    f"--pair {pair[0]}={pair[1]}: the {which} fit has no model {name}; it has {', '.join(models)}"
                )
    if given:
        return tuple(given)
    equal = [(name, name) for name in old if name in new and name not in same]
    own = [[name for name in names if name not in others] for names, others in ((old, new), (new, old))]
    lone = [(own[0][0], own[1][0])] if len(own[0]) == len(own[1]) == 1 else []
    if not equal and not lone:
        raise ConfigError(
            f"which models are to be compared? The earlier fit has {', '.join(old)}, the later {', '.join(new)}"
            f"{f'; {chr(44).join(same)} link the two' if same else ''}. Name them: --pair EARLIER=LATER"
        )
    return (*equal, *lone)


def changes(
    before: Posterior,
    now: Posterior,
    dimensions: tuple[str, ...],
    old: Floats,
    new: Floats,
    pairs: Sequence[tuple[str, str]],
    same: Sequence[str],
) -> pd.DataFrame:
    """A row per pair and dimension, then per model that only one fit has, then per model that links.

    Columns: model, later_model, dimension, before, now (ability in logits of the first fit), difference, each with
    _low and _high (95 %), p_down (posterior probability that it fell; nan where the model alone sets the zero),
    unlinked (what the two abilities would differ by without linking), role (compared, first only, later only, link).
    """
    r, s = before.ratings, now.ratings
    zero = draws_of(before, "mu", len(old))[:, [r.dimensions.index(d) for d in dimensions]]
    first, later = {b for _, b in pairs}, {a for a, _ in pairs}
    rows: list[tuple[str | None, str | None, str]] = [(a, b, "compared") for a, b in pairs]
    rows += [(m, m, "link") for m in same if (m, m) not in pairs]
    rows += [(m, None, "first only") for m in r.models if m not in later and m not in same]
    rows += [(None, m, "later only") for m in s.models if m not in first and m not in same]
    nothing = np.full((len(old), len(dimensions)), np.nan)
    raw = [p.flat("theta").mean(axis=0)[:, [p.ratings.dimensions.index(d) for d in dimensions]] for p in (before, now)]
    frames = []
    for a, b, role in rows:
        was = old[:, r.models.index(a)] - zero if a else nothing
        is_ = new[:, s.models.index(b)] - zero if b else nothing
        change = is_ - was
        moves = np.abs(change).max(axis=0) > ROUNDING
        frames.append(
            pd.DataFrame(
                {
                    "model": a or ABSENT,
                    "later_model": b or ABSENT,
                    "dimension": dimensions,
                    **estimates("before", was),
                    **estimates("now", is_),
                    **estimates("difference", change),
                    "p_down": np.where(moves, (change < 0).mean(axis=0), np.nan),
                    "unlinked": raw[1][s.models.index(b)] - raw[0][r.models.index(a)] if a and b else np.nan,
                    "role": role,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def links(made: Link) -> pd.DataFrame:
    """What says how far the zero has moved, and by how much.

    Columns: dimension, by (models, items, judges, units), shift with _low and _high (95 %, logits; of units a factor),
    elements, dropped, spread (posterior mean of tau), used.
    """
    rows: list[dict[str, Any]] = []
    linked = all_known(made.shift)
    for pool in made.pools:
        there = all_known(pool.shift)
        dimensions = ("all",) if pool.kind == "units" else made.dimensions
        for d, name in enumerate(dimensions):
            draws = np.exp(pool.centre[:, d]) if pool.kind == "units" else pool.centre[:, d]
            mean, low, high = interval(draws)
            used = pool.kind == "units" or (linked[d] and made.by_models[d] == (pool.kind == "models"))
            rows.append(
                {
                    "dimension": name,
                    "by": pool.kind,
                    "shift": float(mean),
                    "shift_low": float(low),
                    "shift_high": float(high),
                    "elements": int(there[:, d].sum()),
                    "dropped": int((there & ~pool.kept)[:, d].sum()),
                    "spread": pool.spread,
                    "used": bool(used and pool.known[d]),
                }
            )
    return pd.DataFrame(rows)


def settings(before: Posterior, now: Posterior) -> pd.DataFrame:
    """What else is not the same in the two fits. Columns: what, before, now."""
    facts = [dict(_facts(p)) for p in (before, now)]
    names = dict.fromkeys([*facts[0], *facts[1]])
    rows = [(name, *(str(f.get(name, ABSENT)) for f in facts)) for name in names]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["what", "before", "now"])


def _facts(posterior: Posterior) -> list[tuple[str, Any]]:
    r, options = posterior.ratings, posterior.options
    found: list[tuple[str, Any]] = [(f"{kind}s", ", ".join(getattr(r, f"{kind}s"))) for kind in ("model", "judge")]
    found += [("items", len(r.items)), ("ratings", f"{len(r):,}"), ("scale", f"{r.scale[0]} to {r.scale[-1]}")]
    found += [("criteria", ", ".join(f"{d}/{c}".rstrip("/") for d, c in r.criteria))]
    found += [
        (f"{what} of {kind} {name}", value[:12])
        for kind, what in (("model", "weights"), ("judge", "weights"), ("dimension", "rubric"))
        for name, value in r.sources.get(kind, {}).items()
    ]
    found += [
        (f"unusable ratings of {judge}", f"{1 - counts.get('ok', 0) / max(1, sum(counts.values())):.1%}")
        for judge, counts in r.status_by_judge.items()
    ]
    chosen = {f.name: getattr(options, f.name) for f in fields(Options)} | variant_of(posterior)
    found += [(f"option {name}", value if name != "anchors" else bool(value)) for name, value in chosen.items()]
    found += [(name, posterior.facts[name]) for name in ("cmdstan", "unused_categories") if name in posterior.facts]
    found += [("program", str(posterior.facts.get("model_sha256", ABSENT))[:12])]
    return found


def _drifted(table: pd.DataFrame) -> list[str]:
    notes = []
    for kind, rows in table[table["drifted"]].groupby("kind", sort=False):
        words = [f"{name} ({', '.join(part['dimension'])})" for name, part in rows.groupby("name", sort=False)]
        more = f" and {len(words) - 10} more" if len(words) > 10 else ""
        notes.append(f"Moved against the others, and so no link: {kind} {', '.join(words[:10])}{more}.")
    return notes


def _programs(before: Posterior, now: Posterior) -> list[str]:
    old, new = (p.facts.get("model_sha256") for p in (before, now))
    if old == new:
        return []
    return [
        "The two fits come from different versions of the Stan program, so their logits may differ: fit both with one "
        "version of dpeer."
    ]


def unsound(posterior: Posterior, which: str) -> list[str]:
    """Why a fit supports no claim, by its gate; empty where it is green."""
    pairs = comparison_table(posterior) if len(posterior.ratings.comparisons) else None
    verdict = gate(posterior, None, fit_statistics(posterior).misfit, pairs)
    return [f"{which}: {reason}" for reason in verdict["reasons"]]
