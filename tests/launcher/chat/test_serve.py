"""Side by side: what is asked of whom, hidden names, votes that are kept and that a fit reads, and who gets in."""

from __future__ import annotations

import csv
import json
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.testclient import TestClient

from dpeer.errors import ConfigError
from dpeer.eval.backends.config import Served
from dpeer.eval.config import EvalConfig, Generation
from dpeer.eval.elsewhere.importer import import_ratings
from dpeer.eval.irt.encode import encode
from dpeer.launcher.chat.app import Room, application
from dpeer.launcher.chat.scores import Judges
from dpeer.launcher.chat.votes import Vote, Votes
from dpeer.launcher.chat.who import talkers
from tests.launcher.chat.streaming import KEY, Endpoint, endpoint

NAMES = ("base", "peer")


def served(name: str, at: Endpoint, path: str = "") -> Served:
    return Served(name=name, path=path or f"{name}-model", backend="openai", base_url=at.url, api_key_env="CHAT_KEY")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("CHAT_KEY", KEY)
    with endpoint() as at:
        yield at


@pytest.fixture
def room(there: Endpoint, tmp_path: Path) -> Room:
    models = [served(name, there) for name in NAMES]
    return Room(models, Generation(), Votes(tmp_path / "votes.csv"), voter="ann", dimensions=("A", "T"))


class Visitor:
    """A browser without a screen."""

    def __init__(self, room: Room) -> None:
        self.client = TestClient(application(room), base_url="http://127.0.0.1:1", raise_server_exceptions=True)
        self.token = room.token

    def __enter__(self) -> Visitor:
        self.client.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.__exit__(*exc)

    def post(self, path: str, expect: int = 200, **content: Any) -> Any:
        came = self.client.post(f"/{self.token}/{path}", json=content)
        assert came.status_code == expect, came.text
        return (
            came.json() if expect != 200 or path != "answer" else [json.loads(line) for line in came.text.splitlines()]
        )

    def talk(self, text: str, models: tuple[str, ...] = NAMES, blind: bool = True, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.post("ask", text=text, models=list(models), blind=blind, **more)
        for column in range(found["columns"]):
            events = self.post("answer", talk=found["talk"], column=column)
            assert events[-1] == {"end": "stop"}
            found[column] = "".join(event.get("text", "") for event in events)
        return found


def test_each_model_continues_its_own_conversation(room: Room, there: Endpoint) -> None:
    with Visitor(room) as visitor:
        first = visitor.talk("Is 2 + 2 = 5?", blind=False)
        assert first["names"] == list(NAMES)
        assert [first[k] for k in (0, 1)] == [f"{n}-model answers turn 1: <b>not bold</b>" for n in NAMES]
        again = visitor.talk("Sure?", talk=first["talk"])
        assert again["talk"] == first["talk"] and "turn 2" in again[0]
        told = [body["messages"] for body in there.asked if body["model"] == "peer-model"][-1]
        assert [m["role"] for m in told] == ["user", "assistant", "user"] and told[1]["content"] == first[1]
        exported = visitor.post("export", talk=first["talk"])
        assert [c["model"] for c in exported["columns"]] == list(NAMES)
        assert [m["content"] for m in exported["columns"][1]["messages"]] == [
            "Is 2 + 2 = 5?",
            first[1],
            "Sure?",
            again[1],
        ]
        assert "names are hidden" in visitor.post("vote", 400, talk=first["talk"], dimension="A", winner=0)["error"]


def test_names_stay_hidden_until_all_votes_are_in(room: Room) -> None:
    with Visitor(room) as visitor:
        orders = set()
        for k in range(12):
            found = visitor.talk(f"Question {k}?")
            assert found["names"] is None
            assert all("model" not in c for c in visitor.post("export", talk=found["talk"])["columns"])
            one = visitor.post("vote", talk=found["talk"], dimension="A", winner=0)
            assert one["names"] is None and one["voted"] == ["A"]
            assert "already" in visitor.post("vote", 400, talk=found["talk"], dimension="A", winner=1)["error"]
            both = visitor.post("vote", talk=found["talk"], dimension="T", winner="tie")
            assert both["names"] == [found[c].split("-model")[0] for c in (0, 1)]
            orders.add(tuple(both["names"]))
        assert len(orders) == 2
        seen = visitor.talk("Another?")
        assert sorted(visitor.post("reveal", talk=seen["talk"])["names"]) == sorted(NAMES)
        assert "hidden" in visitor.post("vote", 400, talk=seen["talk"], dimension="A", winner=0)["error"]
    rows = list(csv.DictReader(room.votes.path.open(encoding="utf-8")))
    assert len(rows) == 24 and {row["judge"] for row in rows} == {"ann"}
    for row in rows:
        assert row["response"].startswith(row["model"]) and row["other_response"].startswith(row["other_model"])
        assert row["winner"] == ("tie" if row["dimension"] == "T" else row["model"])


def test_votes_are_ratings_that_a_fit_reads(room: Room) -> None:
    with Visitor(room) as visitor:
        for k in range(10):
            found = visitor.talk(f"Question {k % 5}?")
            better = next(c for c in (0, 1) if found[c].startswith("peer"))
            for dimension in room.dimensions:
                visitor.post("vote", talk=found["talk"], dimension=dimension, winner=better)
    ratings = import_ratings(room.votes.path, humans=["ann"])
    assert len(ratings) == 20 and ratings["other_model"].notna().all()
    encoded = encode(ratings)
    assert len(encoded.comparisons) == 20 and set(encoded.models) == set(NAMES) and encoded.people == ("ann",)
    won = pd.Series(ratings["score"]).where(ratings["model"] == "peer", -ratings["score"])
    assert (won == 1).all()
    assert len(encoded.items) == 5


def test_a_vote_is_on_disk_before_it_counts(room: Room, tmp_path: Path) -> None:
    with Visitor(room) as visitor:
        found = visitor.talk("One?")
        visitor.post("vote", talk=found["talk"], dimension="A", winner=1)
        path = room.votes.path
        text = path.read_text()
        path.write_text(text + text.splitlines()[1][:40])  # a second vote, cut by a kill
        assert len(Votes(path).rows) == 1
        votes = Votes(path)
        votes.path = tmp_path / "votes.csv" / "x"  # the disk is gone
        room.votes = votes
        assert "not kept" in visitor.post("vote", 507, talk=found["talk"], dimension="T", winner=1)["error"]
        assert votes.counts == {"A": 1}
        assert visitor.post("ask", 400, talk=found["talk"], text="")["error"].startswith("text")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="another table than votes"):
        Votes(other)


def vote(item: str, dimension: str = "A", sample: int | None = None, text: str = "yes, no\n") -> Vote:
    return Vote(item, dimension, "ann", *NAMES, NAMES[0], sample, text, "a", "b", "2026-01-01T00:00:00+00:00")


def test_two_servers_add_to_one_table(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    one, other = Votes(path), Votes(path)
    found = [votes.add(vote("x")) for votes in (one, other, one)]
    assert found == [0, 1, 2]  # three conversations, whose replies are not each other's
    assert other.add(vote("x", "T", 1)) == 1
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    assert [row["sample"] for row in rows] == ["0", "1", "2", "1"] and one.add(vote("y")) == 0
    assert len(Votes(path).rows) == 5 == sum(one.counts.values())


def test_a_row_that_was_cut_swallows_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    Votes(path).add(vote("x"))
    whole = path.read_bytes()
    line = whole.partition(b"\n")[2].replace(b"yes", "\u00fcber".encode())
    for cut in range(1, len(whole), 5):
        path.write_bytes(whole[:cut])
        Votes(path).add(vote("y"))
        assert [row["item"] for row in Votes(path).rows][-1] == "y"
    for cut in range(1, len(line), 3):
        path.write_bytes(whole + line[:cut])
        votes = Votes(path)
        votes.add(vote("y"))
        rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
        assert {len(row) for row in rows} == {len(rows[0])} and rows[-1][0] == "y" and len(rows) in (3, 4)


def test_a_vote_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    votes = Votes(path)
    votes.add(vote("x"))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))  # the file may grow by half a row
    try:
        with pytest.raises(OSError):
            votes.add(vote("y", text="z" * 200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and votes.counts == {"A": 1}
    votes.add(vote("y", text="z" * 200_000))
    assert len(Votes(path).rows) == 2


def test_two_clicks_are_one_vote_and_one_conversation_one_sample(room: Room) -> None:
    with Visitor(room) as visitor, ThreadPoolExecutor(4) as clicks:
        visitor.talk("Again?")
        visitor.post("vote", talk=visitor.talk("Again?")["talk"], dimension="A", winner=0)
        found = visitor.talk("Again?")
        content = {"talk": found["talk"], "dimension": "T", "winner": 0}
        came = [
            clicks.submit(visitor.client.post, f"/{room.token}/vote", json=content | {"dimension": d})
            for d in ("T", "T", "A", "T")
        ]
        assert sorted(c.result().status_code for c in came) == [200, 200, 400, 400]
    kept = [(row["dimension"], row["sample"]) for row in room.votes.rows]
    assert kept[0] == ("A", "0") and sorted(kept[1:]) == [("A", "1"), ("T", "1")]


def test_what_another_tab_was_told_is_no_reply(room: Room, there: Endpoint) -> None:
    there.slow.add("peer-model")
    with Visitor(room) as visitor, ThreadPoolExecutor(2) as tabs:
        found = visitor.post("ask", text="Hello", models=["peer"], blind=False)
        both = [tabs.submit(visitor.post, "answer", talk=found["talk"], column=0) for _ in range(2)]
        while len(there.asked) < 2:
            time.sleep(0.01)
        there.go.set()
        ends = [tab.result()[-1] for tab in both]
        assert sorted(end.get("error", "")[:34] for end in ends) == ["", "this message was answered meanwhile"[:34]]
        assert len(visitor.post("export", talk=found["talk"])["columns"][0]["messages"]) == 2


def test_a_reply_that_breaks_off_is_no_reply(room: Room, there: Endpoint) -> None:
    there.broken.add("peer-model")
    with Visitor(room) as visitor:
        found = visitor.post("ask", text="Hello", models=list(NAMES), blind=False)
        ends = [visitor.post("answer", talk=found["talk"], column=k)[-1] for k in (0, 1)]
        assert ends[0] == {"end": "stop"} and "broke off" in ends[1]["error"]
        assert "not all models" in visitor.post("ask", 400, talk=found["talk"], text="More")["error"]
        there.broken.clear()
        assert visitor.post("answer", talk=found["talk"], column=1)[-1] == {"end": "stop"}
        kept = "peer-model answers turn 1: <b>not bold</b>"  # told again, not asked again
        asked = len(there.asked)
        assert visitor.post("answer", talk=found["talk"], column=1) == [{"text": kept}, {"end": "stop"}]
        assert len(there.asked) == asked
        visitor.talk("More", talk=found["talk"])


def test_an_endpoint_that_refuses_is_told_without_the_key(there: Endpoint, tmp_path: Path) -> None:
    room = Room([served("x", there, "refused")], Generation(), Votes(tmp_path / "v.csv"))
    with Visitor(room) as visitor:
        found = visitor.post("ask", text="Hello", models=["x"], blind=False)
        end = visitor.post("answer", talk=found["talk"], column=0)[-1]
        assert "401" in end["error"] and KEY not in end["error"] and "<key>" in end["error"]


def test_a_model_that_only_reasoned_has_not_answered(there: Endpoint, tmp_path: Path) -> None:
    room = Room([served("x", there, "thinker")], Generation(), Votes(tmp_path / "v.csv"))
    with Visitor(room) as visitor:
        found = visitor.post("ask", text="Hello", models=["x"], blind=False)
        end = visitor.post("answer", talk=found["talk"], column=0)[-1]
        assert "reasoning" in end["error"] and "--max-tokens" in end["error"]
        assert len(visitor.post("export", talk=found["talk"])["columns"][0]["messages"]) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://[::bad/v1"])
def test_nobody_at_an_address_is_told_and_ends_nothing(url: str, tmp_path: Path) -> None:
    model = Served.model_construct(name="x", path="m", backend="openai", base_url=url, api_key_env="K", request={})
    room = Room([model], Generation(), Votes(tmp_path / "v.csv"))
    with Visitor(room) as visitor:
        found = visitor.post("ask", text="Hello", models=["x"], blind=False)
        assert visitor.post("answer", talk=found["talk"], column=0)[-1]["error"]


def test_a_key_that_is_none_is_told(there: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KEY", "k\u00e9y")
    room = Room([served("x", there)], Generation(), Votes(tmp_path / "v.csv"))
    with Visitor(room) as visitor:
        found = visitor.post("ask", text="Hello", models=["x"], blind=False)
        assert "CHAT_KEY" in visitor.post("answer", talk=found["talk"], column=0)[-1]["error"]


def test_only_this_machine_with_the_token_gets_in(room: Room) -> None:
    with Visitor(room) as visitor:
        client, token = visitor.client, room.token
        page = client.get(f"/{token}/")
        assert page.status_code == 200 and "NONCE" not in page.text
        guard = page.headers["content-security-policy"]
        assert "default-src 'none'" in guard and "unsafe" not in guard
        for path in ("/", "/state", "/wrong/", f"/{token[:-1]}/", f"/{token}/../etc"):
            assert client.get(path).status_code == 404
        assert client.get(f"/{token}/", headers={"host": "evil.example:80"}).status_code == 404
        assert client.get(f"/{token}/ask").status_code == 405
        assert client.post(f"/{token}/ask", content=b"x" * (1 << 20 | 1)).status_code == 413
        assert client.post(f"/{token}/ask", content=iter([b"x"] * 9)).status_code == 413  # in chunks, of any length
        for content in (
            b"",
            b"[]",
            b"{",
            b'{"text": 3}',
            b'{"text": "x", "models": ["nobody"]}',
            b'{"text": "x"}',
            b'{"text": "x", "models": 5}',
        ):
            assert client.post(f"/{token}/ask", content=content).status_code == 400
        assert client.post(f"/{token}/vote", json={"talk": "gone", "dimension": "A"}).status_code == 400
        assert not room.votes.path.exists()


def test_scores_come_from_the_configured_judges(there: Endpoint, tmp_path: Path) -> None:
    judge = {"name": "j", "path": "judge", "backend": "openai", "base_url": there.url, "api_key_env": "CHAT_KEY"}
    config = EvalConfig.model_validate({"name": "e", "judges": [judge], "judging": {"mode": "structured"}})
    judges = Judges.of(config)
    room = Room([served(n, there) for n in NAMES], Generation(), Votes(tmp_path / "v.csv"), judges=judges)
    assert room.dimensions == tuple(judges.rubric.dimensions)
    with Visitor(room) as visitor:
        found = visitor.talk("Is it?", blind=False)
        rows = visitor.post("scores", talk=found["talk"], column=1)["scores"]
        assert {row["dimension"] for row in rows} == set(room.dimensions)
        assert all(row["score"] == 4 and row["why"] == "it commits" and row["status"] == "ok" for row in rows)
        asked = [body for body in there.asked if body["model"] == "judge"]
        assert len(asked) == len(rows)
        assert [body["messages"][-1]["content"].count("\npeer-model answers turn 1: ") for body in asked] == [1] * len(
            rows
        )


def test_who_is_meant_is_told_from_the_name(tmp_path: Path) -> None:
    found = talkers(["a=m/x@http://h:1/v1", "m/x@http://h:1/v1", "owner/name"])
    assert [(m.name, m.path, m.backend) for m in found] == [
        ("a", "m/x", "openai"), ("x", "m/x", "openai"), ("name", "owner/name", "vllm")
    ]  # fmt: skip
    model = tmp_path / "my model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert [m.name for m in talkers([str(model), str(model)])] == ["my-model", "my-model-2"]
    run = tmp_path / "run"
    run.mkdir()
    line = {"step": 1, "dimensions": {}, "constraints": {}}
    (run / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    (run / "manifest.json").write_text(json.dumps({"config": {"model": {"path": "m/base", "revision": "abc"}}}))
    with pytest.raises(ConfigError, match="dpeer export"):
        talkers([str(run)])
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    assert [(m.name, m.path, m.revision) for m in talkers([str(run), str(run)])] == [
        ("base", "m/base", "abc"), ("run", str(run / "export"), None), ("run-2", str(run / "export"), None)
    ]  # fmt: skip
    assert [m.name for m in talkers([str(run)], base=False)] == ["run"]
    for wrong in ("nothing here", str(tmp_path / "absent"), "ftp://x@y", "m@http://h:99999/v1", "m@http://[::h/v1"):
        with pytest.raises(ConfigError):
            talkers([wrong])
    with pytest.raises(ConfigError) as refused:
        talkers(["m@http://u:secret@h/v1"])
    assert "secret" not in str(refused.value)
