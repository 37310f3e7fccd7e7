"""XSTest's published labels and completions: rates to the digit, by other means, and adjusted ones beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dpeer.errors import ConfigError, DataError
from dpeer.eval.bench.adjusted import adjusted
from dpeer.eval.bench.benchmark import BENCHMARKS
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.load import load_items
from dpeer.eval.bench.run import bench
from dpeer.eval.elsewhere.xstest import xstest_ratings
from dpeer.eval.irt.types import Options
from dpeer.eval.store.parts import write_table
from tests.eval.bench.made_up import QUIET, no_ray

FOLDER = Path(__file__).parents[3] / "../shared/data/xstest"
needs_data = pytest.mark.skipif(not FOLDER.exists(), reason="the XSTest data are not in ../shared/data/xstest")
NAMES = {
    "safe": {
        "1_full_compliance": "safe_compliance",
        "3_partial_refusal": "safe_partial",
        "2_full_refusal": "safe_refusal",
    },
    "unsafe": {
        "2_full_refusal": "unsafe_refusal",
        "3_partial_refusal": "unsafe_partial",
        "1_full_compliance": "unsafe_compliance",
    },
}


@needs_data
def test_rates_of_the_published_labels_to_the_digit(tmp_path: Path) -> None:
    """Each judge's shares per model and kind of prompt, straight from ratings.csv by pandas."""
    write_table(tmp_path / "x.parquet", xstest_ratings(FOLDER))
    chosen = {"data": str(FOLDER), "ratings": str(tmp_path / "x.parquet")}
    values = {"output_dir": str(tmp_path), "benchmarks": {"xstest": chosen}, "base": "mistralinstruct", "adjust": False}
    found = bench(BenchConfig.model_validate(values), no_ray, console=QUIET)
    rates = found.rates.set_index(["judge", "model", "metric"])["rate"]
    published = pd.read_csv(FOLDER / "ratings.csv")
    kind = pd.read_csv(FOLDER / "prompts.csv").assign(id=lambda t: "v2-" + t["id"].astype(str)).set_index("id")["label"]
    published = published.assign(kind=published["prompt_id"].map(kind))
    published = published[published["label"].isin(NAMES["safe"])]
    compared = 0
    for (judge, model, side), group in published.groupby(["judge", "model", "kind"]):
        for label, metric in NAMES[side].items():
            assert rates[judge, model, metric] == pytest.approx((group["label"] == label).mean(), abs=1e-12)
            compared += 1
    assert compared == 4 * 5 * 6
    assert "11 items have no usable rating by gpt4" in " ".join(found.notes)
    pooled = rates["all", "llama2orig", "safe_compliance"]  # two people and GPT-4; the string match stands apart
    assert pooled == pytest.approx((0.4 + 0.396 + 0.64) / 3, abs=1e-12)


@needs_data
@pytest.mark.parametrize(
    ("change", "base", "message"),
    [
        ({"dimension": "compliance"}, None, "of the dimension 'compliance'; this item is rated on refusal"),
        ({"status": "refused", "score": None}, None, "no item has a usable rating"),
        ({}, "nobody", "base is 'nobody'.*there are "),
    ],
)
def test_ratings_that_do_not_fit_are_refused(
    change: dict[str, object], base: str | None, message: str, tmp_path: Path
) -> None:
    table = xstest_ratings(FOLDER)
    kept = table[table["item"].isin(table["item"].unique()[-3:])].assign(**change)
    write_table(tmp_path / "x.parquet", kept)
    chosen = {"data": str(FOLDER), "ratings": str(tmp_path / "x.parquet")}
    values = {"output_dir": str(tmp_path), "benchmarks": {"xstest": chosen}, "base": base, "adjust": False}
    with pytest.raises((ConfigError, DataError), match=message):
        bench(BenchConfig.model_validate(values), no_ray, console=QUIET)


@needs_data
def test_the_string_match_reads_the_published_completions_as_published() -> None:
    xstest = BENCHMARKS["xstest"]
    items = {item.id: item for item in load_items(xstest, str(FOLDER))}
    published = pd.read_csv(FOLDER / "ratings.csv").query("judge == 'string_match'")
    labels = {
        (m, i): label
        for m, i, label in zip(published["model"], published["prompt_id"], published["label"], strict=True)
    }
    rows = [json.loads(line) for line in (FOLDER / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(labels) == 2250
    for row in rows:
        item = items[row["prompt_id"]]
        values = xstest.score(item, {}, xstest.rule(item, {"": (row["completion"],)}))
        (metric,) = (name for name, value in values.items() if value)
        assert metric == NAMES[item.facts["label"]][labels[row["model"], row["prompt_id"]]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adjusted_rates_of_a_severe_and_a_lenient_judge(tmp_path: Path) -> None:
    """Two judges who see the same and set their bar apart: the adjusted rate lies between, models keep their order, and
    a second call reads what the first one found."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for item in range(60):
        hard = rng.normal()
        for model, ability in (("base", -0.6), ("peer", 0.9)):
            seen = ability - hard
            for judge, bar in (("mild", -1.0), ("stern", 1.0)):
                draw = seen - bar + rng.logistic(size=2)
                rows.append((model, f"q{item}", judge, int((draw > 0).sum())))
    table = pd.DataFrame(rows, columns=["model", "item", "judge", "score"])
    table = table.assign(
        dimension="compliance",
        criterion="answers",
        status="ok",
        judge_family="x",
        sample=0,
        rating_id=range(len(table)),
    )
    xstest, options = BENCHMARKS["xstest"], Options(chains=2, warmup=400, draws=400)
    found, said = adjusted(xstest, table, "base", (0, 1, 2), tmp_path / "a.json", options)
    full = {row["model"]: row for row in found if row["metric"] == "safe_compliance"}
    share = table.assign(full=table["score"] == 2).groupby(["model", "judge"])["full"].mean()
    for model in ("base", "peer"):
        assert share[model, "stern"] < full[model]["rate"] < share[model, "mild"]
        assert full[model]["low"] < full[model]["rate"] < full[model]["high"]
    assert full["peer"]["difference_low"] > 0 and full["base"]["difference"] == 0
    three = [sum(row["rate"] for row in found if row["model"] == "peer" and row["metric"].startswith("safe"))]
    assert three == [pytest.approx(1.0, abs=1e-6)], said
    assert adjusted(xstest, table, "base", (0, 1, 2), tmp_path / "a.json", options)[0] == found


def test_one_judge_gives_no_adjusted_rates(tmp_path: Path) -> None:
    table = pd.DataFrame({"judge": ["a", "r"], "judge_family": ["x", "rule"], "status": "ok"})
    rows, said = adjusted(BENCHMARKS["xstest"], table, "base", (0, 1, 2), tmp_path / "a.json")
    assert rows == [] and "which need two judges (there is 1)" in said
