"""Cases of `source_table` in which texts hold turns, or columns are not what they are called."""

from __future__ import annotations

from dpeer.config_sources import Map
from tests.data.layouts import assistant, helpsteer2, pair, user
from tests.data.source_table import TALKED, Case, Expected, one, preset

MARKED: list[Expected] = [
    ("hi there", "yo", {"no": "preference"}),
    (TALKED, "2", {"3": "preference"}),
    ("q", "c", {"r": "preference"}),
    ("p", "c", {"r": "preference"}),
]
CONVERSATIONS: dict[str, Case] = {
    "Human and Assistant in the prompt": one(  # Dahoas/full-hh-rlhf; the last one has whole transcripts beside it
        [
            pair("\n\nHuman: hi there\n\nAssistant:", " yo", " no"),
            pair("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Sum 1 and 1.\n\nAssistant:", " 2", " 3"),
            pair("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant: c", "\n\nHuman: q\n\nAssistant: r"),
            pair("p", "\n\nHuman: p\n\nAssistant: c", "\n\nHuman: p\n\nAssistant: r"),
        ],
        MARKED,
    ),
    "the same by its preset": one(
        [
            pair("\n\nHuman: hi there\n\nAssistant:", " yo", " no"),
            pair("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Sum 1 and 1.\n\nAssistant:", "2", "\n\nAssistant: 3"),
        ],
        MARKED[:2],
        preset("hh_rlhf"),
    ),
    "Human and Assistant out of order": one(  # Anthropic/hh-rlhf has such rows
        [
            {"chosen": f"\n\nHuman: q{talk} c", "rejected": "\n\nHuman: q\n\nAssistant: r"}
            for talk in (
                "\n\nAssistant:",
                "\n\nAssistant:\n\nHuman: p\n\nAssistant:",
                "\n\nAssistant: a\n\nAssistant:",
                "\n\nHuman: p\n\nAssistant:",
                "\n\nAssistant: a\n\nHuman:",
            )
        ],
        [("q", "c", {"r": "preference"})],
        MALFORMED=4,
    ),
    "marked prompts out of order": one(
        [pair(f"\n\nHuman: q{end}", "c", "r") for end in ("\n\nAssistant:", "\n\nAssistant: a", "\n\nHuman: p")]
        + [{"prompt": "\n\nHuman:\n\nAssistant:", "chosen": "c", "rejected": "r"}],
        [("q", "c", {"r": "preference"})],
        MALFORMED=3,
    ),
    "rated prompts out of order": one(
        [
            helpsteer2("q", "a", "44444"),
            helpsteer2("q", "b", "34444"),
            helpsteer2("q<extra_id_1>User\np", "a", "44444"),
        ],
        [("q", "a", {"b": "helpfulness"})],
        MALFORMED=1,
    ),
    "a prompt column with gaps": one(
        [
            pair("", [user("q"), assistant("c")], [user("q"), assistant("r")]),
            pair("p", [user("p"), assistant("c")], [user("p"), assistant("r")]),
        ],
        [("q", "c", {"r": "preference"}), ("p", "c", {"r": "preference"})],
    ),
    "weights that are missing": one(
        [pair("q", "c", "r", weight=None), pair("p", "c", "r", weight=2)],
        [("q", "c", {"r": "preference"}), ("p", "c", {"r": "preference"})],
    ),
    "two columns of the prompt beside conversations that hold it": one(  # mlabonne/orpo-dpo-mix-40k
        [pair("q", [user("q"), assistant("c")], [user("q"), assistant("r")], question="q")],
        [("q", "c", {"r": "preference"})],
    ),
    "columns that are not meant": one(
        [pair("x", [user("q"), assistant("c")], [user("q"), assistant("r")], system="gpt-4")],
        [("q", "c", {"r": "preference"})],
        Map(prompt="none", system="none"),
    ),
    "a column that is called like one of dpeer's own": one(
        [pair("q", "c", "r", reject_reason="rude", responses=["c", "r"])], [("q", "c", {"r": "preference"})]
    ),
}
