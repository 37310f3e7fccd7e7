"""From held-out log-probabilities of policy and reference to certificate.json."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import torch

from dpeer.config import Config, Objective
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.heldout_file import Heldout
from dpeer.objective.certificate import certified_bound, certify, certify_masks, win_rates
from dpeer.objective.constraints import build_constraints
from dpeer.objective.dual import DualState
from dpeer.objective.heldout import HeldoutEdges, heldout_means, selection_accuracy
from dpeer.objective.rows import CertificateFile, MarginsFile
from dpeer.training import ending


def heldout_edges(
    config: Config, data: TokenizedSet, policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> HeldoutEdges:
    """Margins of all held-out edges (reward units); records with the same prompt are one cluster."""
    clusters: dict[bytes, int] = {}
    names: dict[str, int] = {}
    margins, dims, records, masks = [], [], [], []
    for tree, lp, ref in zip(data.trees, policy, reference, strict=True):
        rewards = [
            config.objective.beta * (a - b) / (len(r) if config.objective.length_normalised else 1)
            for a, b, r in zip(lp, ref, tree.responses, strict=True)
        ]
        cluster = clusters.setdefault(prompt_key(tree), len(clusters))
        mask = names.setdefault("+".join(tree.mask), len(names))
        for d, better, worse in tree.edges:
            margins.append(rewards[better] - rewards[worse])
            dims.append(d)
            records.append(cluster)
            masks.append(mask)
    return HeldoutEdges(
        torch.tensor(margins, dtype=torch.float64),
        torch.tensor(dims, dtype=torch.int64),
        torch.tensor(records, dtype=torch.int64),
        torch.tensor(masks, dtype=torch.int64),
        tuple(names),
    )


def prompt_key(tree: TokenTree) -> bytes:
    """16 bytes, the same for the same prompt."""
    return hashlib.sha256(array("q", tree.prompt).tobytes()).digest()[:16]


def proven(
    config: Config,
    data: TokenizedSet,
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    dual: DualState,
    look: int,
) -> bool:
    """Whether these records prove every tolerance, as the k-th of many looks at them (`ending.confidence`)."""
    constraints = build_constraints(config.objective.constraint, data.dimensions)
    edges = heldout_edges(config, data, policy, reference)
    confidence = ending.confidence(look, config.objective.certificate.confidence)
    verdicts = certify(edges, constraints, config.objective, confidence, dual)
    return all(v.verdict == "satisfied" for v in verdicts)


def certificate(
    config: Config,
    data: TokenizedSet,
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    dual: DualState,
) -> CertificateFile:
    """The certificate as JSON: verdicts, overall and per mask; means and win rates by dimension; selection accuracy."""
    edges = heldout_edges(config, data, policy, reference)
    per_token, golden, active, keys = [], [], [], set()
    for tree, lp in zip(data.trees, policy, strict=True):
        per_token.append([v / len(r) for v, r in zip(lp, tree.responses, strict=True)])
        golden.append(tree.golden)
        active.append(tree.mask)
        keys.add(prompt_key(tree))
    overall, masks = selection_accuracy(per_token, golden, active)
    prompts = len(keys)
    return {
        **from_margins(config.objective, Heldout(edges, data.dimensions, dual.form)),
        "selection": {"overall": overall.to_dict(), "masks": {k: v.to_dict() for k, v in masks.items()}},
        "heldout_records": len(data.trees),
        "prompts": prompts,
        "rarest": min(1.0, 3 / prompts) if prompts else None,
    }


def from_margins(objective: Objective, heldout: Heldout) -> MarginsFile:
    """What of the certificate follows from the held-out margins alone."""
    edges, dimensions = heldout.edges, heldout.dimensions
    constraints = build_constraints(objective.constraint, dimensions)
    by_mask = certify_masks(edges, constraints, objective, state=heldout)
    wins = win_rates(edges, dimensions, objective.certificate.confidence)
    return {
        "confidence": objective.certificate.confidence,
        "bound": certified_bound(constraints, objective),
        "constraints": [v.to_dict() for v in certify(edges, constraints, objective, state=heldout)],
        "dimensions": heldout_means(edges, objective, dimensions),
        "wins": {d: w.to_dict() for d, w in wins.items()},
        "masks": {mask: [v.to_dict() for v in by_mask[mask]] for mask in sorted(by_mask)},
    }
