"""The books of an evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dpeer.eval.backends.config import Served
from dpeer.eval.spending import Books, spent_in


def test_what_was_spent_stays_when_a_price_is_no_longer_known(tmp_path: Path) -> None:
    config: Any = SimpleNamespace(prices=None, budget=None, folder=tmp_path)
    served = Served(name="m", path="some/model", backend="openai", base_url="http://127.0.0.1:1/v1")
    for cost, left in ((None, 0.0), (1.5, 1.5), (None, 1.5), (0.5, 2.0)):
        Books(config, tmp_path / "ratings").add(served, [], cost)
        assert spent_in(tmp_path / "ratings") == left
