"""The page of all keys is what the config classes say, and no key of them is missing or without a meaning."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from docs.configuration import PAGE, Tree, keys, trees
from dpeer.config_io import resolved
from dpeer.launcher.commands.evaluation import evaluation_config
from dpeer.launcher.recipe import training_config
from tests.docs.pages import ROOT

ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| (.+) \| (.*) \|$", re.M)


def test_the_page_is_as_the_classes_are() -> None:
    """In a process of its own: other tests may have registered names, which join the page's."""
    code = "from docs.configuration import page; print(page(), end='')"
    now = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert PAGE.read_text(encoding="utf-8") == now, "python docs/configuration.py writes it anew"


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: tree.name)
def test_every_key_has_a_type_a_default_and_a_meaning(tree: Tree) -> None:
    text = PAGE.read_text(encoding="utf-8").partition(f'<a id="{tree.name}"></a>')[2]
    rows = {m[1]: m.groups()[1:] for m in ROW.finditer(re.split(r"^## ", text, flags=re.M)[1])}
    assert list(rows) == keys(tree) and all(all(cells) for cells in rows.values())


def test_every_key_of_a_resolved_recipe_is_on_the_page() -> None:
    def leaves(tree: dict, prefix: str = "") -> set[str]:
        inner = {k: v for k, v in tree.items() if isinstance(v, dict) and f"{prefix}{k}.".count(".") < 9}
        return {prefix + k for k in tree} | {x for k, v in inner.items() for x in leaves(v, f"{prefix}{k}.")}

    training, evaluation = (next(tree for tree in trees() if tree.name == name) for name in ("training", "evaluation"))
    given = leaves(resolved(training_config("qwen3_8b_lora", ())))
    free = re.compile(r"(template_kwargs|options|tolerance|primary)\.")
    assert len(given) > 80 and {key for key in given if not free.search(key)} - set(keys(training)) == set()
    assert set(resolved(evaluation_config("personaknob", []))) <= set(keys(evaluation))
