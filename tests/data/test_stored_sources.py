"""Every source gives the same through the store as in memory: tokens, weights, how it was read, what is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from dpeer.config import Config
from dpeer.data import facts, pool, stream
from dpeer.data.map import Tally
from dpeer.data.token_store import Store
from dpeer.data.tokenize import TokenizedSet, tokenize
from dpeer.errors import DataError
from dpeer.training.prepare import _counted, split_records
from dpeer.training.tokens import Part, tokens
from tests.data.conftest import CHATML
from tests.data.conversation_table import CONVERSATIONS
from tests.data.layouts import gz, helpsteer2, jsonl, pair, saferlhf, ultrafeedback, write
from tests.data.source_table import CASES, GENERAL
from tests.data.test_facts import pre_tokenizer
from tests.data.test_malformed import BROKEN, place
from tests.data.test_malformed import Case as Malformed
from tests.data.test_refused_sources import CASES as REFUSED

Make = Callable[[str | None], PreTrainedTokenizerFast]
ALONE = {"heldout": "none", "dual": "none"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ROWS", 2)
    monkeypatch.setattr(stream, "BLOCK", 1)
    monkeypatch.setattr(pool, "cpus", lambda: 1)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of parts that were read in memory."""
    names, load = [], Part.load
    monkeypatch.setattr(Part, "load", lambda part, dimensions: names.append(part.name) or load(part, dimensions))
    return names


def recipe(folder: Path, **data: Any) -> Config:
    tree = {"name": "x", "output_dir": folder / "runs", "model": {"path": "m"}, "training": {"steps": 1}}
    return Config.model_validate(tree | {"data": {"max_tokens": 300} | data, "objective": {"kind": "sft"}})


def in_memory(config: Config, tokenizer: PreTrainedTokenizerFast) -> dict[str, TokenizedSet]:
    spec = config.data
    records = split_records(config)
    return {name: tokenize(part, tokenizer, spec.max_tokens, spec.overlong) for name, part in records.items()}


def assert_same(config: Config, store: Store, tokenizer: PreTrainedTokenizerFast) -> None:
    records, expected = split_records(config), in_memory(config, tokenizer)
    assert list(store.state["splits"]) == list(expected)
    counted = {}
    for name, data in expected.items():
        split = store.split(name)
        assert list(split.trees) == list(data.trees)
        assert (split.sha256, split.edges, split.dropped, split.cut) == (
            data.sha256,
            data.edges,
            data.dropped,
            data.cut,
        )
        assert split.prompts_with_edges == data.prompts_with_edges
        counted[name] = facts.tokens(
            data.dimensions, data.trees, tokenizer.unk_token_id, dropped=data.dropped, cut=data.cut
        )
    ends = frozenset[int]().union(*(c.ends for c in counted.values()))
    for name, about in store.state["splits"].items():
        found, expected_tokens = _counted(about, ends), replace(counted[name], ends=ends)
        assert {d for d, n in found.edges.items() if n} == {d for d, n in expected_tokens.edges.items() if n}
        assert replace(found, edges={}) == replace(expected_tokens, edges={})
    assert ends == set(store.state["ends"])
    told = facts.facts(records, {})
    assert told.errors == () and [facts.Fault(*f) for f in store.state["alike"]] == list(told.warnings)
    lines = dict.fromkeys(line for part in records.values() for read in part.reading for line in read.lines())
    assert store.state["reading"] == list(lines)
    weights = tuple(records["train"].records[tree.index].weight for tree in expected["train"].trees)
    if len(set(weights)) == 1:
        assert store.weights is None and store.state["splits"]["train"]["weights"] is None
    else:
        assert store.weights is not None and tuple(store.weights) == weights
        digest = hashlib.sha256(repr(weights).encode()).hexdigest()
        assert store.state["splits"]["train"]["weights"] == digest


SOURCES = CASES | CONVERSATIONS


def assert_refused_alike(config: Config, tokenizer: PreTrainedTokenizerFast) -> str:
    """What is said of it."""
    with pytest.raises(DataError) as expected:
        in_memory(config, tokenizer)
    with pytest.raises(DataError) as error:
        tokens(config, tokenizer)
    assert str(error.value) == str(expected.value)
    assert not [p for p in (config.output_dir / "tokens").glob("*") if p.is_dir()]
    return str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout(tmp_path: Path, make_tokenizer: Make, name: str) -> None:
    case = SOURCES[name]
    write(tmp_path, case.files)
    config, tokenizer = (
        recipe(tmp_path, train=str(tmp_path / case.source), map=case.map, **ALONE),
        make_tokenizer(CHATML),
    )
    assert_same(config, tokens(config, tokenizer), tokenizer)


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal(tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = REFUSED[name]
    write(tmp_path, case.content if isinstance(case.content, dict) else {"d.jsonl": case.content})
    monkeypatch.chdir(tmp_path)
    keys = dict(text.split("=", 1) if "=" in text else ("preset", text) for text in case.maps)
    try:
        config = recipe(tmp_path, train=case.source, map=keys or None, **ALONE)
    except ValueError:
        return  # refused before anything is read
    assert_refused_alike(config, make_tokenizer(CHATML))


@pytest.mark.parametrize("case", [c for c in BROKEN if "50 MB" not in c.id], ids=lambda c: c.id)
def test_every_malformed_file(tmp_path: Path, make_tokenizer: Make, case: Malformed) -> None:
    """File, row and column are named alike."""
    assert_refused_alike(recipe(tmp_path, train=str(place(case, tmp_path)), **ALONE), make_tokenizer(CHATML))


@pytest.mark.parametrize("kind", ["metaspace", "words", "punctuation"])
def test_every_tokenizer_that_loses_text(tmp_path: Path, make_tokenizer: Make, kind: str) -> None:
    write(tmp_path, {"d.jsonl": [pair("Is my plan good? It has  two\nlines.", "Yes.", "No.")]})
    tokenizer = make_tokenizer(CHATML)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer(kind)
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template=CHATML)
    assert_refused_alike(recipe(tmp_path, train=str(tmp_path / "d.jsonl"), **ALONE), tokenizer)


def test_records_that_a_tokenizer_garbles(tmp_path: Path, make_tokenizer: Make) -> None:
    write(tmp_path, {"d.jsonl": [*PAIRS[:5], PAIRS[5] | {"prompt": "Ist das groß?"}, PAIRS[6] | {"chosen": "ß."}]})
    tokenizer = make_tokenizer(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("ß", "ss")
    said = assert_refused_alike(recipe(tmp_path, train=str(tmp_path / "d.jsonl"), **ALONE), tokenizer)
    assert "d.jsonl:6" in said and "d.jsonl:7" in said


def test_shares_of_few_records(tmp_path: Path, make_tokenizer: Make) -> None:
    """No mask gives a share: all give it together; and where that is no record, it is said."""
    several = [pair(f"q {k}", "c", f"r {k}", attribute="ABCDEF"[k % 6]) for k in range(20)]
    write(tmp_path, {"d.jsonl": several, "few.jsonl": several[:4]})
    config, tokenizer = (
        recipe(tmp_path, train=str(tmp_path / "d.jsonl"), heldout="10%", dual="10%"),
        make_tokenizer(CHATML),
    )
    store = tokens(config, tokenizer)
    assert_same(config, store, tokenizer)
    assert len(store.split("dual").trees) == 2
    few = recipe(tmp_path / "few", train=str(tmp_path / "few.jsonl"), heldout="10%", dual="none")
    assert "10% of 4 training records are no record for the heldout split" in assert_refused_alike(few, tokenizer)


PAIRS = [pair(f"q {k // 2}", f"c {k}", f"r {k}", attribute="AE"[k % 2], weight=1 + k % 3) for k in range(40)]
RATED = [helpsteer2(f"q {k // 3}", f"text {k}", "4343"[: k % 3 + 1] + "23232"[k % 3 + 1 :]) for k in range(60)]


WARM = {"preset": "preference", "constant": "warm"}


def sources(folder: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Data of a recipe, and the parts that are read in memory."""
    write(
        folder,
        {
            "pairs.jsonl": PAIRS,
            "held.parquet": [pair(f"Q {k // 2}!", f"c {k}", f"r {k}", attribute="AE"[k % 2]) for k in range(8)],
            "safe.parquet": [saferlhf(f"s {k}", "zero", "one", k % 2, k % 3 % 2) for k in range(9)],
            "ultra.jsonl": [ultrafeedback(f"u {k}", ("a", "5555"), ("b", "4555"), ("c", "4-55")) for k in range(9)],
            "rated.jsonl": RATED,
            "pairs.jsonl.gz": gz(jsonl(PAIRS)),
            "shards/train-00000-of-00002.jsonl": PAIRS[:5],
            "shards/train-00001-of-00002.jsonl": PAIRS[5:],
            "sub/small/train.jsonl": PAIRS,
            "own.jsonl": [GENERAL | {"prompt": f"own {k}", "w": 1 + k % 4} for k in range(9)],
        },
    )
    datasets.Dataset.from_list(PAIRS).save_to_disk(str(folder / "saved"))
    many = [
        {"path": str(folder / "pairs.jsonl"), "weight": 0.3},
        {"path": str(folder / "safe.parquet"), "map": "pku_saferlhf"},
        {"path": str(folder / "ultra.jsonl"), "weight": 2},
    ]
    shares = {"heldout": "20%", "dual": "10%"}
    return {
        "own rows, weights by a map": ({"train": str(folder / "own.jsonl"), "map": {"weight": "w"}, **ALONE}, []),
        "one map, own rows among others": (
            {"train": [{"path": str(folder / n)} for n in ("own.jsonl", "pairs.jsonl")], "map": WARM, **ALONE},
            [],
        ),
        "maps of their own": (
            {
                "train": [
                    {"path": str(folder / "own.jsonl"), "map": {"weight": "w"}, "weight": 2},
                    {"path": str(folder / "pairs.jsonl"), "map": WARM},
                ],
                **shares,
            },
            [],
        ),
        "near repeats": ({"train": str(folder / "pairs.jsonl"), "heldout": str(folder / "held.parquet")}, []),
        "several, weighted": ({"train": many, **shares}, []),
        "one is compressed": ({"train": [*many, {"path": str(folder / "pairs.jsonl.gz")}], **ALONE}, ["train"]),
        "rated rows": ({"train": str(folder / "rated.jsonl"), **shares}, ["train"]),
        "shards": ({"train": str(folder / "shards"), **shares}, []),
        "subset": ({"train": f"{folder / 'sub'}:small@train", **shares}, []),
        "saved": ({"train": str(folder / "saved"), **shares}, ["train"]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "own rows, weights by a map",
        "one map, own rows among others",
        "maps of their own",
        "near repeats",
        "several, weighted",
        "one is compressed",
        "rated rows",
        "shards",
        "subset",
        "saved",
    ],
)
def test_which_sources_are_read_in_chunks(tmp_path: Path, make_tokenizer: Make, loaded: list[str], name: str) -> None:
    data, whole = sources(tmp_path)[name]
    config, tokenizer = recipe(tmp_path, **data), make_tokenizer(CHATML)
    store = tokens(config, tokenizer)
    assert loaded == whole
    assert_same(config, store, tokenizer)
    assert bool(store.state["alike"]) == ("repeats" in name)


def test_columns_that_only_later_rows_have(tmp_path: Path, make_tokenizer: Make, loaded: list[str]) -> None:
    """The beginning does not say what the columns are: then all of it is read at once, as it is without chunks."""
    write(tmp_path, {"d.jsonl": [{**row, "system": "Be plain."} if k > 5 else row for k, row in enumerate(PAIRS[:9])]})
    config, tokenizer = recipe(tmp_path, train=str(tmp_path / "d.jsonl"), **ALONE), make_tokenizer(CHATML)
    store = tokens(config, tokenizer)
    assert loaded == ["train"]
    assert_same(config, store, tokenizer)


def test_prompts_in_two_splits_are_refused_when_the_store_is_written(tmp_path: Path, make_tokenizer: Make) -> None:
    write(tmp_path, {"a.jsonl": PAIRS[:6], "b.jsonl": [pair("  q   1 ", "c", "r", attribute="A"), PAIRS[20]]})
    config = recipe(tmp_path, train=str(tmp_path / "a.jsonl"), heldout=str(tmp_path / "b.jsonl"), dual="none")
    with pytest.raises(DataError, match=r"b.jsonl:1, column prompt: also trained on \(a.jsonl:4\)"):
        tokens(config, make_tokenizer(CHATML))
    assert not [p for p in (tmp_path / "runs" / "tokens").glob("*") if p.is_dir()]


def test_prompts_of_the_same_tokens_are_in_one_split(tmp_path: Path, make_tokenizer: Make) -> None:
    """Other texts, of which the same is left when cut: refused in files of their own, kept together in a share."""
    ends = ["Is my plan {}? ".format("abcdefghij"[i]) * 40 for i in range(10)]
    asked = [f"{'Once' if i % 2 else 'Now'}, {ends[i // 2]}" for i in range(20)]
    answered = [pair(q, f"c{i}", f"r{i}", attribute="A") for i, q in enumerate(asked)]
    write(tmp_path, {"a.jsonl": answered[:6], "b.jsonl": [answered[8], answered[5], answered[9]], "c.jsonl": answered})
    tokenizer, cut = make_tokenizer(CHATML), {"overlong": "cut_prompt", "max_tokens": 60}
    config = recipe(tmp_path, train=str(tmp_path / "a.jsonl"), heldout=str(tmp_path / "b.jsonl"), dual="none", **cut)
    with pytest.raises(DataError, match=r"b.jsonl:2, column prompt: also trained on \(a.jsonl:[56]\)") as refused:
        tokens(config, tokenizer)
    assert "b.jsonl:1" not in str(refused.value) and "b.jsonl:3" not in str(refused.value)

    config = recipe(tmp_path, train=str(tmp_path / "c.jsonl"), heldout="30%", dual="20%", **cut)
    texts = {name: {r.prompt[-1].content[-20:] for r in d.records} for name, d in split_records(config).items()}
    assert texts["train"] & texts["heldout"], "by their texts alone they are torn apart"
    store = tokens(config, tokenizer)
    prompts = [{tree.prompt for tree in store.split(name).trees} for name in ("train", "dual", "heldout")]
    assert all(prompts) and sum(map(len, prompts)) == len(set().union(*prompts)) == 10


def test_tallies_add_up() -> None:
    every, parts = Tally(), [Tally() for _ in range(3)]
    for k, reason in enumerate(("b", "a", "b", "c", "a", "b")):
        for tally in (every, parts[k // 2]):
            tally.pairs += 1
            tally.skip(reason, f"row {k}")
    assert Tally.of(parts) == every and list(Tally.of(parts).skipped) == list(every.skipped)


def test_what_the_store_depends_on(tmp_path: Path, make_tokenizer: Make) -> None:
    write(tmp_path, {"a.jsonl": PAIRS, "b/train.jsonl": PAIRS})
    path, dated = str(tmp_path / "a.jsonl"), CHATML + "{# {{ strftime_now('%d') }} #}"
    first, second = make_tokenizer(dated), make_tokenizer(dated)
    first.today, second.today = date(2026, 1, 1), date(2026, 1, 2)
    stores = [
        tokens(recipe(tmp_path, train=train, map=map, **ALONE), tokenizer).folder
        for train, map, tokenizer in (
            (path, None, make_tokenizer(CHATML)),
            (path, "preference", make_tokenizer(CHATML)),
            (path, {"preset": "preference", "constant": "x"}, make_tokenizer(CHATML)),
            ([{"path": path, "weight": 2}], None, make_tokenizer(CHATML)),
            ([{"path": path}, {"path": path}], None, make_tokenizer(CHATML)),
            (str(tmp_path / "b"), None, make_tokenizer(CHATML)),
            (path, None, first),
            (path, None, second),
        )
    ]
    assert len(set(stores)) == len(stores)
    assert json.loads((stores[0] / "store.json").read_text())["splits"]["train"]["weights"]
