"""Pictures of a thousand rows are as high as those of sixty, and their alternative texts short."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.report import abilities
from dpeer.eval.report.frames import frames
from dpeer.eval.report.picture import MOST_ROWS, heat, heat_height, named, rows_height
from dpeer.report.plot import render


def ability(models: int) -> pd.DataFrame:
    value = np.linspace(2, -2, models)
    bounds = {f"{n}{end}": value + by for n in ("ability", "fair", "contrast")
              for end, by in (("", 0), ("_low", -0.3), ("_high", 0.3))}  # fmt: skip
    names = [f"model-{k:04d}" for k in range(models)]
    frame = pd.DataFrame({"model": names, "dimension": "d", **bounds, "p_better": 0.5, "raw_mean": 3.0, "n": 9})
    frame.loc[0, ["contrast", "contrast_low", "contrast_high"]] = np.nan
    return frame


@pytest.mark.parametrize("models", [200, 1000])
def test_pictures_of_many_models_do_not_grow(models: int) -> None:
    known = frames({"ability": ability(models)})
    for picture in (*abilities.ability(known), *abilities.fair(known)):
        assert picture.height_in == rows_height(MOST_ROWS) and len(picture.alt) < 3000
    (svg,) = render(next(abilities.fair(known)).paint, 4.0, "svg")
    assert svg.count(b">model-") == 30, "names are as far apart as they can be read"


def test_a_large_heat_map_is_one_image() -> None:
    names = [f"m{k}" for k in range(1000)]
    texts = [["9"] * 300 for _ in names]
    (svg,) = render(heat(np.zeros((1000, 300)), names, names[:300], texts, colours="Blues", limits=(0, 1)), 4.0, "svg")
    assert svg.count(b"<image") >= 1 and len(svg) < 200_000
    assert heat_height(1000, ["1"]) == heat_height(MOST_ROWS, ["1"])


@pytest.mark.parametrize("rows", [1, 60, 61, 5000])
def test_first_and_last_are_always_named(rows: int) -> None:
    at, names = named([f"r{k}" for k in range(rows)])
    assert at[0] == 0 and at[-1] == rows - 1 and len(names) == len(at) <= MOST_ROWS
