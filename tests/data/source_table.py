"""A table of sources as people bring them, with the records expected by hand, and what cannot be attributed and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpeer.config_sources import Map
from dpeer.data import map as reasons
from tests.data.layouts import (
    Rows,
    assistant,
    gz,
    helpsteer2,
    helpsteer3,
    jsonl,
    pair,
    parquet,
    saferlhf,
    ultrafeedback,
    user,
    zst,
)

Prompt = str | tuple[str, ...]
Expected = tuple[Prompt, str, dict[str, str]]
"""(prompt: its text, or role: text of each message; golden; reject -> what it fails)"""

ATTRIBUTE = [
    pair("Is my plan good?", "It has a gap.", "It is perfect!", attribute="trust"),
    pair("I am sad.", "I hear you.", "Noted.", attribute="empathy"),
]
FROM_ATTRIBUTE: list[Expected] = [
    ("Is my plan good?", "It has a gap.", {"It is perfect!": "trust"}),
    ("I am sad.", "I hear you.", {"Noted.": "empathy"}),
]
TALK = [user("Hi"), assistant("Hello."), user("Sum 1 and 1.")]
TALKED = ("user: Hi", "assistant: Hello.", "user: Sum 1 and 1.")
GENERAL = {
    "prompt": "q",
    "mask": ["A", "E"],
    "responses": [{"text": "g", "fails": []}, {"text": "a", "fails": ["A"]}, {"text": "e", "fails": ["E"]}],
}
OF_GENERAL: list[Expected] = [("q", "g", {"a": "A", "e": "E"})]
NAMED = Map(golden="good", reject="bad", prompt="ask", constant="tone")


@dataclass(frozen=True)
class Case:
    """files: by name, in a folder; source: a path below it. skipped: reason -> comparisons."""

    files: dict[str, bytes | Rows]
    source: str
    expected: list[Expected]
    map: Map | None = None
    skipped: dict[str, int] = field(default_factory=dict)


def preset(name: str, **more: Any) -> Map:
    return Map(preset=name, **more)


def one(content: bytes | Rows, expected: list[Expected], map: Map | None = None, **skipped: int) -> Case:
    """A case of a single JSONL file."""
    by_reason = {getattr(reasons, name): count for name, count in skipped.items()}
    return Case({"d.jsonl": content}, "d.jsonl", expected, map, by_reason)


CASES = {
    "chosen, rejected, attribute": one(ATTRIBUTE, FROM_ATTRIBUTE),
    "the same as CSV": Case(
        {"d.csv": b'prompt,chosen,rejected,attribute\n"Is it, well?",Yes.,No!,trust\nHow?,So.,Never.,tone\n'},
        "d.csv",
        [("Is it, well?", "Yes.", {"No!": "trust"}), ("How?", "So.", {"Never.": "tone"})],
    ),
    "the same as Parquet": Case({"d.parquet": ATTRIBUTE}, "d.parquet", FROM_ATTRIBUTE),
    "the same as a JSON list": Case(
        {"d.json": b'[{"prompt": "q", "chosen": "c", "rejected": "r", "dimension": "tone"}]'},
        "d.json",
        [("q", "c", {"r": "tone"})],
    ),
    "no dimension at all": one([pair("q", "c", "r")], [("q", "c", {"r": "preference"})]),
    "a dimension for the whole file": one(
        [pair("q", "c", "r")], [("q", "c", {"r": "calm"})], preset("preference", constant="calm")
    ),
    "only the dimension's name": one([pair("q", "c", "r")], [("q", "c", {"r": "calm"})], Map(constant="calm")),
    "attribute as a list of one": one(
        [
            pair("q", "c", "r", attribute=["E"]),
            pair("p", "c", "r", attribute=["E", "T"]),
            pair("o", "c", "r", attribute=""),
        ],
        [("q", "c", {"r": "E"})],
        SEVERAL=1,
        UNNAMED=1,
    ),
    "messages after a prompt of messages": one(
        [pair(TALK, [assistant("2")], [assistant("3")], attribute="sum")], [(TALKED, "2", {"3": "sum"})]
    ),
    "conversations with the prompt inside": one(
        [{"chosen": [*TALK, assistant("2")], "rejected": [*TALK, assistant("3")]}],
        [(TALKED, "2", {"3": "preference"})],
    ),
    "conversations that repeat the prompt column": one(  # HuggingFaceH4/ultrafeedback_binarized
        [
            pair(
                "What?",
                [user("What?"), assistant("That.")],
                [user("What?"), assistant("No.")],
                prompt_id="1",
                messages=[user("What?"), assistant("That.")],
                score_chosen=8.0,
                score_rejected=3.0,
            )
        ],
        [("What?", "That.", {"No.": "preference"})],
    ),
    "conversations that part too early": one(
        [
            {"chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]},
            {
                "chosen": [user("q"), assistant("x"), user("p"), assistant("c")],
                "rejected": [user("q"), assistant("y"), user("p"), assistant("r")],
            },
        ],
        [("q", "c", {"r": "preference"})],
        PARTED=1,
    ),
    "messages as JSON text in a CSV": Case(
        {
            "d.csv": b"chosen,rejected\n"
            b'"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""c""}]",'
            b'"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""r""}]"\n'
        },
        "d.csv",
        [("q", "c", {"r": "preference"})],
    ),
    "from and value": one(  # ShareGPT files
        [
            {
                "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "c"},
                "rejected": {"from": "gpt", "value": "r"},
            }
        ],
        [(("system: Be kind.", "user: q"), "c", {"r": "preference"})],
    ),
    "system, question": one(  # Intel/orca_dpo_pairs
        [
            {"system": "Be brief.", "question": "q", "chosen": "c", "rejected": "r"},
            {"system": "", "question": "p", "chosen": "c", "rejected": "r"},
        ],
        [(("system: Be brief.", "user: q"), "c", {"r": "preference"}), ("p", "c", {"r": "preference"})],
    ),
    "instruction, input": one(  # Alpaca-like files
        [
            {"instruction": "Add.", "input": "1 1", "chosen": "2", "rejected": "3"},
            {"instruction": "Say hi.", "input": "", "chosen": "hi", "rejected": "no"},
        ],
        [("Add.\n1 1", "2", {"3": "preference"}), ("Say hi.", "hi", {"no": "preference"})],
    ),
    "columns that not all rows have": one(
        [
            {"instruction": "Say hi.", "chosen": "hi", "rejected": "no"},
            {"instruction": "Add.", "input": "1 1", "chosen": "2", "rejected": "3", "attribute": "sum"},
        ],
        [("Add.\n1 1", "2", {"3": "sum"})],
        UNNAMED=1,
    ),
    "Human and Assistant": one(  # Anthropic/hh-rlhf
        [
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Sum 1 and 1.\n\nAssistant: 2",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Sum 1 and 1.\n\nAssistant: 3",
            },
            {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant:"},
        ],
        [(TALKED, "2", {"3": "preference"})],
        EMPTY=1,
    ),
    "equal and empty responses": one(
        [pair("q", "c", "c "), pair("p", "c", None), pair("o", "c", "r")],
        [("o", "c", {"r": "preference"})],
        SAME=1,
        EMPTY=1,
    ),
    "columns of any name": one([{"ask": "q", "good": "c", "bad": "r"}], [("q", "c", {"r": "tone"})], NAMED),
    "UltraFeedback": one(
        [  # of the six pairs: a-b and a-d in two at once, a-c helpfulness, b-c two, b-d honesty, c-d two
            ultrafeedback("q", ("a", "5555"), ("b", "5454"), ("c", "5553"), ("d", "5354")),
        ],
        [("q", "a", {"c": "helpfulness"}), ("q", "b", {"d": "honesty"})],
        MIXED=4,
    ),
    "UltraFeedback, gap 2": one(
        [ultrafeedback("q", ("a", "5555"), ("b", "5455"), ("c", "3555"), ("d", "555-"))],
        [("q", "a", {"c": "instruction_following"})],
        preset("ultrafeedback", gap=2),
        CLOSE=1,
        MIXED=1,
        UNRATED=3,
    ),
    "UltraFeedback, tie 1": one(
        [ultrafeedback("q", ("a", "5555"), ("b", "4453"))],
        [("q", "a", {"b": "helpfulness"})],
        preset("ultrafeedback", gap=2, tie=1),
    ),
    "UltraFeedback, one completion": one(
        [ultrafeedback("p", ("a", "5555")), ultrafeedback("q", ("a", "2222"), ("b", "2232"), ("c", "2222"))],
        [("q", "b", {"a": "truthfulness", "c": "truthfulness"})],
        ALONE=1,
        EQUAL=1,
    ),
    "HelpSteer 2": one(
        [
            helpsteer2("q", "a", "44422"),
            helpsteer2("q", "b", "34422"),
            helpsteer2("p", "a", "44423"),
            helpsteer2("p", "b", "44422"),
            helpsteer2("o", "a", "34332"),
            helpsteer2("o", "b", "44332"),
            helpsteer2("n", "a", "33333"),
            helpsteer2("n", "b", "43343"),
        ],
        [("q", "a", {"b": "helpfulness"}), ("o", "b", {"a": "helpfulness"})],
        OTHER=1,
        MIXED=1,
    ),
    "HelpSteer 2, turns": one(
        [
            helpsteer2("Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nSum 1 and 1.", t, d)
            for t, d in (("2", "44444"), ("3", "40444"))
        ],
        [(TALKED, "2", {"3": "correctness"})],
    ),
    "HelpSteer 2, verbosity too": one(
        [helpsteer2("q", "a", "44423"), helpsteer2("q", "b", "44422")],
        [("q", "a", {"b": "verbosity"})],
        preset("helpsteer2", dimensions=("verbosity",)),
    ),
    "HelpSteer 3": one(
        [
            helpsteer3(TALK, "2", "3", -2),
            helpsteer3([user("q")], "one", "two", 1, "code"),
            helpsteer3([user("p")], "one", "two", 0),
        ],
        [(TALKED, "2", {"3": "preference"}), ("q", "two", {"one": "preference"})],
        TIED=1,
    ),
    "HelpSteer 3, by domain, clear ones": one(
        [helpsteer3([user("q")], "one", "two", 3, "code"), helpsteer3([user("p")], "one", "two", -1, "stem")],
        [("q", "two", {"one": "code"})],
        preset("helpsteer3", dimension="domain", gap=2),
        CLOSE=1,
    ),
    "PKU-SafeRLHF": one(
        [saferlhf("q", "zero", "one", better=0, safer=1), saferlhf("p", "zero", "one", better=1, safer=1)],
        [
            ("q", "zero", {"one": "helpfulness"}),
            ("q", "one", {"zero": "safety"}),
            ("p", "one", {"zero": "helpfulness"}),
            ("p", "one", {"zero": "safety"}),
        ],
    ),
    "PKU-SafeRLHF, one dimension": one(
        [{"prompt": "q", "response_0": "zero", "response_1": "one", "better_response_id": 1}],
        [("q", "one", {"zero": "helpfulness"})],
    ),
    "a response that is rated twice": one(
        [helpsteer2("q", t, d) for t, d in (("a", "44444"), ("b", "34444"), ("a ", "44444"))],
        [("q", "a", {"b": "helpfulness"})],
        REPEATED=1,
    ),
    "a spreadsheet of attributes": Case(
        {"d.csv": b"ask,answer,warm,true\nq,a,1,1\nq,b,0,1\nq,c,1,0\np,a,1,\np,b,0,1\n"},
        "d.csv",
        [("q", "a", {"b": "warm", "c": "true"})],
        Map(prompt="ask", response="answer", ratings=("warm", "true")),
        {reasons.MIXED: 1, reasons.UNRATED: 1},
    ),
    "decimal ratings": one(
        [{"prompt": "q", "response": t, "warm": w, "true": 4.1} for t, w in (("a", 4.3), ("b", 3.3), ("c", 2.4))],
        [("q", "a", {"b": "warm", "c": "warm"})],
        Map(response="response", ratings=("warm", "true")),
        CLOSE=1,
    ),
    "completions of any name": one(
        [{"ask": "q", "answers": [{"text": "a", "marks": {"warm": 3}}, {"text": "b", "marks": {"warm": 1}}]}],
        [("q", "a", {"b": "warm"})],
        Map(prompt="ask", completions="answers", response="text", ratings={"warm": "marks.warm"}),
    ),
    "general form": one([GENERAL], OF_GENERAL),
    "PersonaKnob": Case(
        {"d.csv": b'mask,prompt,golden,reject_A,reject_E\n"[""E"",""A""]",q,g,a,e\n'}, "d.csv", OF_GENERAL
    ),
    "gzip": Case({"d.jsonl.gz": gz(jsonl(ATTRIBUTE))}, "d.jsonl.gz", FROM_ATTRIBUTE),
    "zstd": Case({"d.jsonl.zst": zst(jsonl(ATTRIBUTE))}, "d.jsonl.zst", FROM_ATTRIBUTE),
    "CSV in gzip": Case(
        {"d.csv.gz": gz(b"prompt,chosen,rejected\nq,c,r\n")}, "d.csv.gz", [("q", "c", {"r": "preference"})]
    ),
    "shards": Case(
        {
            "d/train-00000-of-00002.jsonl": ATTRIBUTE[:1],
            "d/train-00001-of-00002.jsonl": ATTRIBUTE[1:],
            "d/test-00000-of-00001.jsonl": [pair("t", "c", "r")],
        },
        "d",
        FROM_ATTRIBUTE,
    ),
    "a clone of a hub data set": Case(
        {
            "d/README.md": b"---\nlicense: mit\n---\n",
            "d/data/train-00000-of-00002-ab12cd34.parquet": parquet(ATTRIBUTE[:1]),
            "d/data/train-00001-of-00002-ab12cd34.parquet": parquet(ATTRIBUTE[1:]),
        },
        "d",
        FROM_ATTRIBUTE,
    ),
    "a clone with subsets": Case(
        {"d/pairs/train.jsonl.gz": gz(jsonl(ATTRIBUTE)), "d/edits/train.jsonl.gz": gz(b"{}")}, "d:pairs", FROM_ATTRIBUTE
    ),
    "another split": Case(
        {"d/train.jsonl": [pair("q", "c", "r")], "d/train_prefs.jsonl": ATTRIBUTE}, "d@train_prefs", FROM_ATTRIBUTE
    ),
    "a subset's split": Case(
        {"d/data/pairs/validation.jsonl": ATTRIBUTE, "d/data/pairs/train.jsonl": [pair("q", "c", "r")]},
        "d:pairs@validation",
        FROM_ATTRIBUTE,
    ),
}
