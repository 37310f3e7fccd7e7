"""The statistics table: additive under any split, and its errors equal a sandwich written from the definition."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeer.objective.statistics import DIM_FIELDS, edge_statistics, summarise

N_DIMS = 3
EDGE = st.tuples(
    st.floats(-8, 8).map(lambda x: round(x * 64) / 64),  # dyadic: sums are exact in any order
    st.integers(0, N_DIMS - 1),
    st.integers(0, 5),
)


def table_of(rows):
    margins = torch.tensor([r[0] for r in rows], dtype=torch.float32)
    dims = torch.tensor([r[1] for r in rows], dtype=torch.long)
    records = torch.tensor([r[2] for r in rows], dtype=torch.long)
    return edge_statistics(margins, (1 - margins) ** 2 / 4, (margins - 2).abs(), dims, records, N_DIMS)


@given(rows=st.lists(EDGE, max_size=30), cuts=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_additive_under_any_split_of_records(rows, cuts):
    parts = [[r for r in rows if cuts[r[2]] == part] for part in range(4)]
    assert torch.equal(sum(table_of(p) for p in parts), table_of(rows))


def test_plain_sums():
    table = dict(zip(DIM_FIELDS, table_of([(3.0, 0, 7), (-1.0, 0, 7), (0.0, 2, 9)]), strict=True))
    assert table["edges"].tolist() == [2, 0, 1]
    assert table["loss"].tolist() == [2.0, 0, 0.25]
    assert table["loss_sq"].tolist() == [2.0, 0, 0.0625]
    assert table["margin"].tolist() == [2.0, 0, 0]
    assert table["margin_sq"].tolist() == [10.0, 0, 0]
    assert table["wins"].tolist() == [1, 0, 0]
    assert table["hinge"].tolist() == [4.0, 0, 2.0]
    assert table["records"].tolist() == [1, 0, 1]


def sandwich(values, clusters):
    """Cluster-robust standard error of a mean, from its definition: regress on a constant, CR1 factor C / (C - 1)."""
    residual = values - values.mean()
    scores = [residual[clusters == c].sum() for c in np.unique(clusters)]
    c = len(scores)
    return math.sqrt(c / (c - 1) * sum(s**2 for s in scores)) / len(values)


def test_means_and_clustered_errors_match_numpy():
    rng = np.random.default_rng(0)
    records = rng.integers(0, 25, 200)
    dims = rng.integers(0, N_DIMS, 200)
    margins = rng.normal(size=200) + rng.normal(size=25)[records]
    losses, hinges = np.log1p(np.exp(-margins)), np.maximum(0.4 - margins, 0)
    summary = summarise(edge_statistics(*(torch.tensor(x) for x in (margins, losses, hinges, dims, records)), N_DIMS))
    for d in range(N_DIMS):
        here = dims == d
        assert summary.edges[d] == here.sum()
        for name, values in (("loss", losses), ("margin", margins), ("hinge", hinges)):
            np.testing.assert_allclose(getattr(summary, name)[d], values[here].mean(), rtol=1e-12)
            np.testing.assert_allclose(
                getattr(summary, f"{name}_se")[d], sandwich(values[here], records[here]), rtol=1e-9
            )
        np.testing.assert_allclose(summary.loss_sd[d], losses[here].std(), rtol=1e-9)
        np.testing.assert_allclose(summary.margin_sd[d], margins[here].std(), rtol=1e-9)
        np.testing.assert_allclose(summary.accuracy[d], (margins[here] > 0).mean())


def test_nothing_seen_is_nan_and_one_record_has_no_error():
    summary = summarise(table_of([(1.5, 0, 3), (0.5, 0, 3)]))
    assert summary.edges.tolist() == [2, 0, 0]
    assert summary.margin[0] == 1 and summary.accuracy[0] == 1
    assert summary.margin_se[0].isnan() and summary.loss_se[0].isnan()
    assert summary.loss[1:].isnan().all() and summary.accuracy[1:].isnan().all()


def test_a_nan_stays_in_its_dimension():
    summary = summarise(table_of([(math.nan, 0, 0), (1.0, 1, 0), (1.0, 1, 1)]))
    assert summary.loss[0].isnan() and summary.margin[1] == 1 and summary.margin_se[1] == 0


def test_no_gradient_and_fp64():
    margins = torch.randn(4, requires_grad=True)
    table = edge_statistics(margins, margins * 2, margins * 0, torch.zeros(4).long(), torch.arange(4), 1)
    assert table.dtype == torch.float64 and not table.requires_grad and table.shape == (len(DIM_FIELDS), 1)
