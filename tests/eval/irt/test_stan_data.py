"""What the Stan program is given: terms that are off, terms that ratings cannot hold, tables with gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.types import Options
from tests.eval.irt.test_stan_model import CASES


def test_terms_that_are_off_leave_no_trace() -> None:
    ratings = encode(simulate(CASES["gmfrm, 5 categories"][0], 11)[0])
    data = build(ratings, Options(), guessed(ratings)).data
    assert [data[name] for name in ("P", "V", "X", "Z", "H", "use_item_steps")] == [0] * 6


@pytest.mark.parametrize(
    ("spec", "switches", "said"),
    [
        (Spec(models=3, items=4), {"model_item": True}, "several samples"),
        (Spec(models=3, items=4, judges=1, samples=2), {"judge_model": True}, "two judges"),
        (Spec(models=3, items=4), {"groups": True}, "no column item_group"),
        (Spec(models=3, items=4), {"thresholds": "judges"}, "common, judge or item"),
        (Spec(models=3, items=4), {"severity_prior": "flat"}, "shrunken or wide"),
    ],
)
def test_terms_that_the_ratings_cannot_hold_are_refused(spec: Spec, switches: dict[str, Any], said: str) -> None:
    ratings = encode(simulate(spec, 1)[0])
    with pytest.raises(IrtError, match=said):
        build(ratings, Options(**switches), guessed(ratings))


def test_tables_with_gaps_are_read_as_they_are() -> None:
    table, _ = simulate(CASES["gmfrm, 5 categories"][0], 11)
    thinned = pd.concat([table.iloc[::3], table.iloc[1::7]]).drop_duplicates()
    ratings = encode(thinned)
    problem = build(ratings, Options(response_effect=False), guessed(ratings))
    assert problem.data["N"] == len(thinned) and sum(
        np.subtract(problem.data["last"], problem.data["first"]) + 1
    ) == len(thinned)
