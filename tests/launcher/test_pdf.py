"""Pages as PDF, by a real browser: numbered, and with everything that the page says."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dpeer.launcher.pdf import BROWSERS, PdfError, browser, page_in, print_page
from dpeer.report.page import templates

WIDE = 14
CHILD = """{% extends "base.html.j2" %}{% block title %}made up{% endblock %}{% block body %}<main><h1>A page</h1>
<details><summary>Folded</summary><p>within-the-fold</p></details>
<div class="scroll"><table><thead><tr>
{% for c in columns %}<th class="n">Column number {{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for r in rows %}<tr>{% for c in columns %}<td class="n">{{ r }}.{{ c }}e-05</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div></main>{% endblock %}"""


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium here to print with")
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler-utils, which read PDFs, are not installed")
def test_nothing_is_cut_off(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    html = templates().from_string(CHILD).render(rows=range(90), columns=range(100, 100 + WIDE))
    page.write_text(html)
    pdf = print_page(page_in(tmp_path))
    assert pdf == tmp_path / "report.pdf" and {p.name for p in tmp_path.iterdir()} == {"report.html", "report.pdf"}
    assert stat.S_IMODE(pdf.stat().st_mode) & 0o400
    # What lies beyond the paper's edge is in the file and not seen: only what is within the page is read.
    size = subprocess.run(["pdfinfo", pdf], capture_output=True, text=True, check=True).stdout
    width, height = map(float, re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", size).groups())  # type: ignore[union-attr]
    assert (round(width), round(height)) == (595, 842)
    crop = ["-x", "0", "-y", "0", "-W", str(int(width) - 10), "-H", str(int(height)), "-layout"]
    text = subprocess.run(["pdftotext", *crop, pdf, "-"], capture_output=True, text=True, check=True).stdout
    assert "within-the-fold" in text
    assert {(r, c) for r, c in re.findall(r"\b(\d+)\.(1\d\d)e-05", text)} == {
        (str(r), str(c)) for r in range(90) for c in range(100, 100 + WIDE)
    }
    pages = int(re.search(r"Pages:\s+(\d+)", size)[1])  # type: ignore[index]
    assert pages > 1 and re.findall(r"(\d+) ?/ ?(\d+)\n", text) == [(str(n + 1), str(pages)) for n in range(pages)]


SECTIONS = """{% extends "base.html.j2" %}{% block title %}made up{% endblock %}{% block body %}<main>
{% for k in range(12) %}<h2>heading-{{ k }}</h2>
<p>{{ "Some words that say what is seen below. " * (1 + k) }}</p><p class="hint">What colours mean.</p>
<div class="plots"><figure>
<figcaption><h3>figure-{{ k }}</h3></figcaption><img height="{{ 150 + 25 * k }}" src="data:,">
</figure></div>{% endfor %}
<details><summary>Files</summary><ul>{% for k in range(150) %}<li>file-{{ k }}</li>{% endfor %}</ul></details>
</main>{% endblock %}"""


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium here to print with")
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler-utils, which read PDFs, are not installed")
def test_a_heading_is_on_the_page_of_its_figure_and_a_list_of_files_takes_little(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(templates().from_string(SECTIONS).render())
    text = subprocess.run(["pdftotext", print_page(page), "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")
    where = {word: k for k, found in enumerate(pages) for word in re.findall(r"\b(?:heading|figure|file)-\d+", found)}
    assert len(where) == 12 + 12 + 150
    assert [where[f"heading-{k}"] for k in range(12)] == [where[f"figure-{k}"] for k in range(12)]
    assert len({where[f"file-{k}"] for k in range(150)}) <= 2


def test_no_browser_and_one_that_fails_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PdfError, match="apt install chromium"):
        browser()
    monkeypatch.setenv("CHROME", str(tmp_path / "absent"))
    with pytest.raises(PdfError, match="no such program"):
        browser()
    (tmp_path / "report.html").write_text("<p>")
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    false.chmod(0o755)
    monkeypatch.setenv("CHROME", str(false))
    with pytest.raises(PdfError, match="out of order"):
        print_page(tmp_path / "report.html")
    assert not (tmp_path / "report.pdf").exists()
    with pytest.raises(PdfError, match="no page here"):
        page_in(tmp_path / "nothing")
