"""What a toy model says to fresh prompts, kept beside it for the oracle to read."""

from __future__ import annotations

import json
from pathlib import Path

from dpeer.files import write_text

NAME = "replies.jsonl"


def replies(model: Path, prompts: Path, folder: Path, seed: int) -> list[str]:
    """One sampled reply to each prompt of a prompts.jsonl; sampled once and kept in `folder`."""
    from dpeer.toyworld.model import sample

    kept = folder / NAME
    if not kept.exists():
        texts = [json.loads(line)["prompt"] for line in prompts.open(encoding="utf-8")]
        pairs = zip(texts, sample(model, texts, seed), strict=True)
        write_text(kept, "".join(json.dumps({"prompt": p, "reply": r}) + "\n" for p, r in pairs))
    return [json.loads(line)["reply"] for line in kept.open(encoding="utf-8")]
