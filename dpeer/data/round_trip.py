"""What a tokenizer writes must be what was rendered: tokens decode to their text, whatever the day and the machine."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from typing import TYPE_CHECKING

from dpeer.data.faults import excerpt
from dpeer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST, EVERY = 1_000, 10
"""All of the first records are decoded, and of the others every tenth."""
PLAIN = "Look at the hull first.\nThen, if it is dry,  paint it."
SHOWN = 24


class Garbled(Exception):
    """The tokens of a text decode to another one."""


def is_panic(error: BaseException | None) -> bool:
    """Whether the Rust code of tokenizers has given up; its exception is no Exception."""
    return type(error).__name__ == "PanicException"


@contextmanager
def tokenizer_faults(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """DataError for whatever a tokenizer raises while it encodes or decodes."""
    try:
        yield
    except (DataError, Garbled):
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise DataError(
            f"tokenizer of {tokenizer.name_or_path or 'this model'}: fails with {type(error).__name__}: "
            f"{excerpt(str(error), 160)}. Its files are damaged, or of another class; take the model's anew"
        ) from error


def is_sampled(index: int) -> bool:
    """Whether the record of that index is decoded."""
    return index < FIRST or index % EVERY == 0


def refuse_garbled(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Garbled: `ids` decode to another text than the one that they were made of, up to Unicode's composed form and a
    blank after a control token, which some tokenizers write there. DataError: the tokenizer garbles any text.

    A text with unknown tokens passes: those are counted (`facts`).
    """
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return
    if found := _difference(ids, text, tokenizer):
        plain = tokenizer([PLAIN], add_special_tokens=False)["input_ids"][0]
        if elsewhere := _difference(plain, PLAIN, tokenizer):
            raise DataError(
                f"tokenizer of {tokenizer.name_or_path or 'this model'}: its class {type(tokenizer).__name__} does not "
                f"fit its tokenizer.json, and loses text: {elsewhere}. Set tokenizer_class in tokenizer_config.json to "
                "the one that the file was made for (PreTrainedTokenizerFast takes it as it is), or use another model"
            )
        raise Garbled(f"the tokenizer ({type(tokenizer).__name__}) loses or alters text: {found}")


def now(tokenizer: PreTrainedTokenizerBase) -> datetime:
    """What chat templates are told: midnight of the day that `load_tokenizer` was given, or of today."""
    return datetime.combine(getattr(tokenizer, "today", None) or date.today(), time.min)


def _difference(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Where the decoded text parts from `text`, in words; empty where it does not."""
    decoded = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if decoded == text:
        return ""
    control = [t.content for t in tokenizer.added_tokens_decoder.values()]
    ours, theirs = _plain(text, control), _plain(decoded, control)
    if ours == theirs:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    at = max(0, at - SHOWN // 3)
    return f"{excerpt(ours[at:], SHOWN)} is read back as {excerpt(theirs[at:], SHOWN)}"


def _plain(text: str, control: Sequence[str]) -> str:
    """Composed, without the blanks at the start and around control tokens."""
    text = unicodedata.normalize("NFC", text)
    if control:
        marks = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
        text = re.sub(f" ?({marks}) ?", r"\1", text)
    return text.removeprefix(" ")
