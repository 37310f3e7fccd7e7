"""How judges are asked about each response: in which language, and what is shown beside the rubric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from dpeer.data.faults import Fault, data_error
from dpeer.errors import ConfigError
from dpeer.eval.config import Judging
from dpeer.eval.questions.briefs import EVERY, Brief
from dpeer.eval.questions.prompting import broken, visible
from dpeer.eval.questions.rubric import LANGUAGE, Rubric
from dpeer.eval.questions.shown import OWN, PLAIN, Shown, rated_messages
from dpeer.eval.store.parts import content_id


def shown_of(judging: Judging, response: Mapping[str, Any], dimension: str) -> Shown:
    """What judges read beside the rubric about a response, a row of the responses table with `brief`."""
    brief = _brief(response)
    whole = judging.rate == "conversation"
    messages = rated_messages(response["prompt"], response.get("transcript"), whole)
    if brief is None and not messages:
        return PLAIN
    brief = brief or Brief()
    criteria = broken(" ".join(visible(brief.criteria(dimension)).split()))
    instead = bool(criteria) and judging.item_criteria == "instead"
    return Shown(messages, whole and bool(messages), brief.reference, criteria, instead)


def spoken_of(rubric: Rubric, response: Mapping[str, Any]) -> Rubric:
    """The rubric in the language of the response's item; as it is where it has no text in that."""
    brief = _brief(response)
    return rubric if brief is None or not brief.language else rubric.spoken(code_of(brief.language)) or rubric


def text_id(response: Mapping[str, Any]) -> str:
    """Hash of what was said."""
    transcript = response.get("transcript")
    told = {"transcript": transcript} if isinstance(transcript, str) else {}
    return content_id(prompt=response["prompt"], response=response["response"], **told)


def code_of(language: str) -> str:
    """pt_BR is pt-br."""
    return language.lower().replace("_", "-")


def _brief(response: Mapping[str, Any]) -> Brief | None:
    brief = response.get("brief")
    return brief if isinstance(brief, Brief) else None


def notes_on(judging: Judging, rubric: Rubric, responses: pd.DataFrame, source: str) -> list[str]:
    """What the person should know of references, criteria and languages of items.

    Raises DataError with row and column for a dimension that the rubric lacks and a language that is none, and
    ConfigError where the rubric cannot show them.
    """
    briefs: dict[str, Brief] = {}
    if "brief" in responses:
        first = responses.drop_duplicates("item")
        briefs = {i: b for i, b in zip(first["item"], first["brief"], strict=True) if isinstance(b, Brief)}
    if faults := list(_faults(rubric, briefs)):
        raise data_error(source, faults)
    if rubric.terse and any(b.reference or b.rubric for b in briefs.values()):
        raise ConfigError(
            f"rubric {rubric.name} is terse and shows judges neither reference answers nor criteria of items; set "
            "prompts.reference and prompts.rubric to null, or take another rubric"
        )
    own = sum(bool(b.rubric) for b in briefs.values())
    if own and judging.item_criteria == "instead" and any(OWN in d.criteria for d in rubric.dimensions.values()):
        raise ConfigError(
            f"rubric {rubric.name}: a criterion is called {OWN}, as ratings by an item's own are; rename it"
        )
    notes = []
    if references := sum(bool(b.reference) for b in briefs.values()):
        notes.append(f"{references} items bring a reference answer, which judges are shown.")
    if own:
        where = "in place of" if judging.item_criteria == "instead" else "beside"
        notes.append(f"{own} items bring criteria of their own, {where} the rubric's (judging.item_criteria).")
    spoken = Counter(code_of(b.language) for b in briefs.values() if b.language)
    if lacking := {code: n for code, n in spoken.items() if rubric.languages and rubric.spoken(code) is None}:
        listed = ", ".join(f"{n} in {code}" for code, n in sorted(lacking.items()))
        has = ", ".join((rubric.language, *rubric.languages))
        notes.append(
            f"items whose language rubric {rubric.name} lacks: {listed}. Judges are asked about them in "
            f"{rubric.language} (it has {has}; `languages` in a rubric adds others)."
        )
    return notes


def _faults(rubric: Rubric, briefs: Mapping[str, Brief]) -> Iterator[Fault]:
    for brief in briefs.values():
        _, rubric_column, language_column = brief.columns
        language = brief.language
        if unknown := [name for name, _ in brief.rubric if name != EVERY and name not in rubric.dimensions]:
            has = ", ".join(rubric.dimensions)
            yield Fault(
                brief.where, rubric_column, f"rubric {rubric.name} has no dimension {unknown[0]!r}; it has {has}"
            )
        if language and rubric.languages and not LANGUAGE.fullmatch(code_of(language)):
            yield Fault(brief.where, language_column, f"must be the code of a language, such as de, got {language!r}")
