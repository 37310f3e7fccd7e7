"""What a toy model says to fresh prompts, kept beside it for the oracle to read."""

from __future__ import annotations

import json
from pathlib import Path

from dpeer import chain
from dpeer.files import write_text

NAME = "replies.jsonl"
START = NAME
"""What the checksums of its lines begin with."""


def replies(model: Path, prompts: Path, folder: Path, seed: int) -> list[str]:
    """One sampled reply to each prompt of a prompts.jsonl; sampled once and kept in `folder`, and anew where that file
    has changed since."""
    from dpeer.toyworld.model import sample

    kept = folder / NAME
    lines = chain.whole_lines(kept)
    if not lines or next(chain.broken(lines, START), None):
        texts = [json.loads(line)["prompt"] for line in prompts.open(encoding="utf-8")]
        pairs = zip(texts, sample(model, texts, seed), strict=True)
        write_text(kept, chain.text([{"prompt": p, "reply": r} for p, r in pairs], START))
    return [json.loads(line)["reply"] for line in chain.whole_lines(kept)]
