"""The directions on which ratings are silent, found along a spanning forest: near-linear in ratings and elements.

Every rating says something of the sum of one element of each facet. The two facets with the most elements are the
sides of a bipartite graph, in which a rating is an edge; along a spanning forest of it every element is known from the
others and one free constant per tree. What a rating off the forest adds is a condition on the elements of the other
facets, few as a rule; conditions that two of them are equal are used up first, and what is left is small enough for
dense algebra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from dpeer.eval.irt.types import Bools, Floats, Ints

NULL = 1e-10
"""Eigenvalue of the scaled conditions that counts as zero; they are whole numbers, so that others are far above it."""
SAME = 1e-7
"""Distance of two elements in a random silent direction that counts as none."""


@dataclass(frozen=True, slots=True, eq=False)
class Silence:
    """Silent directions over all elements of all facets, facet after facet: n of them."""

    nullity: int
    tree: Ints  # [n] tree of the forest, -1 for elements of the other facets
    free: Bools  # [trees] whether the constant of a tree is free: none of its elements is anchored
    sign: Floats  # [n] of the constant: 1 and -1 on the two sides
    basis: sparse.csr_array  # [n, directions within trees]

    def sample(self, count: int, seed: int = 0) -> Floats:
        """[n, count] random silent directions."""
        rng = np.random.default_rng(seed)
        within = self.basis @ rng.standard_normal((self.basis.shape[1], count))
        constants = rng.standard_normal((len(self.free) + 1, count)) * np.append(self.free, False)[:, None]
        return np.asarray(within + self.sign[:, None] * constants[self.tree])

    def labels(self, elements: slice) -> Ints:
        """[elements] those that no silent direction moves apart have the same label, from 0 up."""
        tree, value = self.tree[elements], self.basis @ np.random.default_rng(1).standard_normal(self.basis.shape[1])
        value = value[elements]
        order = np.lexsort((value, tree))
        new = (np.diff(tree[order]) != 0) | (np.diff(value[order]) > SAME)
        group = np.empty(len(order), dtype=np.int64)
        group[order] = np.append(0, np.cumsum(new))[: len(order)]
        _, first, label = np.unique(group, return_index=True, return_inverse=True)
        return np.asarray(np.argsort(np.argsort(first))[label], dtype=np.int64)  # in the order of their first element


def silence(facets: Sequence[Ints], sizes: Sequence[int], anchored: Sequence[Bools]) -> Silence:
    """Directions over elements that leave every rating's sum, and every anchored element, as it is.

    facets: [N] element of each rating, per facet. sizes: elements per facet, rated or not (an element without ratings
    is no direction). anchored: [size] per facet.
    """
    start = np.concatenate([[0], np.cumsum(sizes)])
    if not len(facets[0]):
        n = int(start[-1])
        return Silence(0, np.full(n, -1), np.zeros(0, bool), np.zeros(n), sparse.csr_array((n, 0)))
    nodes = _distinct(facets, sizes) + start[:-1]  # [E, facets]
    fixed = np.flatnonzero(np.concatenate(anchored))
    present = np.zeros(start[-1], dtype=bool)
    present[nodes.ravel()] = True
    rated = [int(present[a:b].sum()) for a, b in pairwise(start)]
    first, second, *others = np.argsort(rated, kind="stable")[::-1]
    n, rest = int(start[-1]), nodes[:, others]
    in_graph = np.zeros(n, dtype=bool)
    for facet in (first, second):
        in_graph[start[facet] : start[facet + 1]] = True
    sign = np.where(in_graph, 1.0, 0.0)
    sign[start[second] : start[second + 1]] = -1.0
    fixed = fixed[present[fixed]]

    f, g = nodes[:, first], nodes[:, second]
    tree, reaches = _potentials(n, f, g, rest, fixed[in_graph[fixed]])
    free = np.bincount(tree[tree >= 0]) > 0
    free[tree[fixed[in_graph[fixed]]]] = False
    rows = np.repeat(np.arange(len(nodes)), rest.shape[1])
    seen = sparse.csr_array((np.ones(rest.size), (rows, rest.ravel())), shape=(len(nodes), n))
    held = fixed[~in_graph[fixed]]
    picked = sparse.csr_array((np.ones(len(held)), (np.arange(len(held)), held)), shape=(len(held), n))
    conditions = sparse.csr_array(
        sparse.vstack([reaches[f] - reaches[g] + seen, reaches[fixed[in_graph[fixed]]], picked])
    )
    solutions = _solutions(conditions, np.flatnonzero(present & ~in_graph), n)
    signed = sparse.csr_array(sparse.diags_array(sign) @ reaches @ solutions)
    basis = sparse.csr_array(signed + solutions)
    return Silence(int(free.sum()) + solutions.shape[1], np.where(in_graph, tree, -1), free, sign, basis)


def _distinct(facets: Sequence[Ints], sizes: Sequence[int]) -> Ints:
    """[E, facets] the combinations of elements that were rated."""
    if np.prod([float(size) for size in sizes]) < 2**62:
        code = np.zeros(len(facets[0]), dtype=np.int64)
        for index, size in zip(facets, sizes, strict=True):
            code = code * size + index
        _, at = np.unique(code, return_index=True)
        return np.column_stack([index[at] for index in facets])
    return np.unique(np.column_stack(facets), axis=0)


def _potentials(n: int, f: Ints, g: Ints, rest: Ints, fixed: Ints) -> tuple[Ints, sparse.csr_array]:
    """[n] tree of each element (-1: none), and [n, n] how its value follows from elements of the other facets.

    A rating says x_f + x_g + x_rest = 0. With y = x on one side and -x on the other, y_g = y_f + x_rest along an edge.
    A further node stands for the anchored elements, at zero; the root of all trees for their constants.
    """
    ground, root = n, n + 1
    ends = np.concatenate([f, fixed]), np.concatenate([g, np.full(len(fixed), ground)])
    graph = sparse.csr_array((np.ones(len(ends[0])), ends), shape=(n + 2, n + 2))
    count, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    first[label[ground]] = ground
    graph = sparse.csr_array(graph + sparse.csr_array((np.ones(count), (np.full(count, root), first)), graph.shape))
    order, above = breadth_first_order(graph, root, directed=False)
    below = order[1:]
    below = below[(above[below] != root) & (above[below] != ground) & (below != ground)]
    up = above[below]
    left, right = np.minimum(below, up), np.maximum(below, up)
    key = np.minimum(f, g) * (n + 2) + np.maximum(f, g)
    keys, at = np.unique(key, return_index=True)
    edge = at[np.searchsorted(keys, left * (n + 2) + right)]
    down = np.where(below == g[edge], 1.0, -1.0)
    width = rest.shape[1]
    steps = sparse.csr_array((np.repeat(down, width), (np.repeat(below, width), rest[edge].ravel())), shape=(n, n))
    inside = below[(up != ground) & (up != root)]
    jump = sparse.csr_array((np.ones(len(inside)), (inside, above[inside])), shape=(n, n))
    while jump.nnz:  # doubles the length of the paths
        steps = sparse.csr_array(steps + jump @ steps)
        jump = sparse.csr_array(jump @ jump)
    tree = np.full(n, -1, dtype=np.int64)
    used = np.unique(np.concatenate([f, g]))
    tree[used] = np.unique(label[used], return_inverse=True)[1]
    return tree, steps


def _solutions(conditions: sparse.csr_array, elements: Ints, n: int) -> sparse.csr_array:
    """[n, k] independent solutions of conditions [rows, n] on these elements of the smaller facets."""
    one = np.arange(len(elements))
    merged = sparse.csr_array((np.ones(len(elements)), (elements, one)), shape=(n, len(elements)))
    while True:
        left = sparse.csr_array(conditions @ merged)
        left.eliminate_zeros()
        size = np.diff(left.indptr)
        left = sparse.csr_array(left[size > 0])
        pairs = np.flatnonzero((np.diff(left.indptr) == 2) & (np.abs(left.sum(axis=1)) < 0.5))
        if not len(pairs):
            break
        ends = left.indices[left.indptr[pairs, None] + np.arange(2)]
        width = merged.shape[1]
        same = sparse.csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(width, width))
        count, label = connected_components(same, directed=False)
        merged = sparse.csr_array(
            merged @ sparse.csr_array((np.ones(width), (np.arange(width), label)), shape=(width, count))
        )
        conditions = sparse.csr_array(conditions[size > 0])
    gram = (left.T @ left).toarray()
    scale = 1 / np.sqrt(np.maximum(gram.diagonal(), 1.0))
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    null = np.linalg.qr(vectors[:, values < NULL] * scale[:, None])[0]
    null[np.abs(null) < 1e-13] = 0.0
    return sparse.csr_array(merged @ sparse.csr_array(null))
