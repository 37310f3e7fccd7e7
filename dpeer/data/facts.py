"""Facts that must hold before a step. One function of them stands behind `data check`, `preflight` and `train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dpeer.data.duplicates import near_duplicates
from dpeer.data.faults import Fault, excerpt
from dpeer.data.prompts import Prompts, shared
from dpeer.data.schema import DataSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpeer.data.tokenize import TokenTree

MOST_UNKNOWN = 0.05
"""Share of unknown tokens above which a tokenizer is none for these texts."""
NAMES = {"train": "training", "dual": "dual", "heldout": "held-out"}
USES = {
    ("train", "heldout"): "also trained on",
    ("train", "dual"): "also trained on",
    ("dual", "heldout"): "also in the dual split",
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's files say. rows: of its embedding. positions: that it was made for. ends: ids of its end-of-turn
    tokens. quantised: method of its `quantization_config`. media: ids that stand for images or sound. None: not known,
    or none."""

    path: str
    rows: int | None = None
    positions: int | None = None
    ends: frozenset[int] = frozenset()
    quantised: str | None = None
    media: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is to be known of a split's tokens. longest: prompt + response. ends: last tokens of responses. edges:
    records with pairs of each dimension. dropped, cut: records left out / with a shortened prompt."""

    largest: int = -1
    longest: int = 0
    total: int = 0
    unknown: int = 0
    ends: frozenset[int] = frozenset()
    edges: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """errors: no step may follow. warnings: are told."""

    errors: tuple[Fault, ...]
    warnings: tuple[Fault, ...]


def tokens(
    dimensions: Sequence[str], trees: Iterable[TokenTree], unknown: int | None = None, dropped: int = 0, cut: int = 0
) -> Tokens:
    """Tokens of the trees of one split. unknown: id of the tokenizer's unknown token."""
    largest, longest, total, unknowns = -1, 0, 0, 0
    ends: set[int] = set()
    edges: Counter[int] = Counter()
    for tree in trees:
        for ids in (tree.prompt, *tree.responses):
            largest = max(largest, max(ids, default=-1))
            total += len(ids)
            unknowns += ids.count(unknown) if unknown is not None else 0
        longest = max(longest, tree.longest)
        ends |= {ids[-1] for ids in tree.responses}
        edges.update({d for d, _, _ in tree.edges})
    named = {name: edges[d] for d, name in enumerate(dimensions)}
    return Tokens(largest, longest, total, unknowns, frozenset(ends), named, dropped, cut)


def facts(
    splits: Mapping[str, DataSet | Prompts],
    counted: Mapping[str, Tokens],
    tokenizer: PreTrainedTokenizerBase | None = None,
    models: Sequence[ModelFacts] = (),
    constrained: Collection[str] = (),
    max_tokens: int | None = None,
    alike: Sequence[Fault] = (),
) -> Findings:
    """All that must hold of splits (`train`, `dual`, `heldout`), their tokens, the tokenizer and the models.

    splits: empty where their prompts were compared before, which found `alike`.
    counted: by split; empty without a tokenizer. models: the policy and, where it is another, the reference.
    constrained: dimensions with a tolerance. max_tokens: the limit that the tokens have passed; without one, records
    longer than a model's positions are a warning only, as a recipe may drop them.
    """
    overlong = list(_overlong(counted, models, max_tokens))
    return Findings(
        errors=(
            *_quantised(models),
            *shared_prompts(splits),
            *_beyond_embedding(counted, tokenizer, models),
            *_all_unknown(counted, tokenizer),
            *_without_edges(counted, constrained),
            *(overlong if max_tokens else ()),
        ),
        warnings=(
            *_dropped(counted, max_tokens),
            *(alike or similar_prompts(splits)),
            *_unknown(counted, tokenizer),
            *_ends(counted, tokenizer, models),
            *(() if max_tokens else overlong),
        ),
    )


# Of the models


def _quantised(models: Sequence[ModelFacts]) -> Iterator[Fault]:
    for model in models:
        if model.quantised:
            yield Fault(f"model {model.path}", "", quantised(model.quantised))


UNPACKED = {
    "mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config", "compressed-tensors": "CompressedTensorsConfig"
}  # fmt: skip
"""Methods whose weights transformers writes back in 16 bits, and the class that it is asked with."""


def quantised(method: str) -> str:
    way = "give the unquantised base, or a copy whose weights were converted to bf16"
    if config := UNPACKED.get(method):
        way = (
            "give the unquantised base, or a copy in bf16, which transformers writes: AutoModelForCausalLM."
            f"from_pretrained(MODEL, dtype='bfloat16', quantization_config={config}(dequantize=True))."
            "save_pretrained(COPY), and the tokenizer beside it"
        )
    return (
        f"is quantised ({method}), and a trained model could not be written back so; {way}, without "
        "quantization_config in its config.json"
    )


def _beyond_embedding(
    counted: Mapping[str, Tokens], tokenizer: PreTrainedTokenizerBase | None, models: Sequence[ModelFacts]
) -> Iterator[Fault]:
    largest = max((c.largest for c in counted.values()), default=-1)
    for model in models:
        if model.rows is not None and largest >= model.rows:
            written = f" ({str(tokenizer.convert_ids_to_tokens(largest))!r})" if tokenizer else ""
            yield Fault(
                f"model {model.path}",
                "",
                f"the tokenizer writes token id {largest}{written}, the model has {model.rows} embeddings; resize the "
                "embedding, or take the model's own tokenizer",
            )


def _overlong(counted: Mapping[str, Tokens], models: Sequence[ModelFacts], max_tokens: int | None) -> Iterator[Fault]:
    for model in models:
        for name, split in counted.items():
            if model.positions and split.longest > model.positions:
                limit = f" (data.max_tokens is {max_tokens})" if max_tokens else ""
                yield Fault(
                    f"model {model.path}",
                    "",
                    f"was made for {model.positions} positions, and a {NAMES[name]} record has {split.longest} "
                    f"tokens{limit}; set data.max_tokens to {model.positions} or less, or rope scaling in the model's "
                    "config.json",
                )
                break


def _ends(
    counted: Mapping[str, Tokens], tokenizer: PreTrainedTokenizerBase | None, models: Sequence[ModelFacts]
) -> Iterator[Fault]:
    """The export gets them all the same; a base that does not stop there is worth a word."""
    written = frozenset[int]().union(*(c.ends for c in counted.values()))
    for model in models[:1]:
        if tokenizer and model.ends and (missing := sorted(written - model.ends)):
            names = ", ".join(f"{i} ({str(tokenizer.convert_ids_to_tokens(i))!r})" for i in missing[:3])
            yield Fault(
                f"model {model.path}",
                "",
                f"responses end with token {names}, at which the model's own generation_config.json does not stop; the "
                "export will stop there",
            )


# Of the tokens


def _without_edges(counted: Mapping[str, Tokens], constrained: Collection[str]) -> Iterator[Fault]:
    split = counted.get("train")
    if split is None:
        return
    for dimension in constrained:
        if not split.edges.get(dimension):
            why = f" ({split.dropped} records dropped as overlong)" if split.dropped else ""
            yield Fault(
                "training records",
                "",
                f"no pair of {dimension!r} is left{why}, but it has a tolerance. Raise data.max_tokens, set "
                f"data.overlong=cut_prompt, or lift it: objective.constraint.tolerance.{dimension}=.inf",
            )


def _dropped(counted: Mapping[str, Tokens], max_tokens: int | None) -> Iterator[Fault]:
    for name, split in counted.items():
        parts = [f"{split.dropped} dropped"] * bool(split.dropped)
        parts += [f"{split.cut} with a prompt cut from the left"] * bool(split.cut)
        if parts:
            yield Fault(f"{NAMES[name]} records", "", f"longer than data.max_tokens ({max_tokens}): {', '.join(parts)}")


def _all_unknown(counted: Mapping[str, Tokens], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Fault]:
    for name, split in counted.items():
        if tokenizer and _counts_unknown(tokenizer) and split.unknown > MOST_UNKNOWN * split.total:
            yield _unknown_fault(name, split, tokenizer, "; this is no tokenizer for these texts")


def _unknown(counted: Mapping[str, Tokens], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Fault]:
    for name, split in counted.items():
        if tokenizer and _counts_unknown(tokenizer) and 0 < split.unknown <= MOST_UNKNOWN * split.total:
            yield _unknown_fault(name, split, tokenizer, ", which says nothing of the text")


def _unknown_fault(name: str, split: Tokens, tokenizer: PreTrainedTokenizerBase, what: str) -> Fault:
    share = f"{split.unknown} of {split.total} tokens ({split.unknown / split.total:.2%})"
    return Fault(f"{NAMES[name]} records", "", f"{share} are the unknown token {str(tokenizer.unk_token)!r}{what}")


def _counts_unknown(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the unknown token has no other use: byte-level tokenizers name their end of text so."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in others


# Of the prompts


def shared_prompts(splits: Mapping[str, DataSet | Prompts]) -> Iterator[Fault]:
    """A fault per record whose prompt, up to blanks and Unicode's form, is in an earlier split too."""
    prompts = {name: data if isinstance(data, Prompts) else Prompts.of(data) for name, data in splits.items()}
    for (first, second), use in _pairs(splits):
        for other, record in shared(prompts[first], prompts[second]):
            what = "not held out" if second == "heldout" else "no evidence of its own"
            message = f"{use} ({other.source}), so it is {what}: {excerpt(record.prompt[-1].content)}"
            yield Fault(record.source, "prompt", message)


def similar_prompts(splits: Mapping[str, DataSet | Prompts]) -> Iterator[Fault]:
    """A fault per pair of splits of which one has prompts that nearly repeat the other's."""
    names = [name for name in NAMES if name in splits]
    for at, first in enumerate(names[:-1]):
        later = names[at + 1 :]
        for second, found in zip(later, near_duplicates(splits[first], *(splits[n] for n in later)), strict=True):
            if not found:
                continue
            other, record = found[0]
            yield Fault(
                f"{NAMES[second]} records",
                "prompt",
                f"{len(found)} of {_prompts(splits[second])} prompts nearly repeat one of the {NAMES[first]} records, "
                f"such as {record.source} and {other.source}: {excerpt(record.prompt[-1].content, 40)}",
            )


def _prompts(data: DataSet | Prompts) -> int:
    """How many different ones there are."""
    return len(np.unique((data if isinstance(data, Prompts) else Prompts.of(data)).keys))


def _pairs(splits: Mapping[str, DataSet | Prompts]) -> list[tuple[tuple[str, str], str]]:
    return [(pair, USES[pair]) for pair in combinations(NAMES, 2) if all(name in splits for name in pair)]
