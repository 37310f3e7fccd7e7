"""Which file a recipe argument means, and what is said where there is none."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dpeer.errors import ConfigError
from dpeer.launcher.cli import app
from dpeer.launcher.recipe import recipe_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./mine.yaml", r"^\./mine\.yaml: no such file\. Shipped recipes: demo, "),
        ("mine.yml", r"^mine\.yml: no such file\."),
        (".", r"^\.: a folder, not a recipe's file\."),
        ("mine", r"^mine: no shipped recipe, and no file\."),
    ],
)
def test_a_recipe_that_is_not_there_is_named_as_it_was_given(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe_path(name)


def test_unknown_recipe_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["train", "dmeo", "--dry-run"])
    assert result.exit_code == 1
    assert "did you mean 'demo'?" in result.output
