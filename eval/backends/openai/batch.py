"""Calls in files: the batch API of OpenAI and of those that copy it. Half the price, within a day, each call once.

A batch is known before it exists: its file of requests is uploaded, the file's id is written down, and only then is
the batch created. A run that was killed in between finds the batch by that file, and by a tag, among those that the
endpoint lists, and creates one only where there is none.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from dpeer.errors import ConfigError, DpeerError
from dpeer.eval.backends.config import Farm
from dpeer.eval.backends.openai.client import Unreachable, lowered
from dpeer.eval.backends.openai.endpoint import BATCH, LONGEST_PAUSE_S, TIMEOUT_S, Endpoint, OpenAI
from dpeer.eval.backends.openai.faults import Fault, fault, words
from dpeer.eval.backends.openai.parameters import Dialect, body
from dpeer.eval.backends.openai.replies import Reply, parse, pause_s
from dpeer.eval.backends.openai.states import ENDED, GRACE_S, UNDER_WAY, end, files, status
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Call, Job, Say, Useless, characters, refused
from dpeer.eval.store.parts import content_id
from dpeer.integrity import read_state, write_state

MOST_CALLS, MOST_BYTES = 10_000, 50_000_000
"""Requests and bytes of one file; OpenAI takes 50,000 and 200 MB."""
POLL_S = 15.0
"""Pause between two looks at a batch; it grows to LONGEST_PAUSE_S."""
SENDS = 6
"""Times that one HTTP request is sent before the endpoint counts as gone."""
ROUNDS = 3
"""Batches that a call is put into, should they leave it out or end before its turn."""
AT_ONCE = 8
"""Most batches under way."""
FORGET = (
    "It names batches that may still cost money: restore it from a copy, or delete it to ask for their calls again."
)
URL = "/v1/chat/completions"
Record = dict[str, Any]
"""place (endpoint, model and mode), file, tag, batch (None: perhaps not created yet), ids of the calls, and the dialect
in which they were asked."""
Again = Callable[[], dict[str, Any] | None]


class OpenAIBatch(OpenAI):
    """An endpoint's batch API; what answers is the model of backend `openai` at the same address."""

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(partial(answers, timeout_s=min(TIMEOUT_S, farm.timeout_s), say=say))


BACKENDS.register("openai-batch", OpenAIBatch())


def answers(
    job: Job, calls: Iterable[Call], timeout_s: float = TIMEOUT_S, say: Say = lambda line: None
) -> Iterator[list[Answer]]:
    """Answers batch by batch, those of an earlier run's batches first.

    The first new call goes alone and at once, so that no file of thousands is refused for a parameter. Raises as
    `endpoint.answers` does.
    """
    batches = Batches(job, timeout_s, say)
    for record in list(batches.open):
        if job.pending is not None and job.pending.isdisjoint(record["ids"]):
            yield from batches.settled(record)
        else:
            yield from batches.handed_out(record, {i: Call(i, i, ()) for i in record["ids"]})
    batches.again.clear()  # what those left out is among the calls, with its text
    source = iter(calls)
    for call in _uncovered(source, batches.covered):
        yield [batches.endpoint.ask(call)]
        break
    under_way: list[tuple[Record, dict[str, Call]]] = []
    while True:
        while len(under_way) < AT_ONCE and (chunk := batches.chunk(source)):
            under_way.append((batches.created(chunk), chunk))
        if not under_way:
            return
        yield from batches.handed_out(*under_way.pop(0))


def _uncovered(source: Iterator[Call], covered: set[str]) -> Iterator[Call]:
    for call in source:
        if call.id not in covered:
            yield call


class Batches:
    """The batches of one job at one endpoint, and the file in which their ids stay until all answers are handed out."""

    def __init__(self, job: Job, timeout_s: float, say: Say) -> None:
        if job.memory is None:
            raise ConfigError(f"{job.served.name}: backend openai-batch needs a folder in which it remembers batches")
        self.job, self.say, self.memory = job, say, job.memory
        self.endpoint = Endpoint(job, timeout_s, say)
        self.place = content_id(base_url=job.served.base_url, path=job.served.path, mode=job.method.mode)
        self.records: list[Record] = read_state(self.memory, FORGET)["batches"] if self.memory.exists() else []
        self.covered: set[str] = set()
        self.again: list[Call] = []
        self.tries: Counter[str] = Counter()

    @property
    def open(self) -> list[Record]:
        """Batches of this endpoint and model that were not handed out to the end."""
        return [record for record in self.records if record["place"] == self.place]

    def chunk(self, source: Iterator[Call]) -> dict[str, Call]:
        """Calls of the next file: those to be asked again, then new ones as far as the source gives them now."""
        chosen: dict[str, Call] = {}
        size = 0
        for call in chain(self.again, _uncovered(source, self.covered)):
            chosen[call.id] = call
            size += 4 * characters(call)
            if len(chosen) >= MOST_CALLS or size >= MOST_BYTES:
                break
        self.again = [call for call in self.again if call.id not in chosen]
        return chosen

    def created(self, calls: dict[str, Call]) -> Record:
        lines = [
            {"custom_id": i, "method": "POST", "url": URL, "body": body(self.job, call, self.endpoint.dialect)}
            for i, call in calls.items()
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        upload = {"file": (f"{self.place}.jsonl", content, "application/jsonl")}
        file = self._id(self._call("POST", "/files", files=upload, data={"purpose": "batch"}), "the upload of a file")
        record: Record = {
            "place": self.place,
            "file": file,
            "tag": content_id(file=file, ids=list(calls), place=self.place),  # the same calls may need a second batch
            "batch": None,
            "ids": list(calls),
            "dialect": asdict(self.endpoint.dialect) | {"dropped": sorted(self.endpoint.dialect.dropped)},
        }
        self.records.append(record)
        self._remember()
        self._create(record)
        return record

    def close(self, record: Record) -> None:
        self.records.remove(record)
        self._remember()

    def handed_out(self, record: Record, calls: dict[str, Call]) -> Iterator[list[Answer]]:
        """Answers of a batch once it has ended. Calls that it leaves out are kept to be asked again."""
        if record["batch"] is None:
            self._create(record)
        found, fatal = self._fetched(self._ended(record), calls, _dialect(record))
        self.covered.update(answer.id for answer in found)
        try:
            for first in range(0, len(found), BATCH):
                yield found[first : first + BATCH]
        except Useless:  # else the next run would get the same answers
            self.close(record)
            raise
        self.close(record)
        if fatal:
            raise fatal
        missing = [call for i, call in calls.items() if i not in self.covered]
        self.tries.update(call.id for call in missing)
        if hopeless := [call for call in missing if self.tries[call.id] >= ROUNDS]:
            yield [refused(call, f"{ROUNDS} batches left this call out", None, None) for call in hopeless]
        self.again += [call for call in missing if self.tries[call.id] < ROUNDS]

    def settled(self, record: Record) -> Iterator[list[Answer]]:
        """What the calls of an earlier recipe took, once their batch has ended: for the books, not for the table."""
        name = record["batch"] or ((made := self._listed(record)) and self._id(made, "a listed batch"))
        if name:
            batch = self._call("GET", f"/batches/{name}")
            if status(batch) not in ENDED:
                return
            calls = {i: Call(i, i, ()) for i in record["ids"]}
            replies = [(i, came) for i, came in self._lines(batch, calls).items() if isinstance(came, Reply)]
            yield [
                Answer(
                    i,
                    came.finish,
                    prompt_tokens=came.prompt_tokens,
                    cached_tokens=came.cached_tokens,
                    output_tokens=came.output_tokens or 0,
                )
                for i, came in replies
            ]
        self.close(record)

    def _create(self, record: Record) -> None:
        """Create the batch of an uploaded file, unless an earlier try did."""
        request = {
            "input_file_id": record["file"],
            "endpoint": URL,
            "completion_window": "24h",
            "metadata": {"dpeer": record["tag"]},
        }
        made = self._listed(record) or self._call("POST", "/batches", again=lambda: self._listed(record), json=request)
        record["batch"] = self._id(made, "the creation of a batch")
        self._remember()
        self.say(
            f"{self.job.served.name}: {len(record['ids']):,} calls are in batch {record['batch']}. This run may be "
            "stopped; the same command fetches the answers."
        )

    def _listed(self, record: Record) -> dict[str, Any] | None:
        """The batch of this file, among those that the endpoint knows."""
        after = None
        while True:
            page = self._call("GET", "/batches", params={"limit": 100} | ({"after": after} if after else {}))
            listed = [batch for batch in page.get("data") or () if isinstance(batch, dict)]
            for batch in listed:
                tag = (batch.get("metadata") or {}).get("dpeer")
                if batch.get("input_file_id") == record["file"] or tag == record["tag"]:
                    return batch
            last = listed[-1].get("id") if listed else None
            if not page.get("has_more") or not last or last == after:
                return None
            after = last

    def _ended(self, record: Record) -> dict[str, Any]:
        """The batch, once it has ended."""
        pause, strange, began = POLL_S, 0, time.time()
        while True:
            batch = self._call("GET", f"/batches/{record['batch']}")
            state = status(batch)
            if state in ENDED:
                return batch
            strange = 0 if state in UNDER_WAY else strange + 1
            if strange >= SENDS:
                raise self._stuck(record, f"has the state {batch.get('status')!r}, which says neither end nor progress")
            if time.time() > end(batch, began) + GRACE_S:
                raise self._stuck(record, f"is {state!r} after the time in which it was to end")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    def _stuck(self, record: Record, what: str) -> DpeerError:
        return self.endpoint.client.stopped(
            f"knows a batch, {record['batch']}, that {self.endpoint.client.clean(what)} (delete "
            f"{self.memory} to ask for its calls again)"
        )

    def _lines(self, batch: dict[str, Any], calls: dict[str, Call]) -> dict[str, Reply | Fault]:
        """What came for each call, in the order of the calls; of several lines an answer counts first."""
        came: dict[str, Reply | Fault] = {}
        for file in files(batch):
            for line in self._text(f"/files/{file}/content").splitlines():
                call, found = _line(line, calls)
                if call and (call.id not in came or (isinstance(found, Reply) and isinstance(came[call.id], Fault))):
                    came[call.id] = found
        return {i: came[i] for i in calls if i in came}

    def _fetched(
        self, batch: dict[str, Any], calls: dict[str, Call], dialect: Dialect
    ) -> tuple[list[Answer], DpeerError | None]:
        """Answers of a batch that has ended, and what ends the run once they are handed out."""
        found: list[Answer] = []
        fatal: DpeerError | None = None
        for i, came in self._lines(batch, calls).items():
            try:
                if answer := self._answer(calls[i], came, dialect):
                    found.append(answer)
            except DpeerError as error:
                fatal = fatal or error
        if not files(batch):
            said = words(batch.get("errors")) or f"status {batch.get('status')}"
            fatal = self.endpoint.client.stopped(
                f"gave up batch {batch.get('id')} ({self.endpoint.client.clean(said)})"
            )
        return found, fatal

    def _answer(self, call: Call, came: Reply | Fault, dialect: Dialect) -> Answer | None:
        """None: worth asking again. `dialect`: in which it was asked."""
        if isinstance(came, Reply):
            return self.endpoint.answer(call, came)
        sent = body(self.job, call, dialect)
        if came.kind in ("passing", "empty", "busy") or self.endpoint.adapts(dialect, came, sent):
            return None
        return self.endpoint.fault(call, came, sent)

    def _call(self, method: str, path: str, again: Again | None = None, **content: Any) -> dict[str, Any]:
        """A JSON object from the endpoint. `again`: asked before a second try, which may find that the first worked."""
        value = _json(self._text(path, method, again, **content))
        return value if isinstance(value, dict) else {}

    def _text(self, path: str, method: str = "GET", again: Again | None = None, **content: Any) -> str:
        client = self.endpoint.client
        for attempt in range(SENDS):
            if attempt and again and (made := again()):
                return json.dumps(made)
            try:
                reply = client.send(method, path, **content)
            except Unreachable as error:
                said = f"cannot be reached ({error})"
                pause = 0.0
            else:
                if reply.status_code < 300:
                    return reply.text
                failed = fault(
                    reply.status_code, _json(reply.text) or reply.text[:300], pause_s(lowered(reply.headers))
                )
                if failed.kind == "absent":
                    raise client.stopped(
                        f"answers {failed.status} to {path} ({client.clean(failed.message)}): it has no batch API "
                        f"(take backend: openai), or no longer has what {self.memory} names (delete that file)"
                    )
                if failed.kind not in ("busy", "passing"):
                    raise client.refuses(failed)
                said, pause = f"answers {failed.status} ({client.clean(failed.message)})", failed.pause_s
            time.sleep(max(pause, min(2.0**attempt, 30.0)))
        raise client.stopped(said)

    def _id(self, value: dict[str, Any], what: str) -> str:
        name = value.get("id")
        if not isinstance(name, str) or not name:
            raise self.endpoint.client.stopped(f"answers {what} without an id ({self.endpoint.client.clean(value)})")
        return name

    def _remember(self) -> None:
        write_state(self.memory, {"batches": self.records})


def _dialect(record: Record) -> Dialect:
    kept = record.get("dialect")
    return Dialect(**(kept | {"dropped": frozenset(kept["dropped"])})) if kept else Dialect()


def _line(line: str, calls: dict[str, Call]) -> tuple[Call | None, Reply | Fault]:
    """A line of an output or error file: the call that it answers, and how."""
    value = _json(line)
    fields = value if isinstance(value, dict) else {}
    name = fields.get("custom_id")
    call = calls.get(name) if isinstance(name, str) else None
    response = fields.get("response")
    if isinstance(response, dict) and response.get("body"):
        code = response.get("status_code")
        return call, parse(code if isinstance(code, int) else 200, {}, json.dumps(response["body"]).encode())
    return call, fault(None, fields.get("error") or "a line without an answer")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
