"""The site builds under strict rules, from the names in mkdocs.yml, and calls no other host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

MISSING = [name for name in ("mkdocs", "material", "mkdocstrings_handlers") if not importlib.util.find_spec(name)]
LOADED = re.compile(r"""<(?:script|img|iframe|source|link)[^>]*\s(?:src|href)="(?:https?:)?//[^"]*"[^>]*>""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        pytest.skip(f"the extra `docs` is not installed: no module {', '.join(MISSING)}")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_every_page_is_built(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    expected = {str(path) for path in sources} | {"index.html", "contributing.html", "changelog.html"}
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert len(expected) > 10 and expected <= built
    assert (site / "img" / "reports" / "demo_arms.png").is_file() and not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_api_pages_show_signatures_and_fields(site: Path) -> None:
    python, options = ((site / "api" / name).read_text(encoding="utf-8") for name in ("index.html", "config.html"))
    assert 'id="dpeer.objective.preference.edge_loss"' in python and 'id="dpeer.eval.irt.fit.fit"' in python
    assert 'id="training-objective-constraint"' in options and "Folder of all runs" in options


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = [tag for tag in LOADED.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert loaded == [], page.name
    assert LOADED.search('<script src="https://unpkg.com/x.js">')
