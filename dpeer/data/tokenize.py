"""Records to token trees, with an audit of the chat template on every response."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from dpeer.data.encode import Encoder, Ids
from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.order import edges
from dpeer.data.round_trip import Garbled, clock, is_sampled, refuse_garbled, tokenizer_faults
from dpeer.data.schema import DataSet, Message, Record
from dpeer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 128
"""Records whose texts are encoded in one call."""


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One record in tokens: the prompt once, every response once.

    index: position in `DataSet.records`. edges: (dimension index, better response, worse response).
    golden: index of the response that fails nothing. mask: active dimensions.
    """

    index: int
    prompt: Ids
    responses: tuple[Ids, ...]
    edges: tuple[tuple[int, int, int], ...]
    golden: int
    mask: tuple[str, ...]

    @property
    def response_tokens(self) -> int:
        return sum(map(len, self.responses))

    @property
    def longest(self) -> int:
        """Tokens of prompt + longest response."""
        return len(self.prompt) + max(len(r) for r in self.responses)


@dataclass(frozen=True)
class TokenizedSet:
    """All trees that fit, in record order. dropped / cut: records left out / with a shortened prompt."""

    dimensions: tuple[str, ...]
    trees: Sequence[TokenTree]
    dropped: int
    cut: int

    @cached_property
    def sha256(self) -> str:
        """Hash (hex) of the dimensions and of every tree's tokens and edges."""
        digest = hashlib.sha256("\0".join(self.dimensions).encode())
        for tree in self.trees:
            digest.update(array("q", flat(tree)).tobytes())
        return digest.hexdigest()

    @cached_property
    def edges(self) -> dict[str, int]:
        """Preference edges of each dimension."""
        counts = Counter(d for tree in self.trees for d, _, _ in tree.edges)
        return {name: counts[d] for d, name in enumerate(self.dimensions)}

    @cached_property
    def prompts_with_edges(self) -> tuple[int, ...]:
        """[D]: prompts that have edges of each dimension."""
        counts = Counter(d for d, _ in {(edge[0], tree.prompt) for tree in self.trees for edge in tree.edges})
        return tuple(counts[d] for d in range(len(self.dimensions)))


def flat(tree: TokenTree) -> list[int]:
    """A tree's tokens and edges as one list: every part behind its length."""
    values = [len(tree.prompt), *tree.prompt, len(tree.responses)]
    for response in tree.responses:
        values += [len(response), *response]
    return [*values, len(tree.edges), *(n for edge in tree.edges for n in edge)]


def unflat(values: Sequence[int], index: int, golden: int, mask: tuple[str, ...]) -> TokenTree:
    """The tree of which `flat` made the values."""
    at = 1 + values[0]
    prompt, count, responses = tuple(values[1:at]), values[at], []
    at += 1
    for _ in range(count):
        end = at + 1 + values[at]
        responses.append(tuple(values[at + 1 : end]))
        at = end
    edges = values[at + 1 :]
    triples = tuple(zip(edges[::3], edges[1::3], edges[2::3], strict=True))
    return TokenTree(index, prompt, tuple(responses), triples, golden, mask)


def tokenize(
    data: DataSet, tokenizer: PreTrainedTokenizerBase, max_tokens: int, overlong: Literal["drop", "cut_prompt"]
) -> TokenizedSet:
    """Tokenize every record with the tokenizer's chat template.

    A response ends with the template's end-of-turn token; whitespace tokens that the template writes after it (the
    newline of ChatML) are left out, as the model never has to predict them. A record whose prompt + longest response
    exceeds `max_tokens` is dropped, or with `cut_prompt` loses the first prompt tokens (a leading BOS is kept); where
    the response alone leaves no room for a prompt the record is dropped all the same.

    Raises DataError when the template is missing, refuses a record, changes its text, or when the prompt's tokens are
    not a prefix of prompt + response (see `audit`), and when no record is left.
    """
    trees, faults = audit(data, tokenizer)
    if faults:
        raise data_error(f"chat template of {tokenizer.name_or_path or 'the tokenizer'}", faults)
    fitted = [fit(tree, max_tokens, overlong, tokenizer.bos_token_id) for tree in trees]
    kept = tuple(tree for tree in fitted if tree)
    if not kept:
        raise none_fits([tree.longest for tree in trees], max_tokens, overlong)
    cut = sum(short is not None and short is not tree for short, tree in zip(fitted, trees, strict=True))
    return TokenizedSet(data.dimensions, kept, len(trees) - len(kept), cut)


def fit(tree: TokenTree, max_tokens: int, overlong: str, bos: int | None) -> TokenTree | None:
    """The tree as it is trained on: whole, with a cut prompt, or not at all."""
    if tree.longest > max_tokens and overlong == "cut_prompt":
        tree = _cut_prompt(tree, max_tokens, bos)
    return tree if tree.longest <= max_tokens else None


def none_fits(longest: Sequence[int], max_tokens: int, overlong: str) -> DataError:
    """longest: tokens of prompt + longest response, of each record."""
    return DataError(
        f"none of the {len(longest)} records fits into max_tokens {max_tokens}: the shortest has "
        f"{min(longest, default=0)} tokens (overlong: {overlong}); raise data.max_tokens"
    )


def audit(data: DataSet, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[TokenTree, ...], tuple[Fault, ...]]:
    """Token trees of all sound records, without a length limit, and the faults of the others (see `Auditor`)."""
    found = Auditor(tokenizer)(data.records, data.dimensions)
    faults = tuple(f for f in found if isinstance(f, Fault))
    return tuple(t for t in found if isinstance(t, TokenTree)), faults


class Auditor:
    """Records to token trees by one tokenizer's chat template.

    Checked for every response: the rendered prompt and its token ids are a prefix of prompt + response; prompt and
    response text come through the template verbatim (outer whitespace apart); no text contains a control token; the
    response ends with an end-of-turn token; BOS is not doubled; no two responses of a record have equal tokens. Of the
    first records and of every tenth after them: the tokens decode to the rendered text. Raises DataError without a
    chat template, and for a tokenizer that garbles any text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so prompt and "
                "response cannot be told apart; use an instruction-tuned model's tokenizer or set "
                "tokenizer.chat_template"
            )
        self.tokenizer, self.encode = tokenizer, Encoder(tokenizer)
        self.control = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}

    def __call__(
        self, records: Sequence[Record], dimensions: tuple[str, ...], first: int = 0
    ) -> list[TokenTree | Fault]:
        """One for each record, in order; a tree's index is the record's place, counted from `first`."""
        batches = ((start, records[start : start + BATCH]) for start in range(0, len(records), BATCH))
        return [found for start, batch in batches for found in self._batch(batch, first + start, dimensions)]

    def _batch(self, batch: Sequence[Record], first: int, dimensions: tuple[str, ...]) -> Iterator[TokenTree | Fault]:
        steps = [_tree(first + i, r, dimensions, self.tokenizer, self.control) for i, r in enumerate(batch)]
        found: list[Any] = [_advance(step, None) for step in steps]
        asking = [i for i, texts in enumerate(found) if not isinstance(texts, _Unsound)]
        with tokenizer_faults(self.tokenizer):
            encoded = self.encode([found[i] for i in asking])
        for i, ids in zip(asking, encoded, strict=True):
            found[i] = _advance(steps[i], ids)
        for record, tree in zip(batch, found, strict=True):
            yield Fault(record.source, tree.column, tree.message) if isinstance(tree, _Unsound) else tree


Steps = Generator[list[str], list[Ids], "TokenTree"]


def _advance(step: Steps, ids: list[Ids] | None) -> list[str] | TokenTree | _Unsound:
    """The texts that it asks the ids of, then its tree; or what is wrong with the record."""
    try:
        return next(step) if ids is None else step.send(ids)
    except StopIteration as done:
        tree: TokenTree = done.value
        return tree
    except _Unsound as unsound:
        return unsound


class _Unsound(Exception):
    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


def _tree(
    index: int,
    record: Record,
    dimensions: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    control: dict[str, int],
) -> Steps:
    """Yields prompt and prompt + response as texts, is sent their ids, and returns the tree. Raises _Unsound."""
    beginnings = {c[0] for c in control}
    for column, text in _texts(record):
        if any(b in text for b in beginnings) and (token := next((c for c in control if c in text), None)):
            raise _Unsound(column, f"the text contains {token!r}, a control token of this tokenizer; remove it")
    prompt_text = _render(record.prompt, tokenizer, generate=True)
    for message in record.prompt:
        if message.content.strip() not in prompt_text:
            raise _Unsound(
                "prompt",
                f"the chat template drops or alters the {message.role} message {excerpt(message.content)}; "
                f"rendered {excerpt(prompt_text)}",
            )
    texts = [prompt_text]
    for k, response in enumerate(record.responses):
        full_text = _render((*record.prompt, Message("assistant", response.text)), tokenizer, generate=False)
        if full_text.startswith(prompt_text) and response.text.strip() not in full_text[len(prompt_text) :]:
            raise _Unsound(
                response_name(record, k),
                f"the chat template drops or alters the response {excerpt(response.text)}; "
                f"rendered {excerpt(full_text[len(prompt_text) :])}",
            )
        texts.append(full_text)
    prompt, *fulls = yield texts
    bos = tokenizer.bos_token_id
    if bos is not None and prompt[:2] == (bos, bos):
        raise _Unsound("prompt", f"the chat template writes the BOS token {tokenizer.bos_token!r} twice")
    stops = set(control.values()) - {tokenizer.unk_token_id}
    names = [response_name(record, k) for k in range(len(fulls))]
    responses = tuple(_response(prompt, full, name, tokenizer, stops) for name, full in zip(names, fulls, strict=True))
    for k, ids in enumerate(responses):
        if (first := responses.index(ids)) < k:
            raise _Unsound(names[k], f"same tokens as {names[first]}: {excerpt(record.responses[k].text)}")
    if responses[0][0] in stops and prompt_text == _render(record.prompt, tokenizer, generate=False):
        raise _Unsound(
            "prompt",
            "the chat template ignores add_generation_prompt, so the answer's header "
            f"{_show(responses[0], 0, tokenizer)} would be trained as part of the response; write it there as well",
        )
    if is_sampled(index):
        for name, full, text in zip(names, fulls, texts[1:], strict=True):
            try:
                with tokenizer_faults(tokenizer):
                    refuse_garbled(full, text, tokenizer)
            except Garbled as garbled:
                raise _Unsound(name, str(garbled)) from garbled
    rank = {d: i for i, d in enumerate(dimensions)}
    tree_edges = tuple((rank[e.dimension], e.better, e.worse) for e in edges(record))
    return TokenTree(index, prompt, responses, tree_edges, record.golden, record.mask)


def _response(prompt: Ids, full: Ids, column: str, tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> Ids:
    if full[: len(prompt)] != prompt:
        at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
        raise _Unsound(
            column,
            f"prompt tokens are not a prefix of prompt + response; from token {at}: "
            f"{_show(prompt, at, tokenizer)} alone, {_show(full, at, tokenizer)} with the response. "
            "Mend the template's generation prompt, or white space that starts the response",
        )
    end = len(full)
    while end > len(prompt) and full[end - 1] not in stops and not str(tokenizer.decode([full[end - 1]])).strip():
        end -= 1
    if end == len(prompt) or full[end - 1] not in stops:
        raise _Unsound(
            column,
            f"the chat template writes no end-of-turn token after the response (it ends with "
            f"{_show(full, end - 1, tokenizer)}), so a trained model would not stop; add one to the assistant turn",
        )
    return full[len(prompt) : end]


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generate: bool) -> str:
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=generate, tokenize=False, strftime_now=clock(tokenizer)
        )
        return str(text)
    except Exception as error:  # a template is a program
        roles = ", ".join(m.role for m in messages)
        raise _Unsound("prompt", f"the chat template refuses the roles {roles}: {error}") from error


def _cut_prompt(tree: TokenTree, max_tokens: int, bos: int | None) -> TokenTree:
    head = tree.prompt[:1] if tree.prompt[:1] == (bos,) else ()
    room = max_tokens - max(len(r) for r in tree.responses) - len(head)
    if room < 1:
        return tree
    return TokenTree(tree.index, head + tree.prompt[-room:], tree.responses, tree.edges, tree.golden, tree.mask)


def _texts(record: Record) -> list[tuple[str, str]]:
    prompt = [("prompt", m.content) for m in record.prompt]
    return prompt + [(response_name(record, k), r.text) for k, r in enumerate(record.responses)]


def response_name(record: Record, k: int) -> str:
    """Response k in messages: "response 2 (fails A)"."""
    fails = record.responses[k].fails
    return f"response {k + 1} (" + (f"fails {'+'.join(sorted(fails))}" if fails else "golden") + ")"


def _show(ids: Ids, at: int, tokenizer: PreTrainedTokenizerBase) -> str:
    window = ids[at : at + 3]
    return " ".join(f"{tokenizer.decode([i])!r}({i})" for i in window) or "nothing"
