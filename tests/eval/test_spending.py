"""The books of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dpeer.eval.backends.config import Served
from dpeer.eval.irt.agreement import agreement
from dpeer.eval.irt.cards import judge_cards
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.types import Ratings
from dpeer.eval.judge import judge
from dpeer.eval.report import tables
from dpeer.eval.report.frames import frames
from dpeer.eval.spending import Books, spent_in
from tests.eval.evaluations import evaluation, no_ray

QUIET = Console(file=StringIO())


def test_what_was_spent_stays_when_a_price_is_no_longer_known(tmp_path: Path) -> None:
    config: Any = SimpleNamespace(prices=None, budget=None, folder=tmp_path)
    served = Served(name="m", path="some/model", backend="openai", base_url="http://127.0.0.1:1/v1")
    for cost, left in ((None, 0.0), (1.5, 1.5), (None, 1.5), (0.5, 2.0)):
        Books(config, tmp_path / "ratings").add(served, [], cost)
        assert spent_in(tmp_path / "ratings") == left


def test_a_card_says_what_a_thousand_usable_ratings_cost(tmp_path: Path, endpoint: tuple[Any, str]) -> None:
    """One in four answers of `a` is of no use, and was paid for; `b` runs on this machine."""
    state, url = endpoint
    answered, scores = iter(range(1000)), cycle((3, 4))

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        spoilt = request["model"] == "priced" and next(answered) % 4 == 3
        return (
            state.reply("I cannot say") if spoilt else state.reply(f'{{"rationale": "So.", "score": {next(scores)}}}')
        )

    state.decide = decide
    (tmp_path / "prices.yaml").write_text("currency: EUR\nmodels:\n  priced: {input: 2.0, output: 8.0}\n")
    common = {"backend": "openai", "base_url": url, "api_key_env": "ABSENT"}
    cfg = evaluation(
        tmp_path,
        tmp_path,
        judges=[
            {"name": "a", "path": "priced", "family": "p", **common},
            {"name": "b", "path": "other", "family": "q", **common},
        ],
        judging={"rubric": "persona", "mode": "structured"},
        prices=str(tmp_path / "prices.yaml"),
    )
    table = judge(cfg, no_ray, console=QUIET)
    ratings = encode(table)
    usable = ratings.status_by_judge["a"]["ok"]
    paid = (50 * 2.0 + 1 * 8.0) / 1e6  # of an answer, by the tokens that the endpoint reports
    asked = sum(ratings.status_by_judge["a"].values())
    assert usable < asked and ratings.price == {"a": pytest.approx(1000 * paid * asked / usable), "b": 0}
    assert encode(table.parent / "ratings").price == ratings.price and ratings.currency == "EUR"
    assert shown(ratings) == [f"{ratings.price['a']:.2g} EUR", "0 EUR"]
    assert shown(replace(ratings, price={"b": 1234.5}, people=("b",))) == ["unknown", ""], "people are paid elsewhere"
    assert encode(pd.read_parquet(table)).price == {}, "a table by itself knows no prices"


def shown(ratings: Ratings) -> list[str]:
    """The column on the page."""
    cards = judge_cards(ratings, pd.DataFrame({"judge": ratings.judges}), agreement(ratings)["kappa"], None)
    page = tables.cards(frames({"cards": cards}))
    column = [name for name, _ in page.head].index("Price of 1,000 ratings")
    return [row[column] for row in page.rows]
