"""The linear algebra of a rating design: which contrasts of models and judges one dimension's ratings can see.

The linear predictor is ability[model] - difficulty[item] - severity[judge] - difficulty[criterion] + covariates. Items,
the many ones, are eliminated by a Schur complement; the eigenvectors with eigenvalue zero of what is left, one row and
column per model, judge and criterion, are the directions on which the ratings are silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from dpeer.eval.irt.types import Bools, Floats, Ints, Ratings

NULL = 1e-10
"""Eigenvalue of the degree-scaled matrix (its values lie in 0..3) that counts as zero; a single rating that links two
halves of a million gives about 1e-6."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One dimension after its items are eliminated. P = models + judges + criteria, present or not."""

    rows: Ints
    item: Ints  # [rows]
    elements: tuple[Ints, Ints, Ints]  # [rows] index into P of the model, the judge and the criterion
    by_item: sparse.csr_array  # [Q, P] ratings of each item and element
    item_weight: Floats  # [Q] 1 / (ratings, and one more for an anchored item); 0 where the item was not rated
    gram: Floats  # [P, P] ratings of each pair of elements; the diagonal counts ratings per element
    inverse: Floats  # [P, P] pseudo-inverse of the Schur complement
    null: Floats  # [P, n] orthonormal directions on which the ratings are silent
    rank: int
    items_met: sparse.csr_array  # [Q, M] 1 where the model was rated on the item
    judges_met: sparse.csr_array  # [J, M]
    criteria_met: sparse.csr_array  # [C, M]

    @property
    def columns(self) -> int:
        """Models, judges and criteria that were rated."""
        return int((self.gram.diagonal() > 0).sum())


def eliminate(ratings: Ratings, dimension: int, anchored_items: Bools, anchored_judges: Bools) -> Part:
    """Near-linear in the number of ratings, cubic in models + judges + criteria."""
    models, judges, items = len(ratings.models), len(ratings.judges), len(ratings.items)
    size = models + judges + len(ratings.criteria)
    rows = np.flatnonzero(ratings.dimension == dimension)
    response = ratings.response[rows]
    item, model = ratings.response_item[response], ratings.response_model[response]
    elements = (model, models + ratings.judge[rows], models + judges + ratings.criterion[rows])

    gram = np.zeros((size, size))
    for a in elements:
        for b in elements:
            gram += np.bincount(a * size + b, minlength=size * size).reshape(size, size)
    ones = np.ones(len(rows))
    by_item = sum(
        (sparse.coo_array((ones, (item, element)), shape=(items, size)).tocsr() for element in elements),
        start=sparse.csr_array((items, size)),
    )
    count = np.bincount(item, minlength=items) + anchored_items
    item_weight = np.divide(1.0, count, out=np.zeros(items), where=count > 0)
    known = np.zeros(size)
    known[models : models + judges] = anchored_judges
    weighted = sparse.csr_array(by_item * np.sqrt(item_weight)[:, None])
    inverse, null, rank = _pseudo_inverse(gram + np.diag(known) - (weighted.T @ weighted).toarray(), gram.diagonal())
    return Part(
        rows=rows,
        item=item,
        elements=elements,
        by_item=by_item,
        item_weight=item_weight,
        gram=gram,
        inverse=inverse,
        null=null,
        rank=rank,
        items_met=_met(by_item[:, :models]),
        judges_met=_met(sparse.csr_array(gram[models : models + judges, :models])),
        criteria_met=_met(sparse.csr_array(gram[models + judges :, :models])),
    )


def unexplained(part: Part, columns: Floats) -> Floats:
    """[p, p] cross-products of covariates [rows, p] that items, models, judges and criteria leave unexplained."""

    def totals(index: Ints, size: int) -> Floats:
        return np.column_stack([np.bincount(index, weights=x, minlength=size) for x in columns.T])

    per_item = totals(part.item, len(part.item_weight))
    means = per_item * part.item_weight[:, None]
    moments = sum((totals(element, len(part.gram)) for element in part.elements), start=-(part.by_item.T @ means))
    rest: Floats = columns.T @ columns - per_item.T @ means - moments.T @ part.inverse @ moments
    return rest


def shares(met: sparse.csr_array, anchored: Bools | None = None) -> Bools:
    """[M, M] models that meet in an element of a facet [facet, M]; anchored elements count as one."""
    together: Bools = (met.T @ met).toarray() > 0
    if anchored is not None:
        touched = np.asarray(met[anchored].sum(axis=0)).ravel() > 0
        together |= np.outer(touched, touched)
    return together


def connected(linked: Bools) -> Ints:
    """[n] label of the connected part of each node of a graph [n, n]."""
    return np.asarray(connected_components(sparse.csr_array(linked), directed=False)[1], dtype=np.int64)


def clusters(null: Floats) -> Ints:
    """[n] label of each element [n, directions]: those that no silent direction moves apart have the same."""
    apart = np.zeros((len(null), len(null)))
    for direction in null.T:
        apart = np.maximum(apart, np.abs(direction[:, None] - direction))
    return connected(apart < 1e-6)


def bridges(met: sparse.csr_array) -> list[tuple[int, Ints]]:
    """Elements of a facet [facet, M] without which the models fall apart, and the parts [M] into which they fall."""
    together = (met.T @ met).toarray()
    rare = sparse.csr_array(np.triu(together == 1, 1).astype(np.float64))
    alone = (met @ rare).multiply(met).sum(axis=1)  # pairs of models that meet in this element only
    bridging = []
    for element in np.flatnonzero(np.asarray(alone).ravel() > 0):
        models = met[[element]].toarray().ravel()
        labels = connected((together - np.outer(models, models)) > 0)
        if labels.max() > 0:
            bridging.append((int(element), labels))
    return bridging


def _pseudo_inverse(schur: Floats, degree: Floats) -> tuple[Floats, Floats, int]:
    present = np.flatnonzero(degree)
    scale = 1 / np.sqrt(degree[present])
    values, vectors = np.linalg.eigh(schur[np.ix_(present, present)] * scale[:, None] * scale)
    zero = values < NULL
    vectors *= scale[:, None]
    inverse, null = np.zeros(schur.shape), np.zeros((len(degree), int(zero.sum())))
    inverse[np.ix_(present, present)] = (vectors[:, ~zero] / values[~zero]) @ vectors[:, ~zero].T
    null[present] = np.linalg.qr(vectors[:, zero])[0]
    return inverse, null, int((~zero).sum())


def _met(counts: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array((counts > 0).astype(np.float64))
