"""Every Python example of README, CONTRIBUTING and docs runs as it stands on its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages, python_blocks, script

LIMIT_S = 240
PROGRAM = """
import sys
page = sys.argv.pop(1)
exec(compile(sys.stdin.read(), page, "exec"), {"__name__": "__main__"})
"""
WITH_EXAMPLES = [page for page in pages() if python_blocks(page.read_text(encoding="utf-8"))]


def run_page(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """All blocks of a page in order, in one namespace, in a process and an empty folder of their own."""
    kept = {k: v for k, v in os.environ.items() if k != "DPEER_CACHE" and not k.startswith("HF_")}
    cache = Path(os.environ.get("DPEER_CACHE", ROOT / ".cache")).resolve()
    own = {"HOME": str(folder), "DPEER_CACHE": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(page)],
        input=script(page.read_text(encoding="utf-8")),
        cwd=folder,
        env=kept | own | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def failure(page: Path, done: subprocess.CompletedProcess[str]) -> str:
    """Page and line of the statement that failed, and the error."""
    lines = re.findall(rf'File "{re.escape(str(page))}", line (\d+)', done.stderr)
    place = f"{page}:{lines[0]}" if lines else str(page)
    return f"{place} (exit code {done.returncode})\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path) -> None:
    done = run_page(page, tmp_path)
    assert done.returncode == 0, failure(page, done)


def test_a_failing_block_is_named_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\ny = x + 1\nassert x == y\n```\n")
    done = run_page(page, tmp_path)
    assert done.returncode == 1 and failure(page, done).startswith(f"{page}:11 ")


def test_blocks_share_a_namespace_and_an_empty_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "<!-- python\nhidden = 2\n-->\n```python\nopen('here', 'w').close()\n```\n```text\nnot python\n```\n"
    page.write_text(text + "1. item\n\n    ```python title='x'\n    assert hidden == 2\n    ```\n")
    (tmp_path / "cwd").mkdir()
    assert run_page(page, tmp_path / "cwd").returncode == 0
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["here"]
    assert len(python_blocks(page.read_text())) == 3
