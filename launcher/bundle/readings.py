"""Scores against the log-probabilities from which judges' answers were read, and which ratings are not there."""

from __future__ import annotations

import math

import pandas as pd

from dpeer.eval.questions.readout import read_logprobs


def wrong_readings(ratings: pd.DataFrame) -> tuple[int, int]:
    """(usable ratings with log-probabilities, those of them whose score, expected score or mass is not what follows).

    A score is the most likely one, or in a table of sampled scores the one that its id draws; the lowest score of the
    scale is the one that most of the expected scores agree on.
    """
    rows = ratings[(ratings["mode"] == "logprob") & (ratings["status"] == "ok") & ratings["other_model"].isna()]
    rows = rows[rows["logprobs"].notna()]
    offsets, wrong, choices = [], [], []
    for row in rows.itertuples():
        draw = int(str(row.rating_id)[:16], 16) / 2**64
        likely, drawn = (read_logprobs(row.logprobs, range(len(row.logprobs)), 0.0, given) for given in (None, draw))
        offset = math.nan if likely.expected is None else row.expected - likely.expected
        offsets.append(round(offset) if math.isfinite(offset) else 0)
        wrong.append(not abs(offset - offsets[-1]) < 1e-6 or not abs((likely.mass or math.nan) - row.mass) < 1e-6)
        choices.append((row.score, likely.score, drawn.score))
    if not offsets:
        return 0, 0
    lowest = max(set(offsets), key=offsets.count)
    faults = [bad or offset != lowest for bad, offset in zip(wrong, offsets, strict=True)]
    by = [[score != lowest + (c or 0) for score, *chosen in choices for c in chosen[k : k + 1]] for k in (0, 1)]
    return len(rows), min(sum(f or g for f, g in zip(faults, missed, strict=True)) for missed in by)


def left_out(ratings: pd.DataFrame, responses: pd.DataFrame) -> str:
    """How unevenly models answered and were rated, which may be a plan (adaptive judging, truncated answers) or the
    work of somebody who left out what did not please; empty where all are alike."""
    answered = responses.groupby("model")["item"].agg(["nunique", "size"])
    rated = ratings.groupby("model").size().reindex(answered.index, fill_value=0)
    usable = ratings[ratings["status"] == "ok"].groupby("model").size().reindex(answered.index, fill_value=0)
    counts = answered.assign(ratings=rated, usable=usable)
    if (counts.nunique() <= 1).all():
        return ""
    words = [
        f"{row.Index} {row.nunique:,} prompts, {row.size:,} responses, {row.ratings:,} ratings ({row.usable:,} usable)"
        for row in counts.itertuples()
    ]
    return f"that nothing was left out: models were not asked and rated alike ({'; '.join(words)})"
