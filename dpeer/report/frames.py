"""The numbers of a certificate as tables."""

from __future__ import annotations

import pandas as pd

from dpeer.report.run import Certificate, Certified, Rate


def certificate_frames(certificate: Certificate) -> dict[str, pd.DataFrame]:
    """`constraints` and `masks` (values of constraints with their intervals), `dimensions` (held-out means, pairs won),
    `selection` (how often the golden response ranks first); only those that the certificate has."""
    masks = [{"mask": m} | _constraint(c) for m, rows in certificate.masks.items() for c in rows]
    names = dict.fromkeys([*certificate.dimensions, *certificate.wins])
    dimensions = [{"dimension": d} | _dimension(certificate, d) for d in names]
    selection = []
    if certificate.selection:
        selection = [{"mask": "all"} | _rate(certificate.selection.overall)]
        selection += [{"mask": m} | _rate(r) for m, r in certificate.selection.masks.items()]
    found = {
        "constraints": [_constraint(c) for c in certificate.constraints],
        "masks": masks,
        "dimensions": dimensions,
        "selection": selection,
    }
    return {name: pd.DataFrame(rows) for name, rows in found.items() if rows}


def _constraint(row: Certified) -> dict[str, object]:
    return {
        "constraint": row.name,
        "value": row.estimate,
        "value_low": row.lower,
        "value_high": row.upper,
        "tolerance": row.tolerance,
        "verdict": row.verdict,
        "records": row.records,
        "edges": row.edges,
        "mean": row.mean.estimate,
        "mean_low": row.mean.lower,
        "mean_high": row.mean.upper,
    }


def _dimension(certificate: Certificate, name: str) -> dict[str, object]:
    found: dict[str, object] = {}
    if mean := certificate.dimensions.get(name):
        found |= {"loss": mean.loss, "accuracy": mean.accuracy}
    if win := certificate.wins.get(name):
        found |= {"won": win.rate, "won_at_least": win.lower}
    return found


def _rate(row: Rate) -> dict[str, object]:
    return {"golden_first": row.rate, "golden_first_low": row.lower, "golden_first_high": row.upper, "records": row.n}
