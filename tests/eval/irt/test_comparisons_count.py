"""What is counted, centred and checked counts comparisons too, and only those who rate where ratings are meant."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeer.eval.irt.design import check
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.stan_terms import item_shares
from dpeer.eval.irt.types import Options

TWICE = Spec(models=3, items=8, dimensions=1, judges=2, samples=2, compared=1)


def test_responses_that_were_compared_count_as_answers() -> None:
    table, _ = simulate(TWICE, 1)
    pairs = table[table["other_model"].notna()].assign(dimension="compared")
    mixed = pd.concat([table[table["other_model"].isna()], pairs])
    for rows, dimensions in ((pairs, 1), (mixed, 2)):
        ratings = encode(rows)
        assert build(ratings, Options(), guessed(ratings)).data["V"] == 3 * 8 * dimensions
        assert "few_repeats" not in {w.kind for w in check(ratings, Options(model_item=True)).warnings}


def test_items_that_were_compared_count_in_the_mix_of_groups() -> None:
    table, _ = simulate(TWICE, 1)
    hard = table["item"].isin(sorted(table["item"].unique())[:2])
    table["item_group"] = np.where(hard, "hard", "easy")
    pairs = table["other_model"].notna()
    for rows in (table[pairs], table[pairs | ~hard]):  # nothing rated; hard items compared only
        share, answered = item_shares(encode(rows))
        assert np.allclose(share[:, 0], [0.75, 0.25]) and np.allclose(answered[..., 0], [0.75, 0.25])
