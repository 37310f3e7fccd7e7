"""Plans of ratings: who rates what, before anything is spent."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dpeer.errors import ConfigError, DataError
from dpeer.eval import judge as judging
from dpeer.eval.backends.families import family_of_name
from dpeer.eval.backends.registry import family, identity
from dpeer.eval.backends.vllm import with_whole_paths
from dpeer.eval.config import Served
from dpeer.eval.irt.design import DesignError
from dpeer.eval.judge import cost, judge
from dpeer.eval.plan import plan
from dpeer.eval.questions.prompting import encode_chat, judge_segments
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.responses import responses_folder
from dpeer.eval.store.parts import write_part
from dpeer.eval.store.schema import RESPONSES
from tests.eval.evaluations import RELATED, evaluation, no_ray, write_responses

RUBRIC = load_rubric("toyworld")
DIMENSIONS = list(RUBRIC.dimensions)


def test_a_full_plan_has_every_rating_once_in_an_order_of_the_seed(tmp_path: Path, models: Path) -> None:
    how = {"rubric": "toyworld", "repeats": 2}
    rows = plan(evaluation(tmp_path, models, items=5, samples=3, judging=how)).rows
    assert len(rows) == rows["rating_id"].nunique() == 2 * 5 * 3 * 2 * 4 * 2
    cells = Counter(rows.groupby(["judge", "model", "item", "sample", "dimension", "criterion", "repeat"]).size())
    assert cells == {1: len(rows)}
    assert set(rows[["repeat", "order"]].itertuples(index=False, name=None)) == {(0, "up"), (1, "down")}
    for _, own in rows.groupby("judge"):
        assert (own["response_id"] != own["response_id"].shift()).sum() == 30, "calls of a conversation stand together"
    again = plan(evaluation(tmp_path, models, items=5, samples=3, judging=how)).rows
    assert list(again["rating_id"]) == list(rows["rating_id"])
    other = plan(evaluation(tmp_path, models, items=5, samples=3, judging=how, seed=1)).rows
    assert set(other["rating_id"]) == set(rows["rating_id"]) and list(other["rating_id"]) != list(rows["rating_id"])
    fewer = plan(evaluation(tmp_path, models, items=5, samples=3)).rows
    assert set(fewer["rating_id"]) != set(rows["rating_id"])  # min_mass differs, and with it the status of a row
    fewer = plan(evaluation(tmp_path, models, items=5, samples=3, judging={"rubric": "toyworld"})).rows
    assert set(fewer["rating_id"]) < set(rows["rating_id"])


@pytest.mark.parametrize(
    "change",
    [
        {"judging": {"rubric": "toyworld", "mode": "structured", "min_mass": 0.0}},
        {"judging": {"rubric": "toyworld", "min_mass": 0.25}},
        {"judging": {"rubric": "toyworld", "min_mass": 0.0, "score": "sampled"}},
        {"engine": {"dtype": "bfloat16"}},
        {"engine": {"dtype": "float32", "batch_invariant": True}},
        {"judging": {"rubric": "compliance", "min_mass": 0.0}},
    ],
)
def test_whatever_a_rating_depends_on_changes_its_id(tmp_path: Path, models: Path, change: dict[str, Any]) -> None:
    before = set(plan(evaluation(tmp_path, models)).rows["rating_id"])
    assert before.isdisjoint(plan(evaluation(tmp_path, models, **change)).rows["rating_id"])
    where = {"engine": {"device": "gpu", "dtype": "float32", "max_num_seqs": 7, "tensor_parallel": 2}}
    assert before == set(plan(evaluation(tmp_path, models, **where)).rows["rating_id"])


def test_a_linked_plan_gives_the_anchors_to_all_and_the_rest_to_some(tmp_path: Path, models: Path) -> None:
    judges = [{"name": n, "path": str(models / "a")} for n in ("j1", "j2", "j3")]
    design = {"kind": "linked", "anchors": 4, "judges_per_response": 2}
    planned = plan(evaluation(tmp_path, models, items=20, judges=judges, design=design))
    raters = planned.rows.groupby(["item", "model"])["judge"].nunique()
    assert Counter(raters) == {3: 4 * 2, 2: 16 * 2}
    assert (planned.rows.groupby("item")["model"].nunique() == 2).all()


def test_a_design_that_cannot_tell_models_apart_is_refused_before_any_engine(tmp_path: Path, models: Path) -> None:
    cfg = evaluation(tmp_path, models, judges=[{"name": "a", "path": str(models / "a")}])
    with pytest.raises(DesignError, match="TooFewJudges: the only judge is 'a'"):
        judge(cfg, no_ray)
    assert len(plan(cfg, check_design=False).rows) == 5 * 2 * 4


def test_related_judges_are_refused_or_marked(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [json.loads(line) for line in write_responses(path, 5).read_text().splitlines()]
    path.write_text("".join(json.dumps(r | {"family": {"x": "Llama", "y": "gpt"}[r["model"]]}) + "\n" for r in rows))
    with pytest.raises(ConfigError, match=r"judge c is of the family llama, like x.*allow_related"):
        plan(evaluation(tmp_path, models, responses=str(path)))
    allowed = {"rubric": "toyworld", "allow_related": True}
    planned = plan(evaluation(tmp_path, models, responses=str(path), judging=allowed))
    assert not any("is not known" in note for note in planned.notes)
    assert any("judge c is of the family llama, like x" in note for note in planned.notes)
    own = planned.rows[planned.rows["model_family"] == planned.rows["judge_family"]]
    assert set(own[["judge", "model"]].itertuples(index=False, name=None)) == {("c", "x")}


def test_a_judge_that_is_a_model_under_test_is_known_by_its_weights(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(write_responses(path, 5, ("a", "y")).read_text())
    with pytest.raises(ConfigError, match="has the name of another model under test"):
        plan(evaluation(tmp_path, models, responses=str(path)))
    cfg = evaluation(tmp_path, models, responses=None)
    own = {"model_hash": identity(cfg.judges[0]), "family": None, "status": "ok", "prompt": "?", "response": "!"}
    for name in ("a", "z"):
        made = [{"response_id": f"{name}{i}", "model": name, "item": str(i), "sample": 0} | own for i in range(3)]
        write_part(responses_folder(cfg) / f"model={name}", made, RESPONSES)
    with pytest.raises(ConfigError, match="judge a is the model z itself under another name"):
        plan(cfg)


def test_families_that_are_not_known_are_said(tmp_path: Path, models: Path) -> None:
    notes = plan(evaluation(tmp_path, models)).notes
    assert any(note.startswith("the family of x, y is not known") for note in notes)


def test_a_family_may_be_known_of_some_models_only(tmp_path: Path, models: Path) -> None:
    answers = write_responses(tmp_path / "own.jsonl", 5, ("mymodel", "llama-other"))
    found = plan(evaluation(tmp_path, models, responses=str(answers), judging=RELATED))
    assert any(note.startswith("the family of mymodel is not known") for note in found.notes)
    families = found.rows.groupby("model")["model_family"].agg(set)
    assert families["mymodel"] == {None} and families["llama-other"] == {"llama"}
    write_part(tmp_path / "parts", found.rows.head(20).assign(status="ok").to_dict("records"))


def test_log_probabilities_need_a_digit_per_score(tmp_path: Path, models: Path) -> None:
    rubric = tmp_path / "ten.yaml"
    rubric.write_text(
        "name: ten\nversion: 1\nscale: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
        "dimensions: {tone: {title: Tone, description: Warm., criteria: {greeting: {question: 'Is it warm?'}}}}\n"
    )
    cfg = evaluation(tmp_path, models, judging={"rubric": str(rubric)})
    with pytest.raises(ConfigError, match="the scale must lie within 0 to 9; it is 1 to 10"):
        plan(cfg)
    plan(evaluation(tmp_path, models, judging={"rubric": str(rubric), "mode": "structured"}))


def test_two_judges_on_a_two_point_scale_are_a_plan(tmp_path: Path, models: Path) -> None:
    rubric = tmp_path / "two.yaml"
    rubric.write_text(
        "name: two\nversion: 1\nscale: [0, 1]\n"
        "dimensions: {tone: {title: Tone, description: Warm., criteria: {greeting: {question: 'Is it warm?'}}}}\n"
    )
    found = plan(evaluation(tmp_path, models, judging={"rubric": str(rubric)}))
    assert len(found.rows) == 20 and any("discrimination cannot be told" in note for note in found.notes)


def test_a_model_that_is_not_there_is_named(tmp_path: Path, models: Path) -> None:
    judges = [{"name": "gone", "path": "runs/gone/export"}, {"name": "c", "path": str(models / "c")}]
    with pytest.raises(ConfigError, match="gone: there is no folder runs/gone/export"):
        plan(evaluation(tmp_path, models, judges=judges))


def test_engines_get_whole_paths(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may run in another folder, where a relative path would be taken for a hub id."""
    monkeypatch.chdir(models)
    placed = with_whole_paths(Served(name="j", path="a", adapter="./c"))
    assert (placed.path, placed.adapter) == (str(models / "a"), str(models / "c"))
    assert with_whole_paths(Served(name="j", path="Qwen/Qwen3-8B")).path == "Qwen/Qwen3-8B"


def test_families() -> None:
    names = {
        "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
        "Qwen/Qwen3-8B": "qwen",
        "mistralai/Mixtral-8x7B": "mistral",
        "google/gemma-2-9b-it": "gemma",
        "gpt-4o": "gpt",
        "claude-sonnet": "claude",
        "my-own-model": None,
    }
    for name, kind in names.items():
        assert family_of_name(name) == kind, name
        assert family(Served(name="j", path=name, backend="openai", base_url="http://h")) == kind
    assert family(Served(name="j", path="gpt-4o", family="House", backend="openai", base_url="http://h")) == "house"


def test_the_family_of_a_local_model_is_its_model_type(models: Path) -> None:
    assert [family(Served(name="gpt", path=str(models / n))) for n in ("a", "c")] == ["qwen", "llama"]


def test_repeats_that_would_ask_the_same_again_are_refused(tmp_path: Path, models: Path) -> None:
    with pytest.raises(ConfigError, match=r"judging\.repeats = 3 with mode logprob"):
        plan(evaluation(tmp_path, models, judging={"rubric": "toyworld", "repeats": 3}))
    for how in ({"score": "sampled"}, {"mode": "structured"}):
        rows = plan(evaluation(tmp_path, models, judging={"rubric": "toyworld", "repeats": 3} | how)).rows
        assert list(rows["order"][:3]) == ["up", "down", "up"]


def test_no_responses_yet(tmp_path: Path, models: Path) -> None:
    with pytest.raises(DataError, match=r"no responses\. Run `dpeer generate` first"):
        plan(evaluation(tmp_path, models, responses=None))


def test_the_cost_of_a_plan_is_counted_in_the_judges_own_tokens(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpeer.model.lm import load_tokenizer

    cfg = evaluation(tmp_path, models, items=30)
    planned = plan(cfg)
    tokenizer = load_tokenizer(str(models / "a"))
    prompt = shared = 0
    for r in planned.responses.itertuples():
        calls = [
            encode_chat(tokenizer, judge_segments(RUBRIC, r.prompt, r.response, d, "clause", "up", "logprob"))
            for d in DIMENSIONS
        ]
        prompt += sum(map(len, calls))
        common = next(i for i, column in enumerate(zip(*calls, strict=False)) if len(set(column)) > 1)
        shared += 3 * common
    found = cost(cfg, planned, tokens_per_second=1000.0).set_index("judge")
    assert found.loc["a", ["calls", "prompt_tokens", "exact"]].tolist() == [240, prompt, True]
    assert abs(found.loc["a", "shared_tokens"] - shared) <= 240  # digits may merge where the questions part
    assert found.loc["a", "seconds"] == pytest.approx((prompt - found.loc["a", "shared_tokens"] + 240) / 1000)
    assert cost(cfg, planned)["seconds"].isna().all()
    monkeypatch.setattr(judging, "SAMPLE", 20)
    estimated = cost(cfg, planned).set_index("judge")
    assert not estimated.loc["a", "exact"]
    assert estimated.loc["a", "prompt_tokens"] == pytest.approx(prompt, rel=0.1)
