"""Records to token trees, with an audit of the chat template on every response."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from dpeer.data.chat import Chat, ChatOptions, Unsound
from dpeer.data.encode import Encoder, Ids
from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.order import edges
from dpeer.data.round_trip import Garbled, is_sampled, refuse_garbled, tokenizer_faults
from dpeer.data.schema import DataSet, Record
from dpeer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 128
"""Records whose texts are encoded in one call."""
PLAIN = ChatOptions()


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
    data: DataSet,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    overlong: Literal["drop", "cut_prompt"],
    options: ChatOptions = PLAIN,
) -> TokenizedSet:
    """Tokenize every record with the tokenizer's chat template.

    A response ends with the template's end-of-turn token; whitespace tokens that the template writes after it (the
    newline of ChatML) are left out, as the model never has to predict them. A record whose prompt + longest response
    exceeds `max_tokens` is dropped, or with `cut_prompt` loses the first prompt tokens (a leading BOS is kept); where
    the response alone leaves no room for a prompt the record is dropped all the same.

    Raises DataError when the template is missing, refuses a record, changes its text, or when the prompt's tokens are
    not a prefix of prompt + response (see `audit`), and when no record is left.
    """
    trees, faults = audit(data, tokenizer, options)
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


def audit(
    data: DataSet,
    tokenizer: PreTrainedTokenizerBase,
    options: ChatOptions = PLAIN,
    media: frozenset[int] = frozenset(),
) -> tuple[tuple[TokenTree, ...], tuple[Fault, ...]]:
    """Token trees of all sound records, without a length limit, and the faults of the others (see `Auditor`)."""
    found = Auditor(tokenizer, options, media)(data.records, data.dimensions)
    faults = tuple(f for f in found if isinstance(f, Fault))
    return tuple(t for t in found if isinstance(t, TokenTree)), faults


class Auditor:
    """Records to token trees by one tokenizer's chat template.

    Checked for every response: the rendered prompt and its token ids are a prefix of prompt + response; prompt and
    response text come through the template verbatim (outer whitespace apart); no text contains a control token; the
    response ends with an end-of-turn token, the template's or `options.end_of_turn`; BOS is not doubled; no two
    responses of a record have equal tokens; no token stands for an image or sound. Of the first records and of every
    tenth after them: the tokens decode to the rendered text. How a thought comes into a response: `Chat.whole`. Raises
    DataError without a chat template, and for a tokenizer that garbles any text; ConfigError for an end of turn that is
    no token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: ChatOptions = PLAIN,
        media: frozenset[int] = frozenset(),
    ) -> None:
        """media: ids that stand for images or sound."""
        if tokenizer.chat_template is None:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so prompt and "
                "response cannot be told apart; use an instruction-tuned model's tokenizer, or give a template by "
                "model.chat_template"
            )
        self.tokenizer, self.encode, self.chat = tokenizer, Encoder(tokenizer), Chat(tokenizer, options)
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.control, self.media = special | _own_end(self.chat), media

    def __call__(
        self, records: Sequence[Record], dimensions: tuple[str, ...], first: int = 0
    ) -> list[TokenTree | Fault]:
        """One for each record, in order; a tree's index is the record's place, counted from `first`."""
        batches = ((start, records[start : start + BATCH]) for start in range(0, len(records), BATCH))
        return [found for start, batch in batches for found in self._batch(batch, first + start, dimensions)]

    def _batch(self, batch: Sequence[Record], first: int, dimensions: tuple[str, ...]) -> Iterator[TokenTree | Fault]:
        steps = [_tree(first + i, r, dimensions, self.chat, self.control, self.media) for i, r in enumerate(batch)]
        found: list[Any] = [_advance(step, None) for step in steps]
        asking = [i for i, texts in enumerate(found) if not isinstance(texts, Unsound)]
        with tokenizer_faults(self.tokenizer):
            encoded = self.encode([found[i] for i in asking])
        for i, ids in zip(asking, encoded, strict=True):
            found[i] = _advance(steps[i], ids)
        for record, tree in zip(batch, found, strict=True):
            yield Fault(record.source, tree.column, tree.message) if isinstance(tree, Unsound) else tree


Steps = Generator[list[str], list[Ids], "TokenTree"]


def _advance(step: Steps, ids: list[Ids] | None) -> list[str] | TokenTree | Unsound:
    """The texts that it asks the ids of, then its tree; or what is wrong with the record."""
    try:
        return next(step) if ids is None else step.send(ids)
    except StopIteration as done:
        tree: TokenTree = done.value
        return tree
    except Unsound as unsound:
        return unsound


def _own_end(chat: Chat) -> dict[str, int]:
    """`data.end_of_turn` and its id. ConfigError: it is not one token of the tokenizer."""
    token, tokenizer = chat.options.end_of_turn, chat.tokenizer
    if token is None:
        return {}
    ids = tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        known = ", ".join(sorted(t.content for t in tokenizer.added_tokens_decoder.values() if t.special))
        raise ConfigError(
            f"data.end_of_turn {token!r} must be one token of {tokenizer.name_or_path or 'the tokenizer'}, and is "
            f"{len(ids)}, or unknown; its control tokens are {excerpt(known, 200)}"
        )
    return {token: ids[0]}


def _tree(
    index: int,
    record: Record,
    dimensions: tuple[str, ...],
    chat: Chat,
    control: dict[str, int],
    media: frozenset[int],
) -> Steps:
    """Yields prompt and prompt + response as texts, is sent their ids, and returns the tree. Raises Unsound."""
    tokenizer, beginnings = chat.tokenizer, {c[0] for c in control}
    for column, text in _texts(record):
        if any(b in text for b in beginnings) and (token := next((c for c in control if c in text), None)):
            raise Unsound(column, f"the text contains {token!r}, a control token of this tokenizer; remove it")
    prompt_text = chat.prompt(record)
    names = [response_name(record, k) for k in range(len(record.responses))]
    texts = [prompt_text]
    for k, name in enumerate(names):
        try:
            texts.append(chat.whole(record, k, prompt_text))
        except Unsound as unsound:
            raise Unsound(unsound.column or name, unsound.message) from unsound
    prompt, *fulls = yield texts
    bos = tokenizer.bos_token_id
    if bos is not None and prompt[:2] == (bos, bos):
        raise Unsound("prompt", f"the chat template writes the BOS token {tokenizer.bos_token!r} twice")
    stops = set(control.values()) - {tokenizer.unk_token_id}
    responses = tuple(_response(prompt, full, name, tokenizer, stops) for name, full in zip(names, fulls, strict=True))
    for k, ids in enumerate(responses):
        if (first := responses.index(ids)) < k:
            raise Unsound(names[k], f"same tokens as {names[first]}: {excerpt(record.responses[k].text)}")
    bare = next((ids for r, ids in zip(record.responses, responses, strict=True) if not r.extra), None)
    if bare and bare[0] in stops and prompt_text == chat.render(record, generate=False):
        raise Unsound(
            "prompt",
            "the chat template ignores add_generation_prompt, so the answer's header "
            f"{_show(bare, 0, tokenizer)} would be trained as part of the response; give a template that "
            "writes it there as well by model.chat_template",
        )
    for name, ids in zip(("prompt", *names), (prompt, *responses), strict=True):
        if seen := media.intersection(ids):
            token = f"token {min(seen)} ({str(tokenizer.convert_ids_to_tokens(min(seen)))!r})"
            raise Unsound(name, f"{token} stands for an image or sound, and only text is trained; remove it")
    if is_sampled(index):
        for name, full, text in zip(names, fulls, texts[1:], strict=True):
            try:
                with tokenizer_faults(tokenizer):
                    refuse_garbled(full, text, tokenizer)
            except Garbled as garbled:
                raise Unsound(name, str(garbled)) from garbled
    rank = {d: i for i, d in enumerate(dimensions)}
    tree_edges = tuple((rank[e.dimension], e.better, e.worse) for e in edges(record))
    return TokenTree(index, prompt, responses, tree_edges, record.golden, record.mask)


def _response(prompt: Ids, full: Ids, column: str, tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> Ids:
    if full[: len(prompt)] != prompt:
        at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
        raise Unsound(
            column,
            f"prompt tokens are not a prefix of prompt + response; from token {at}: "
            f"{_show(prompt, at, tokenizer)} alone, {_show(full, at, tokenizer)} with the response. "
            "Mend white space that starts the response, or the template's generation prompt, by model.chat_template",
        )
    end = len(full)
    while end > len(prompt) and full[end - 1] not in stops and not str(tokenizer.decode([full[end - 1]])).strip():
        end -= 1
    if end == len(prompt) or full[end - 1] not in stops:
        raise Unsound(
            column,
            f"the chat template writes no end-of-turn token after the response (it ends with "
            f"{_show(full, end - 1, tokenizer)}), so a trained model would not stop; set data.end_of_turn to the token "
            "at which the model stops (GLM: '<|user|>'), or give a template that writes one by model.chat_template",
        )
    return full[len(prompt) : end]


def _cut_prompt(tree: TokenTree, max_tokens: int, bos: int | None) -> TokenTree:
    head = tree.prompt[:1] if tree.prompt[:1] == (bos,) else ()
    room = max_tokens - max(len(r) for r in tree.responses) - len(head)
    if room < 1:
        return tree
    return TokenTree(tree.index, head + tree.prompt[-room:], tree.responses, tree.edges, tree.golden, tree.mask)


def _texts(record: Record) -> list[tuple[str, str]]:
    """Of messages and responses, with the thoughts and calls beside them."""
    prompt = [("prompt", text) for m in record.prompt for text in (m.content, m.extra)]
    tools = [("tools", record.tools)]
    spoken = [(response_name(record, k), text) for k, r in enumerate(record.responses) for text in (r.text, r.extra)]
    return prompt + tools + spoken


def response_name(record: Record, k: int) -> str:
    """Response k in messages: "response 2 (fails A)"."""
    fails = record.responses[k].fails
    return f"response {k + 1} (" + (f"fails {'+'.join(sorted(fails))}" if fails else "golden") + ")"


def _show(ids: Ids, at: int, tokenizer: PreTrainedTokenizerBase) -> str:
    window = ids[at : at + 3]
    return " ".join(f"{tokenizer.decode([i])!r}({i})" for i in window) or "nothing"
