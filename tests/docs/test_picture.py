"""README, its picture and the page that goes through the reports tell of one run."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT
from tests.docs.test_screenshots import SHOWN

README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
PAGE = (ROOT / "docs" / "reading_reports.md").read_text(encoding="utf-8")
WORDS = {src.partition("reports/")[2]: alt for src, alt in SHOWN.findall(PAGE)}
"""What the pictures of the page show."""


def test_readme_repeats_what_its_picture_and_the_reports_say() -> None:
    arms, certificate, table = (WORDS[f"{name}.png"] for name in ("demo_arms", "train_certificate", "eval_table"))
    assert "(docs/img/reports/demo_arms.png)" in README
    good = {name: re.search(rf"{name}: ((?:\d+, )+)(\d+) and", arms) for name in ("Lagrangian", "Pooled DPO")}
    before, after = (good[name][2] for name in ("Pooled DPO", "Lagrangian") if good[name])
    assert f"rises from {before} % to {after} %" in README
    losses = {d: float(loss) for d, loss in re.findall(r"([ACET]): satisfied, (?:estimate )?([\d.]+)", certificate)}
    others = max(losses[d] for d in "ACE")
    assert f"mean loss of T is {losses['T']:.2f} at" in README and f"at most {others} at" in README
    pooled = re.search(r"`pooled/report.html` has that for T: ([\d.]+),", PAGE)
    assert pooled and f"falls from {float(pooled[1]):.2f} to {losses['T']:.2f}" in README
    once = re.search(r"all at once minus ([\d.]+) to ([\d.]+),", table)
    assert once and f"(-{once[1]} to {once[2]})" in README
    rival = re.search(r"better in T by ([\d.]+), all 16 at once ([\d.]+ to [\d.]+\d)", PAGE)
    assert rival and f"{rival[1]} logits" in README and f"interval of {rival[2]} for all 16 differences" in README
