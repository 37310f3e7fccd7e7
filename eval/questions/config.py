"""Config of a prompt set."""

from __future__ import annotations

from pydantic import Field

from dpeer.config import Section


class Prompts(Section):
    path: str = ""
    """Hub id, file (CSV, JSONL, Parquet) or folder: PersonaKnob form, XSTest prompts, or anything with a prompt."""
    prompt: str = "prompt"
    """Column with the prompt."""
    id: str | None = None
    """Column with a stable id; default: a hash of the prompt."""
    limit: int | None = Field(None, ge=1)
    """Use this many prompts only, chosen by the seed."""
