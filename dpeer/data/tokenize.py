"""Records to token trees, with an audit of the chat template on every response."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from dpeer.data.chat import Chat, ChatOptions, Unsound
from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.order import edges
from dpeer.data.round_trip import Garbled, is_sampled, refuse_garbled, tokenizer_faults
from dpeer.data.schema import DataSet, Record
from dpeer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
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
    trees: tuple[TokenTree, ...]
    dropped: int
    cut: int

    @cached_property
    def sha256(self) -> str:
        """Hash (hex) of the dimensions and of every tree's tokens and edges."""
        digest = hashlib.sha256("\0".join(self.dimensions).encode())
        for tree in self.trees:
            flat = [len(tree.prompt), *tree.prompt, len(tree.responses)]
            for response in tree.responses:
                flat += [len(response), *response]
            flat += [len(tree.edges), *(n for edge in tree.edges for n in edge)]
            digest.update(array("q", flat).tobytes())
        return digest.hexdigest()


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
    kept = []
    cut = 0
    for tree in trees:
        if tree.longest > max_tokens and overlong == "cut_prompt":
            shorter = _cut_prompt(tree, max_tokens, tokenizer.bos_token_id)
            cut += shorter.longest <= max_tokens
            tree = shorter
        if tree.longest <= max_tokens:
            kept.append(tree)
    if not kept:
        shortest = min((tree.longest for tree in trees), default=0)
        raise DataError(
            f"none of the {len(trees)} records fits into max_tokens {max_tokens}: the shortest has {shortest} tokens "
            f"(overlong: {overlong}); raise data.max_tokens"
        )
    return TokenizedSet(data.dimensions, tuple(kept), len(trees) - len(kept), cut)


def audit(
    data: DataSet, tokenizer: PreTrainedTokenizerBase, options: ChatOptions = PLAIN
) -> tuple[tuple[TokenTree, ...], tuple[Fault, ...]]:
    """Token trees of all sound records, without a length limit, and the faults of the others.

    Checked for every response: the rendered prompt and its token ids are a prefix of prompt + response; prompt and
    response text come through the template verbatim (outer whitespace apart); no text contains a control token; the
    response ends with an end-of-turn token, the template's or `options.end_of_turn`; BOS is not doubled; no two
    responses of a record have equal tokens. Of the first records and of every tenth after them: the tokens decode to
    the rendered text. How a thought comes into a response: `Chat.whole`. Raises DataError without a chat template, and
    for a tokenizer that garbles any text; ConfigError for an end of turn that is no token.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so prompt and response "
            "cannot be told apart; use an instruction-tuned model's tokenizer, or give a template by "
            "model.chat_template"
        )
    chat = Chat(tokenizer, options)
    control = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | _own_end(chat)
    trees = []
    faults = []
    for index, record in enumerate(data.records):
        try:
            trees.append(_tree(index, record, data.dimensions, chat, control))
        except Unsound as unsound:
            faults.append(Fault(record.source, unsound.column, unsound.message))
    return tuple(trees), tuple(faults)


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
) -> TokenTree:
    tokenizer = chat.tokenizer
    for column, text in _texts(record):
        if token := next((c for c in control if c in text), None):
            raise Unsound(column, f"the text contains {token!r}, a control token of this tokenizer; remove it")
    prompt_text = chat.prompt(record)
    names = [response_name(record, k) for k in range(len(record.responses))]
    texts = [prompt_text]
    for k, name in enumerate(names):
        try:
            texts.append(chat.whole(record, k, prompt_text))
        except Unsound as unsound:
            raise Unsound(unsound.column or name, unsound.message) from unsound
    # What apply_chat_template does inside, without its return type, which depends on version and arguments.
    with tokenizer_faults(tokenizer):
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    prompt, *fulls = map(tuple, encoded)
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
