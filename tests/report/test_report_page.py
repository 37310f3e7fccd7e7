"""The report page as a browser gets it: self-contained, well formed, escaped, honest about what is missing."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from dpeer.errors import DpeerError
from dpeer.report.page import write_report

KEPT = {"steps": 200, "records_per_step": 32, "keep": "best", "patience": 2}
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects headings, text and images, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def all(self, tag):
        return [text for where, text in self.texts if where == tag]

    @property
    def words(self):
        return " ".join(text for where, text in self.texts if where not in ("style", "title"))


def read(folder) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_whole_report(make_run):
    page = read(make_run())
    assert page.all("h1") == ["2 of 4 dimensions meet their tolerance on held-out records"]
    assert page.all("h2") == [
        "Held-out records",
        "Loss per dimension",
        "Pairs ranked right",
        "How the dimensions were balanced",
        "Side effects and speed",
        "Run metadata",
    ]
    for words in ("violated", "undecided", "about 310", "0.530 to 0.710", "Violated: E. Undecided: T."):
        assert words in page.words
    assert "counted up to 6, over prompts like the held-out ones" in page.words and "7.50" in page.words
    assert "chosen after looking at the range needs fresh held-out records" in page.words
    assert "rarer than 1.4 % (3 / 215)" in page.words and "1.3 %" in page.words
    assert page.all("summary")[0] == "Verdicts per mask" and "A 88 % (at least 81 %)" in page.words
    for fact in ("0123abcd", "ab" * 32, "22" * 32, "objective.dual.eta", "2.13.0", "3 dropped, 0 cut as too long"):
        assert fact in page.words
    assert len([tag for tag, _ in page.attributes if tag == "img"]) == 2 + 4 + 4 + 3 + 3


@pytest.mark.parametrize("kind", ["preference", "sft"])
def test_nothing_is_fetched_and_every_picture_has_a_text(make_run, kind):
    page = read(make_run(steps=5, kind=kind))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.attributes}
    for tag, attributes in page.attributes:
        assert attributes.get("href", "data:").startswith("data:")
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,") and len(attributes["alt"]) > 40
    assert not any("url(" in style or "@import" in style for style in page.all("style"))


def test_unfinished_run_has_a_page(make_run):
    folder = make_run(steps=30, certificate=False)
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"step": 31, "obj')
    page = read(folder)
    assert page.all("h1") == ["Lagrangian DPO: unfinished, 30 of 80 steps and no certificate yet"]
    assert "Held-out records" not in page.all("h2")
    for note in ("has not finished", "no certificate", "1 damaged line is left out (line 31)"):
        assert note in page.words


def test_bare_ledger_of_one_step_has_a_page(make_run):
    folder = make_run(steps=1)
    for name in ("manifest.json", "timing.jsonl", "certificate.json"):
        (folder / name).unlink()
    page = read(folder)
    assert "run" in page.all("p")[0]
    for note in ("manifest.json is missing", "timing.jsonl is missing", "no certificate"):
        assert note in page.words


def test_ledger_with_nothing_but_steps_has_a_page(tmp_path):
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": 1, "golden_nll": None, "dimensions": {"E": {}}}) + "\n")
    assert read(tmp_path).all("h2") == ["Run metadata"]


def test_balance_report_names_a_stuck_multiplier(make_run):
    page = read(make_run(constraint={"form": "balance", "tolerance": 0.1}))
    assert "The multiplier of E over C sits at its upper bound 20 at the end" in page.words
    assert "5 more are not drawn" in page.words and "Constraints" in page.all("h2")


def test_watched_report(make_run, amend):
    folder = make_run(watched=True)
    amend(folder / "manifest.json", lambda m: m | {"exported_step": 40, "config": m["config"] | {"training": KEPT}})
    (folder / "stop.json").write_text(json.dumps({"step": 80, "reason": "patience", "patience": 2}))

    def relax(line):
        changes = {"T": {"relaxed": True, "relaxation": 0.23}, "A": {"relaxed": True, "relaxation": 0.051}}
        line["dimensions"]["E"]["floored"] = 0.2 if line["step"] > 9 else 0.0
        return line | {"constraints": {d: c | changes.get(d, {}) for d, c in line["constraints"].items()}}

    amend(folder / "ledger.jsonl", relax)
    page = read(folder)
    for words in (
        "Training ended early, at step 80: the last 2 checkpoints were worse than the best one",
        "step 40, the lowest loss of the worst dimension on the dual split",
        "Not all tolerances can be met together, so A and T were relaxed: A stays about 0.05 above 0.4, "
        "T stays about 0.23 above 0.4. E and C keep theirs.",
        "Golden ranks first in 62 % of the dual split's records at the end",
        "Multipliers asked to un-learn E, whose weight stays at 0 instead",
        "130 records",
    ):
        assert words in page.words
    assert page.all("h2")[-2:] == ["What the policy says", "Run metadata"]
    cells = [text for where, text in page.texts if where in ("th", "td")]
    assert "Is <b>this</b> & that true?" in cells and "b" not in {tag for tag, _ in page.attributes}
    assert [cell for cell in cells if cell.startswith("reply")] == 2 * [f"reply {s}" for s in (0, 20, 40, 60, 80)]


def test_many_replies_are_thinned_and_strange_characters_replaced(make_run):
    folder = make_run(steps=2)
    lines = [{"step": s, "prompt": "p", "reply": f"a\x00\u202e{s}"} for s in range(1000)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10')
    page = read(folder)
    replies = [cell for cell in page.all("td") if cell.startswith("a\ufffd\ufffd")]
    assert replies[0].endswith("\ufffd0") and replies[-1].endswith("\ufffd999") and len(replies) == 6
    assert "samples.jsonl: 1 damaged line is left out" in page.words


def test_names_are_escaped(make_run, amend):
    folder = make_run(steps=3)
    hostile = "<script>alert(1)</script>&"
    amend(folder / "manifest.json", lambda m: m | {"config": m["config"] | {"name": hostile}})
    amend(folder / "ledger.jsonl", lambda line: line | {"dimensions": {hostile: line["dimensions"]["E"]}})
    page = read(folder)
    assert "script" not in {tag for tag, _ in page.attributes}
    assert hostile in page.words


def test_long_run_stays_a_small_file(make_run):
    assert write_report(make_run(steps=3000)).stat().st_size < 1_500_000


def test_page_is_whole_or_absent_and_written_again(make_run):
    folder = make_run(steps=2, kind="sft")
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
    assert {path.name for path in folder.iterdir()} == {
        "certificate.json", "ledger.jsonl", "manifest.json", "report.html", "timing.jsonl"
    }  # fmt: skip


def test_no_ledger_leaves_no_page(tmp_path):
    with pytest.raises(DpeerError, match=r"no ledger\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
