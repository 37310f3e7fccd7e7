"""The builder on a toy endpoint: what is right gets into the files, what is planted wrong is left out for that reason."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpeer.eval.build.build import Built, build
from dpeer.eval.build.spec import BuildSpec
from tests.eval.evaluations import no_ray
from tests.eval.toy_writers import Toy, spec


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def built(made: BuildSpec, **options: Any) -> Built:
    return build(made, no_ray, console=quiet(), **options)


@pytest.fixture
def toy(endpoint: tuple[Any, str]) -> tuple[Toy, str, Any]:
    state, url = endpoint
    world = Toy(state.reply)
    state.decide = world
    return world, url, state


def test_all_masks_are_filled(toy: tuple[Toy, str, Any], tmp_path: Path) -> None:
    from dpeer.data.check import check
    from dpeer.eval.build.files import write

    _, url, _ = toy
    found = built(spec(tmp_path, url))
    files = write(found)
    print(files, (found.spec.folder / "README.md").read_text(), (found.spec.folder / "build.json").read_text())
    report = check(str(found.spec.folder / "parquet"))
    assert not report.errors and not report.warnings
    assert set(report.splits[0].masks.values()) == {3} and len(report.splits[0].masks) == 11
