"""The comparison of arms: intervals against scipy, the finding, and the page."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from dpeer.report.comparison import ArmRow, comparison_finding, share_plot, wilson, write_comparison
from dpeer.report.run import Rate

BASE = ArmRow("base", {"E": 0.46, "T": 0.43}, 200, 0.90, None, None, None)
POOLED = ArmRow("pooled", {"E": 0.92, "T": 0.25}, 200, 0.71, None, None, None)
LAGRANGIAN = ArmRow("Lagrangian", {"E": 0.88, "T": 0.83}, 200, 0.80, 1, 2, None, "eps 0.25")


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(("good", "n"), [(0, 20), (1, 7), (83, 200), (200, 200), (1, 1)])
def test_wilson_agrees_with_scipy(good, n):
    expected = binomtest(good, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = wilson(good / n, n)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_wilson_of_nothing_is_unknown():
    assert math.isnan(wilson(0.5, 0).lower) and math.isnan(wilson(math.nan, 10).upper)


def test_finding_names_the_best_worst_dimension_and_the_next():
    found = plain(comparison_finding([BASE, POOLED, LAGRANGIAN]))
    assert found == "Lagrangian has the best worst dimension: T, good in 83 % of responses (next: base, T, 43 %)"


def test_finding_admits_overlap():
    rival = replace(LAGRANGIAN, name="uniform", shares={"E": 0.80, "T": 0.9})
    assert plain(comparison_finding([rival, LAGRANGIAN])).endswith("(next: uniform, E, 80 %; intervals overlap)")
    assert plain(comparison_finding([LAGRANGIAN])).endswith("T, good in 83 % of responses")


def test_plot_title_says_who_leads_where():
    plot = share_plot([BASE, POOLED, LAGRANGIAN], ["E", "T"])
    assert plot.title == "Pooled leads on E; Lagrangian on T"
    assert "Lagrangian: E 88 % [83, 92], T 83 % [77, 88]" in plain(plot.alt)


def test_page_links_reports_relative_to_itself(tmp_path):
    report = tmp_path / "my runs" / "lagrangian" / "report.html"
    rows = [BASE, POOLED, replace(LAGRANGIAN, report=report)]
    path = write_comparison(rows, tmp_path / "demo.html")
    html = plain(path.read_text(encoding="utf-8"))
    assert html.count("<a ") == 1 and 'href="my%20runs/lagrangian/report.html"' in html
    assert "<strong>83 %</strong><br><small>77, 88</small>" in html
    assert html.count("no tolerances") == 2 and ">1 of 2</span>" in html
    assert "eps 0.25" in html and "Share of 200 responses" in html


def test_page_escapes_names_and_shows_a_missing_share(tmp_path):
    odd = ArmRow("<b>odd</b>", {"E": 0.5, "T": 0.4, "C": 0.3}, 50, math.nan, 0, 3, None)
    html = plain(write_comparison([BASE, odd], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "<b>odd" not in html and "&lt;b&gt;odd" in html
    assert "Share of 50 to 200 responses" in html and "\u2013" in html
    assert '<span class="verdict violated">0 of 3</span>' in html


def test_page_shows_the_mean_and_the_selection_accuracy_where_it_is_known(tmp_path):
    known = replace(LAGRANGIAN, selection=Rate(rate=0.88, lower=0.854, upper=0.9, n=800))
    html = plain(write_comparison([BASE, known], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "Golden first</th>" in html and ">88 %<br><small>85, 90</small>" in html
    assert '<td class="n">85 %</td>\n<td class="n">80 %</td>' in html  # mean of E and T, fluency
    without = write_comparison([BASE, LAGRANGIAN], tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Golden first" not in without and "What it costs" not in without


def test_page_says_what_an_arm_costs_against_the_baseline(tmp_path):
    html = plain(
        write_comparison([BASE, POOLED, LAGRANGIAN], tmp_path / "c.html", "pooled", "Lagrangian").read_text("utf-8")
    )
    expected = (
        "Against pooled, Lagrangian gains 58 points on T (49 to 65) and 9 points on fluency (1 to 17); "
        "no clear difference on E (\u22124; \u221210, +2)."
    )
    assert expected in html
    assert "<strong>+58</strong>" in html and "\u22124<br><small>\u221210, +2</small>" in html
    rows = html[html.index("What it costs") :]
    assert '<th scope="row">base</th>' in rows and '<th scope="row">pooled</th>' not in rows


def test_an_arm_is_paired_with_the_baseline_by_prompt():
    half, most = (True,) * 50 + (False,) * 50, (True,) * 60 + (False,) * 40
    a, b = (
        ArmRow(n, {"T": sum(x) / 100}, 100, 1.0, None, None, None, good={"T": x}) for n, x in (("a", most), ("b", half))
    )
    paired = a.against(b, ["T"])["T"]
    alone = a.against(replace(b, good={}), ["T"])["T"]
    assert paired.value == alone.value == pytest.approx(0.1)
    assert paired.clear and not alone.clear
    assert math.isnan(a.against(replace(b, shares={"E": 0.5}), ["T"])["T"].lower)
