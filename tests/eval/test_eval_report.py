"""The evaluation page: self-contained, escaped, complete as files, and silent about claims when the gate is red."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from dpeer.eval.irt.result import Result
from dpeer.eval.report import words
from dpeer.eval.report.abilities import ability
from dpeer.eval.report.data import connectivity
from dpeer.eval.report.frames import COLUMNS, frames
from dpeer.eval.report.judges import off
from dpeer.eval.report.page import write_report
from dpeer.eval.report.sections import sections
from tests.browser import active_parts
from tests.eval.made_results import bounded, grid, make_result

VOID = {"meta", "img", "br", "link", "hr", "input"}
HOSTILE = '<script>alert("x")</script>&'


class Page(HTMLParser):
    """Collects tags, texts and table rows, and checks that every tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))
        if "tr" in self.open:
            self.rows[-1][-1] += f" {data.strip()}" if self.rows[-1][-1] else data.strip()

    def all(self, tag):
        return [text for where, text in self.texts if where == tag]

    @property
    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def words(self):
        return " ".join(text for where, text in self.texts if where != "style")


def small(**more) -> Result:
    return make_result(**{"models": ("a", "b"), "judges": ("j",), "dimensions": ("D",), "items": 6, "scores": 3} | more)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(result, folder, page) of an ordinary fit with two dimensions."""
    found = make_result(dimensions=("E", "T"))
    folder = tmp_path_factory.mktemp("report")
    assert write_report(found, folder, "demo", ["Toy judges."]) == folder / "report.html"
    return found, folder, Page(folder / "report.html")


@pytest.mark.parametrize(("probability", "words_"), [(0.97, "highest ability"), (0.6, "but is not surely first")])
def test_the_highest_ability_is_called_so_only_where_the_rank_is_sure(probability: float, words_: str) -> None:
    tables = frames(small().tables)
    leader = tables["ability"].sort_values("ability")["model"].iloc[-1]
    first = tables["ranks"]["rank"] == 1
    mine = tables["ranks"]["model"] == leader
    tables["ranks"].loc[first, "probability"] = np.where(mine[first], probability, 1 - probability)
    assert words_ in next(ability(tables)).finding


def test_whole_report(written):
    found, _, page = written
    assert page.all("h2") == [
        "Abilities",
        "Ranks",
        "Fair averages and raw means",
        "One ruler for models, items and judges",
        "Judges",
        "Judges who see a model differently",
        "Biases of judges",
        "Side effects",
        "Items",
        "Does the fit reproduce the scores?",
        "Score steps",
        "Ratings",
        "Anchors",
        "Diagnostics",
        "How to read this page",
        "Run metadata",
    ]
    assert page.all("h1") == [words.finding(frames(found.tables))]
    for part in (
        "Toy judges.",
        "Judge keyword matcher: noisy.",
        "4 models, 40 items, 4 judges, 2 dimensions",
        "ab" * 32,
    ):
        assert part in page.words
    for limit in (
        "leniency or a taste that all judges share",
        "not how valid",
        "Logits of other variants",
        "approximate",
    ):
        assert limit in page.words
    for title in (
        "keyword matcher scores lagrangian 0.41 above expectation",
        "thresholds are out of order for 1 judge",
    ):
        assert any(title in heading for heading in page.all("h3"))


def test_ability_table_shows_the_figures(written):
    found, _, page = written
    for row in found.tables["ability"].itertuples():
        cells = next(c for c in page.rows if c[:2] == [row.dimension, row.model] and len(c) == 10)
        low, high = (f"{x:.2f}".replace("-", "\u2212") for x in (row.ability_low, row.ability_high))
        assert cells[2].endswith(f"{low} to {high}")
        assert cells[3].startswith("base" if row.model == "base" else f"{row.contrast:+.2f}".replace("-", "\u2212"))
        if row.model != "base":
            assert any(cell.startswith(f"{row.contrast_these:+.2f}".replace("-", "\u2212")) for cell in cells[4:7])
        assert cells[8] == f"{row.raw_mean:.2f}" and cells[9] == "160"


def test_biases_are_named_with_what_helps(written):
    found, _, page = written
    for row in found.tables["biases"].itertuples():
        assert any(cells[0] == row.judge and row.finding in cells and row.advice in cells for cells in page.rows)


def test_nothing_is_fetched_and_every_picture_has_a_text(written):
    _, _, page = written
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        if "href" in attributes:
            assert attributes["href"][0] == "#" and attributes["href"][1:] in ids
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,") and len(attributes["alt"]) > 40
    assert not any("url(" in style or "@import" in style for style in page.all("style"))


def test_every_table_and_picture_is_a_file(written):
    found, folder, page = written
    for name, frame in found.tables.items():
        back = pd.read_csv(folder / "tables" / f"{name}.csv", keep_default_na=True)
        assert list(back.columns) == list(frame.columns) and len(back) == len(frame)
        assert len(json.loads((folder / "tables" / f"{name}.json").read_text())) == len(frame)
    index = json.loads((folder / "report.json").read_text())
    assert index["claim"] is True and index["finding"] == page.all("h1")[0]
    assert {f"{p.parent.name}/{p.name}" for p in folder.glob("figures/*")} | {
        f"tables/{name}.{kind}" for name in found.tables for kind in ("csv", "json")
    } == set(index["files"])
    shown = {base64.b64decode(image["src"].split(",")[1]) for image in page.images}
    assert shown == {path.read_bytes() for path in folder.glob("figures/*.svg")} and len(shown) == len(index["figures"])
    for path in folder.glob("figures/*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.glob("figures/*.png"))) == len(index["figures"])


def test_names_are_escaped_and_stay_in_the_folder(tmp_path):
    hostile = ("../../" + HOSTILE, "_$x^2$\x00\x1b[31m", "a" * 300)
    found = small(models=hostile, judges=(HOSTILE, "k"), dimensions=(HOSTILE, "../../../e\n{{ 71 * 73 }}"))
    write_report(replace(found, notes=(HOSTILE,)), tmp_path / "report", HOSTILE, [HOSTILE])
    page = Page(tmp_path / "report" / "report.html")
    assert "script" not in {tag for tag, _ in page.tags}
    assert HOSTILE in page.words and "5183" not in page.words
    assert not any(ord(c) < 32 and c != "\n" for c in (tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html",
        "report.json",
        "figures",
        "tables",
    }
    for path in (tmp_path / "report").glob("figures/*.svg"):
        ElementTree.parse(path)
    assert active_parts(tmp_path / "report" / "report.html") == []


def test_red_gate_makes_no_claim(tmp_path):
    write_report(small(models=("base", "b", "c")), tmp_path, "red")
    assert (tmp_path / "figures" / "contrast_D.svg").exists()
    write_report(small(models=("base", "b", "c"), green=False), tmp_path, "red")
    page = Page(tmp_path / "report.html")
    assert page.all("h1") == ["No claim: R-hat is 1.081 at theta[base, E]; it must be below 1.01"]
    assert "raise the warm-up (twice as long)" in page.all("li") and "they support no claim" in page.words
    everything = page.words + " ".join(image["alt"] for image in page.images)
    for claim in ("better than", "worse than", "ranks first", "(better)", "highest", "strictest", "Difference to base"):
        assert claim not in everything
    assert not list(tmp_path.glob("figures/contrast*")) and not list(tmp_path.glob("figures/ranks*"))
    assert page.all("h2").index("Diagnostics") < page.all("h2").index("Ratings") < page.all("h2").index("Abilities")
    details = [i for i, (tag, _) in enumerate(page.tags) if tag == "details"]
    ratings, abilities = (
        next(i for i, (_, a) in enumerate(page.tags) if a.get("id") == x) for x in ("ratings", "abilities")
    )
    assert ratings < min(i for i in details if i > ratings) < abilities


def test_reasons_of_a_red_gate_without_reasons():
    assert words.no_claim({}) == words.no_claim({"reasons": ["one", "two"]})
    assert words.no_claim({"reasons": ["one."]}) == "No claim: one"


def test_smallest_fit_and_equal_bytes(tmp_path):
    first, second = (write_report(small(scores=2), tmp_path / name, "tiny") for name in ("one", "two"))
    names = sorted(path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second.parent) for path in second.parent.rglob("*") if path.is_file())
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes(), name
    assert "Abilities" in Page(first).all("h2")


def test_empty_and_missing_tables_are_left_out(tmp_path):
    found = small()
    tables = {name: frame[:0] for name, frame in found.tables.items()}
    page = Page(write_report(replace(found, tables=tables | {"statuses": found.tables["statuses"]}), tmp_path, "empty"))
    assert page.all("h2") == ["Ratings", "Diagnostics", "How to read this page", "Run metadata"]
    assert (tmp_path / "tables" / "ability.csv").exists()


@pytest.mark.parametrize("missing", sorted(COLUMNS))
@pytest.mark.parametrize("claim", [True, False])
def test_any_table_may_be_missing(missing, claim):
    found = small(dimensions=("D", "E")).tables
    without = frames({name: frame for name, frame in found.items() if name != missing})
    headings = {section.heading for section in sections(without, claim)}
    assert headings <= {section.heading for section in sections(frames(found), claim)} and "Ratings" in headings


def test_fit_without_intervals_has_a_page(tmp_path):
    found = small(green=False)
    blank = {n: t.assign(**{c: np.nan for c in t if c.endswith(("_low", "_high"))}) for n, t in found.tables.items()}
    kept = {name: table for name, table in blank.items() if name not in ("ranks", "reliability")}
    page = Page(write_report(replace(found, tables=kept), tmp_path, "points"))
    assert "nan" not in page.words


def contrasts(**rows: tuple[tuple[float, float], ...]) -> dict[str, pd.DataFrame]:
    """An ability table with contrast intervals per model and dimension; `base` has none."""
    cells = [
        {"model": model, "dimension": d, "contrast": (low + high) / 2, "contrast_low": low, "contrast_high": high}
        for model, bounds in rows.items()
        for d, (low, high) in zip("ETC", bounds, strict=False)
    ]
    base = [{"model": "base", "dimension": d} for d in dict.fromkeys(cell["dimension"] for cell in cells)]
    return frames({"ability": pd.DataFrame([*base, *cells])})


UP, DOWN, FLAT = (0.1, 0.9), (-0.9, -0.1), (-0.4, 0.4)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            {"a": (UP, UP, UP), "b": (UP, FLAT, FLAT)},
            "a is better than base on all 3 dimensions; 1 other is better on some dimension",
        ),
        ({"a": (UP, DOWN), "b": (UP, FLAT)}, "b is better than base on E; 1 other is better on some dimension"),
        ({"a": (UP, UP), "b": (FLAT, FLAT)}, "a is better than base on both dimensions"),
        ({"a": (UP, DOWN)}, "a is better than base on E, worse on T"),
        ({"a": (FLAT, FLAT)}, "No model differs reliably from base on any dimension"),
        ({"a": (FLAT, DOWN), "b": (FLAT, FLAT)}, "No model is reliably better than base; a is worse on T"),
        ({"a": (UP,)}, "a is better than base on E"),
    ],
)
def test_finding_against_a_base(rows, sentence):
    assert words.finding(contrasts(**rows)) == sentence


def test_finding_without_a_base():
    ability = pd.DataFrame({"model": ["a", "b"] * 2, "dimension": ["E", "E", "T", "T"], "ability": 0.0})
    ranks = pd.DataFrame({"model": ["a", "b"] * 2, "dimension": ["E", "E", "T", "T"], "rank": 1, "probability": 0.5})
    assert words.finding(frames({"ability": ability, "ranks": ranks})) == "No model leads reliably on any dimension"
    sure = ranks.assign(probability=[0.97, 0.03, 0.01, 0.99])
    assert words.finding(frames({"ability": ability, "ranks": sure})) == "a leads on E; b leads on T"


def test_numbers_have_true_signs_and_no_negative_zero():
    assert [words.fixed(x) for x in (-0.004, 0.004, -1.234, 1234.5, np.nan, None)] == [
        "0.00",
        "0.00",
        "\u22121.23",
        "1,234.50",
        "\u2013",
        "\u2013",
    ]
    assert [words.signed(x) for x in (0.126, -0.126, 0.001)] == ["+0.13", "\u22120.13", "0.00"]
    assert [words.probability(p) for p in (0.999, 0.001, 0.5)] == ["> 0.99", "< 0.01", "0.50"]


def test_long_names_stay_apart_on_an_axis():
    sizes = [f"organisation/some-long-model-name-{k}b-instruct" for k in (1, 7, 17)]
    assert words.labels(sizes) == ["…1b-instruct", "…7b-instruct", "…17b-instruct"]
    cut = words.labels(["x" * 40 + middle + "y" * 40 for middle in ("1", "2")])
    assert len(set(cut)) == 2 and max(map(len, cut)) <= 22
    assert words.labels(["a\x00b\n", "short"]) == ["a b", "short"]


def test_surprising_counts_are_corrected_for_their_number():
    limit = norm.isf(0.05 / 2 / 20)
    gaps = np.array([limit - 0.01, -limit - 0.01, limit + 1, *[0.0] * 17])
    counts = pd.DataFrame({"observed": 100 + 3 * gaps, **bounded("expected", np.full(20, 100.0), 1.96 * 3)})
    assert list(off(counts).index) == [2, 1]


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ([[5, 5], [5, 9]], "Every judge rated every model, 5 to 9 ratings per pair"),
        ([[5, 5], [5, 5]], "Every judge rated every model, 5 ratings per pair"),
        ([[5, 5], [0, 5]], "1 of 4 judge-model cells are empty, and all are linked"),
        ([[5, 0], [0, 5]], "Judges and models fall into 2 groups without a link"),
    ],
)
def test_connectivity_names_the_groups(counts, title):
    cells = grid(model=("a", "b"), judge=("j", "k")).assign(dimension="D", n=np.ravel(counts))
    (picture,) = connectivity({"connectivity": cells})
    assert picture.title(claim=False) == title


def test_dimensions_with_different_gaps_get_their_own_picture():
    cells = grid(dimension=("D", "E"), model=("a", "b"), judge=("j", "k")).assign(n=[1, 0, 1, 1, 1, 1, 1, 1])
    titles = [picture.finding for picture in connectivity({"connectivity": cells})]
    assert titles == [
        "D: 1 of 4 judge-model cells are empty, and all are linked",
        "E: every judge rated every model, 1 rating per pair",
    ]


@pytest.mark.slow
def test_large_report(tmp_path):
    found = make_result(
        models=tuple(f"org/some-model-name-{k}b-instruct" for k in range(20)),
        judges=tuple(f"judge-model-{k}" for k in range(12)),
        dimensions=tuple(f"dimension-{k}" for k in range(6)),
        items=450,
        scores=10,
    )
    path = write_report(found, tmp_path, "large")
    assert path.stat().st_size < 12_000_000 and len(Page(path).images) > 60
