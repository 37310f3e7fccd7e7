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
    reference: str | None = "reference"
    """Column with a reference answer, which judges see and models under test never; null: none."""
    rubric: str | None = "rubric"
    """Column with an item's own criteria: text, or an object dimension -> text; null: none."""
    language: str | None = "language"
    """Column with the language, such as de, in which judges are asked about an item; null: none."""
    limit: int | None = Field(None, ge=1)
    """Use this many prompts only, chosen by the seed."""
