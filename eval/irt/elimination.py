"""A rating design in one dimension: which contrasts of models and judges its ratings can see, and who links whom.

The linear predictor is ability[model] - difficulty[item] - severity[judge] - difficulty[criterion] + covariates. See
`irt.silence` for the directions on which the ratings are silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsmr

from dpeer.eval.irt import comparisons
from dpeer.eval.irt.silence import Silence, silence
from dpeer.eval.irt.types import Bools, Floats, Ints, Ratings

NULL = 1e-10
"""Eigenvalue of the degree-scaled matrix (its values lie in 0..3) that counts as zero; a single rating that links two
halves of a million gives about 1e-6."""
DENSE = 1500
"""Models, judges and criteria from which on covariates are explained by iteration, not by dense algebra."""
ITERATIONS = 10_000
_CUT, _IMPRECISE = 7, 6
"""LSMR's reasons to stop that leave the residual unknown: too many iterations, too ill-conditioned."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One dimension. P = models + judges + criteria, rated or not."""

    dimension: int
    rows: Ints
    item: Ints  # [rows]
    elements: tuple[Ints, Ints, Ints]  # [rows] index into P of the model, the judge and the criterion
    counts: Ints  # [P] ratings of each element
    anchored: Floats  # [Q + P] 1 where an item or a judge is known
    silent: Silence  # over items and P
    models: slice  # among items and P
    judges: slice
    items_met: sparse.csr_array  # [Q, M] 1 where the model was rated on the item
    judges_met: sparse.csr_array  # [J, M]
    criteria_met: sparse.csr_array  # [C, M]
    compared: Ints  # [M] label of the group of models that comparisons link

    def groups(self) -> Ints:
        """[M] models that no silent direction moves apart have the same label, from 0 up."""
        labels = self.silent.labels(self.models)[self.compared]
        return joined(np.where(self.linked_to_ratings, labels, labels.max() + 1 + self.compared))

    @property
    def linked_to_ratings(self) -> Bools:
        """[M] models that were rated, or compared with one that was, or so on."""
        rated = self.counts[: len(self.compared)] > 0
        return np.asarray(np.isin(self.compared, self.compared[rated]))

    @property
    def columns(self) -> int:
        """Models, judges and criteria that were rated; models that comparisons link are one."""
        models = len(self.compared)
        return len(np.unique(self.compared[self.counts[:models] > 0])) + int((self.counts[models:] > 0).sum())

    @property
    def rank(self) -> int:
        """Of what is left of the design when the items are eliminated: each of them has a rating, and is determined."""
        return self.columns - self.silent.nullity


def eliminate(ratings: Ratings, dimension: int, anchored_items: Bools, anchored_judges: Bools) -> Part:
    """Near-linear in ratings and elements."""
    models, judges, items = len(ratings.models), len(ratings.judges), len(ratings.items)
    criteria = len(ratings.criteria)
    rows = np.flatnonzero(ratings.dimension == dimension)
    response = ratings.response[rows]
    item, model = ratings.response_item[response], ratings.response_model[response]
    judge, criterion = ratings.judge[rows], ratings.criterion[rows]
    elements = (model, models + judge, models + judges + criterion)
    compared = comparisons.linked(ratings, dimension)  # in a silent direction these do not move apart: one element
    nobody = (np.zeros(models, bool), np.zeros(criteria, bool))
    known = (anchored_items, nobody[0], anchored_judges, nobody[1])
    return Part(
        dimension=dimension,
        rows=rows,
        item=item,
        elements=elements,
        counts=sum(
            (np.bincount(element, minlength=models + judges + criteria) for element in elements),
            start=np.zeros(models + judges + criteria, dtype=np.int64),
        ),
        anchored=np.concatenate(known).astype(np.float64),
        silent=silence((item, compared[model], judge, criterion), (items, models, judges, criteria), known),
        models=slice(items, items + models),
        judges=slice(items + models, items + models + judges),
        items_met=_met(item, model, (items, models)),
        judges_met=_met(judge, model, (judges, models)),
        criteria_met=_met(criterion, model, (criteria, models)),
        compared=compared,
    )


def unexplained(part: Part, columns: Floats) -> Floats:
    """[p, p] cross-products of covariates [rows, p] that items, models, judges and criteria leave unexplained; NaN
    where iteration did not find out for a covariate."""
    items = len(part.items_met.indptr) - 1
    at = np.column_stack([part.item, *(items + element for element in part.elements)])
    size = items + len(part.counts)
    rows = np.repeat(np.arange(len(at)), at.shape[1])
    design = sparse.csr_array((np.ones(at.size), (rows, at.ravel())), shape=(len(at), size))
    if len(part.counts) <= DENSE:
        return _schur(design, part.anchored, columns, items)
    known = np.flatnonzero(part.anchored)
    ones = sparse.csr_array((np.ones(len(known)), (np.arange(len(known)), known)), shape=(len(known), size))
    design = sparse.csr_array(sparse.vstack([design, ones]))
    rest = np.empty((len(at) + len(known), columns.shape[1]))
    for k, column in enumerate(columns.T):
        wanted = np.append(column, np.zeros(len(known)))
        solution, stop, *_ = lsmr(design, wanted, atol=1e-12, btol=1e-12, conlim=0, maxiter=ITERATIONS)
        rest[:, k] = np.nan if stop in (_CUT, _IMPRECISE) else wanted - design @ solution
    return np.asarray(rest.T @ rest)


def _schur(design: sparse.csr_array, anchored: Floats, columns: Floats, items: int) -> Floats:
    """The same by eliminating the items, the many ones, and a pseudo-inverse of what is left."""
    gram = sparse.csr_array(design.T @ design + sparse.diags_array(anchored))
    moments = design.T @ columns
    weight = gram.diagonal()[:items]
    weight = np.divide(1.0, weight, out=np.zeros(items), where=weight > 0)
    across, inner = gram[:items, items:], gram[items:, items:].toarray()
    weighted = sparse.csr_array(across * np.sqrt(weight)[:, None])
    schur = inner - (weighted.T @ weighted).toarray()
    means = moments[:items] * weight[:, None]
    left = moments[items:] - across.T @ means
    inverse = _pseudo_inverse(schur, inner.diagonal())
    return np.asarray(columns.T @ columns - moments[:items].T @ means - left.T @ inverse @ left)


def joined(*labels: Ints) -> Ints:
    """[M] label, from 0 up, of the groups that result when those with a label in common are put together."""
    models = len(labels[0])
    edges = [
        np.arange(models),
        *(models * (k + 1) + np.unique(label, return_inverse=True)[1] for k, label in enumerate(labels)),
    ]
    ends = np.tile(edges[0], len(labels)), np.concatenate(edges[1:])
    size = models * (len(labels) + 1)
    graph = sparse.csr_array((np.ones(len(ends[0])), ends), shape=(size, size))
    label = connected_components(graph, directed=False)[1][:models]
    return np.asarray(np.unique(label, return_inverse=True)[1], dtype=np.int64)


def linked(*facets: tuple[sparse.csr_array, Bools | None]) -> Ints:
    """[M] label of the group of models that are linked through elements of facets [facet, M]; the anchored elements of
    a facet count as one."""
    met = [facet for facet, _ in facets]
    for facet, anchored in facets:
        if anchored is not None and anchored.any():
            met.append(sparse.csr_array(facet[anchored].sum(axis=0)[None, :]))
    table = sparse.csr_array(sparse.vstack(met))
    graph = sparse.block_array([[None, table], [table.T, None]], format="csr")
    label = connected_components(graph, directed=False)[1][table.shape[0] :]
    return np.asarray(np.unique(label, return_inverse=True)[1], dtype=np.int64)


def bridges(met: sparse.csr_array) -> Iterator[tuple[int, Ints]]:
    """Elements of a facet [facet, M] without which the models fall apart, and the groups [M] into which they fall."""
    graph = sparse.block_array([[None, met], [met.T, None]], format="csr")
    for element in np.flatnonzero(cut_vertices(graph)[: met.shape[0]]):
        kept = np.arange(met.shape[0]) != element
        yield int(element), linked((sparse.csr_array(met[kept]), None))


def cut_vertices(graph: sparse.csr_array) -> Bools:
    """[n] nodes of an undirected graph without which more of it falls apart (Hopcroft & Tarjan, 1973), by a depth-first
    search without recursion."""
    n, start, ends = graph.shape[0], graph.indptr.tolist(), graph.indices.tolist()
    found, low, parent, cut = [0] * n, [0] * n, [-1] * n, [False] * n
    at, clock = list(start[:-1]), 0
    for root in range(n):
        if found[root]:
            continue
        clock += 1
        found[root] = low[root] = clock
        stack, branches = [root], 0
        while stack:
            node = stack[-1]
            if at[node] < start[node + 1]:
                other = ends[at[node]]
                at[node] += 1
                if not found[other]:
                    clock += 1
                    found[other] = low[other] = clock
                    parent[other] = node
                    branches += node == root
                    stack.append(other)
                elif other != parent[node] and found[other] < low[node]:
                    low[node] = found[other]
                continue
            stack.pop()
            above = parent[node]
            if above >= 0:
                low[above] = min(low[above], low[node])
                cut[above] |= above != root and low[node] >= found[above]
        cut[root] = branches > 1
    return np.array(cut)


def _pseudo_inverse(schur: Floats, degree: Floats) -> Floats:
    present = np.flatnonzero(degree)
    scale = 1 / np.sqrt(degree[present])
    values, vectors = np.linalg.eigh(schur[np.ix_(present, present)] * scale[:, None] * scale)
    zero = values < NULL
    vectors *= scale[:, None]
    inverse = np.zeros(schur.shape)
    inverse[np.ix_(present, present)] = (vectors[:, ~zero] / values[~zero]) @ vectors[:, ~zero].T
    return inverse


def _met(element: Ints, model: Ints, shape: tuple[int, int]) -> sparse.csr_array:
    code = np.unique(element * shape[1] + model)
    return sparse.csr_array((np.ones(len(code)), (code // shape[1], code % shape[1])), shape=shape)
