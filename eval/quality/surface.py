"""Can golden be told from rejects by their surface: length, punctuation, layout, a few words? Training may learn that.

Of each edge only the difference of the two responses' features is seen, so that the prompt cancels; a logistic
regression without intercept says which side is the better one (Bradley & Terry 1952, with features). Its accuracy is
that on prompts that it was not fitted to; half is chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import t

from dpeer.data.order import edges
from dpeer.data.schema import DataSet
from dpeer.data.split import prompt_key
from dpeer.eval.audit.rates import NORMAL, TAIL, UNKNOWN, Interval, design_effect, share
from dpeer.eval.irt.types import Floats, Ints
from dpeer.report.text import listing, percent

FOLDS, RIDGE, STEPS = 10, 1.0, 25
FEWEST = 10
"""Prompts below which nothing is said."""
NAMED = 4
"""Features that a sentence lists at most."""
LOUD = 0.1
"""Share of the largest weight below which a feature is not listed."""

HEDGES = (
    r"\b(?:perhaps|maybe|might|could|possibly|probably|seems?|likely|somewhat|generally|vielleicht|wohl|eventuell)\b"
)
FIRST = r"\b(?:I|me|my|mine|we|our|us|ich|mir|mich|mein|wir|uns)\b"
SECOND = r"\b(?:you|yours?|du|dir|dich|deine?|Ihnen|Ihre?)\b"
PRAISE = r"\b(?:great|excellent|perfect|amazing|wonderful|fantastic|brilliant|absolutely|toll|perfekt|wunderbar)\b"
SORRY = r"\b(?:sorry|apolog\w+|unfortunately|cannot|can't|unable|leider|entschuldig\w+)\b"
MARKS = {
    "words": r"\w+",
    "paragraphs": r"\n\s*\n",
    "commas": r"[,;:]",
    "question marks": r"\?",
    "exclamation marks": r"!",
    "dashes": r"[\u2013\u2014]|\s-\s",
    "brackets": r"[()\[\]]",
    "quotation marks": r"[\"\u201c\u201d\u201e\u00ab\u00bb]",
    "digits": r"\d",
    "capital letters": r"[A-Z]",
    "list items": r"(?m)^\s*(?:[-*+\u2022]|\d+[.)])\s",
    "headings": r"(?m)^\s*#{1,6}\s",
    "bold or italics": r"\*\*?[^*\n]+\*\*?",
    "code": r"`",
    "emoji": r"[\u2600-\u27bf\U0001f300-\U0001faff]",
}
WORDS = {
    "words of the first person": FIRST,
    "words of the second person": SECOND,
    "hedging words": HEDGES,
    "words of praise": PRAISE,
    "refusals or apologies": SORRY,
}
PATTERNS = {name: re.compile(pattern) for name, pattern in MARKS.items()} | {
    name: re.compile(pattern, re.IGNORECASE) for name, pattern in WORDS.items()
}
SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]+(?:\s|$)")
NAMES = ("characters", "sentences", "words per sentence", "characters per word", "varied words", *PATTERNS)
FORM, STYLE = "length, punctuation and layout", "these and a few words"
SEEN = {FORM: len(NAMES) - len(WORDS), STYLE: len(NAMES)}
"""How many of the features a classifier sees, from the first on."""


@dataclass(frozen=True, slots=True)
class Used:
    """A feature that the classifier used: its weight per standard deviation of the differences (above 0: golden has
    more), and in how many pairs golden has more and less of it."""

    feature: str
    weight: float
    more: int
    less: int


@dataclass(frozen=True, slots=True)
class Surface:
    """One dimension, or all of them (""), as seen by a classifier of FORM or of STYLE.

    accuracy: share of pairs in which the classifier picks the better response, on prompts that it has not seen.
    length: golden's characters over the reject's, geometric mean over pairs. longer: share of pairs in which golden is
    longer. used: features with the largest weights, largest first. Intervals of 95 %, over prompts.
    """

    dimension: str
    sees: str
    pairs: int
    prompts: int
    accuracy: Interval
    length: Interval
    longer: Interval
    used: tuple[Used, ...]
    told: bool
    """Whether the surface gives golden away beyond chance. Where it does not, accuracy over folds varies more than the
    interval says, as folds share what they are fitted to; so this takes a variance of more (Nadeau & Bengio 2003)."""


def features(text: str) -> Floats:
    """[F] of NAMES: counts as log(1 + count), so that a difference is a ratio, and three means."""
    counts = {name: len(pattern.findall(text)) for name, pattern in PATTERNS.items()}
    words, sentences = max(counts["words"], 1), max(len(SENTENCE.findall(text)), 1)
    varied = len({w.casefold() for w in PATTERNS["words"].findall(text)})
    means = [math.log(words / sentences), math.log(max(len(text), 1) / words), varied / words]
    return np.concatenate([np.log1p([len(text), sentences]), means, np.log1p(list(counts.values()))])


def text_pairs(data: DataSet) -> pd.DataFrame:
    """dimension, prompt (its key), row, better and worse (texts), a row per edge."""
    found = [
        (e.dimension, prompt_key(r), r.source, r.responses[e.better].text, r.responses[e.worse].text)
        for r in data.records
        for e in edges(r)
    ]
    return pd.DataFrame(found, columns=["dimension", "prompt", "row", "better", "worse"])


def surface(pairs: pd.DataFrame) -> list[Surface]:
    """Of all edges together, then per dimension. pairs: as `text_pairs` makes them."""
    known: dict[str, Floats] = {}
    for text in pd.unique(pairs[["better", "worse"]].to_numpy().ravel()):
        known[text] = features(text)
    if pairs.empty:
        return []
    difference = np.stack([known[b] - known[w] for b, w in zip(pairs["better"], pairs["worse"], strict=True)])
    prompts, dimension = pd.factorize(pairs["prompt"])[0], pairs["dimension"].to_numpy()
    groups = [(d, dimension == d) for d in sorted(set(dimension))]
    if len(groups) > 1:
        groups = [("", np.ones(len(pairs), bool)), *groups]
    return [_one(name, sees, difference[at, :n], prompts[at]) for name, at in groups for sees, n in SEEN.items()]


def _one(dimension: str, sees: str, difference: Floats, prompts: Ints) -> Surface:
    groups = len(np.unique(prompts))
    log = difference[:, NAMES.index("characters")]
    longer = share((np.sign(log) + 1) / 2, prompts)
    accuracy, used, told = UNKNOWN, tuple[Used, ...](), False
    if groups >= FEWEST:
        hits = (np.sign(held_out(difference, prompts)) + 1) / 2
        accuracy = share(hits, prompts)
        variance = 0.25 * (1 + FOLDS / (FOLDS - 1)) * design_effect(hits, prompts) / len(hits)
        told = bool(accuracy.low > 0.5 and accuracy.rate > 0.5 + NORMAL * math.sqrt(variance))
        used = tuple(_used(difference))
    return Surface(dimension, sees, len(difference), groups, accuracy, _ratio(log, prompts), longer, used, told)


def held_out(difference: Floats, prompts: Ints) -> Floats:
    """[E] log odds that the better response is the better one, by a classifier fitted to other prompts."""
    names, place = np.unique(prompts, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[place] % FOLDS
    odds = np.zeros(len(difference))
    for k in range(FOLDS):
        rest, mine = fold != k, fold == k
        scale = _scale(difference[rest])
        odds[mine] = difference[mine] / scale @ logistic(difference[rest] / scale)
    return odds


def _scale(difference: Floats) -> Floats:
    """[F] root mean square of each feature's differences; 1 where there are none."""
    size = np.sqrt(np.square(difference).mean(axis=0))
    return np.where(size > 1e-9, size, 1.0)


def logistic(x: Floats, ridge: float = RIDGE) -> Floats:
    """[F] weights w that maximise sum log sigmoid(x w) - ridge / 2 w'w, for differences x [E, F] of better - worse."""
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = expit(-(x @ w))
        gradient = x.T @ p - ridge * w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w)), gradient)
        w = w + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return w


def _used(difference: Floats) -> Iterator[Used]:
    weights = logistic(difference / _scale(difference))
    for k in np.argsort(-np.abs(weights), kind="stable")[: 2 * NAMED]:
        if abs(weights[k]) > LOUD * np.abs(weights).max():
            more, less = int((difference[:, k] > 1e-9).sum()), int((difference[:, k] < -1e-9).sum())
            yield Used(NAMES[k], float(weights[k]), more, less)


def sentence(s: Surface) -> str:
    """What was found, in plain words."""
    what = f"golden from reject_{s.dimension}" if s.dimension else "the better response from the worse one"
    if math.isnan(s.accuracy.rate):
        return f"{s.prompts} prompts are too few to say whether the surface tells {what} ({FEWEST} are needed)"
    sees = FORM if s.sees == FORM else f"{FORM.replace(' and', ',')} and a few words"
    said = f"A classifier that sees only {sees} tells {what} in {_shown(s.accuracy)} of {s.pairs} pairs"
    if not s.told:
        return f"{said}: {'no more than chance' if s.accuracy.low <= 0.5 else 'this may be chance'}."
    used = listing([f"{'more' if u.weight > 0 else 'fewer'} {u.feature}" for u in s.used[:NAMED]])
    return f"{said}: training may learn this instead ({used})."


def _shown(i: Interval) -> str:
    return f"{percent(i.rate)} [{100 * i.low:.0f}, {100 * i.high:.0f}]"


def easiest(pairs: pd.DataFrame, most: float = 0.6, sees: str = FORM) -> pd.Series:
    """Which pairs (bool, index of `pairs`) to write again or leave out, so that their surface gives the others away in
    at most a share `most`: per dimension the pairs that a classifier of the others' surface is surest of, a few at a
    time (adversarial filtering, Le Bras et al. 2020). At most half of a dimension's pairs."""
    out = pd.Series(False, index=pairs.index)
    for _, mine in pairs.groupby("dimension", sort=True):
        difference = np.stack([features(b) - features(w) for b, w in zip(mine["better"], mine["worse"], strict=True)])
        difference, prompts = difference[:, : SEEN[sees]], pd.factorize(mine["prompt"])[0]
        kept, batch = np.arange(len(mine)), max(1, len(mine) // 50)
        while len(np.unique(prompts[kept])) >= FEWEST and len(kept) - batch >= len(mine) / 2:
            odds = held_out(difference[kept], prompts[kept])
            if (odds > 0).mean() <= most:
                break
            kept = kept[np.sort(np.argsort(odds, kind="stable")[:-batch])]
        out[mine.index.delete(kept)] = True
    return out


def _ratio(log: Floats, prompts: Ints) -> Interval:
    """exp of the mean log ratio [E], with Student's interval over clusters."""
    _, place = np.unique(prompts, return_inverse=True)
    groups = int(place.max(initial=-1)) + 1
    if groups < 2:
        return UNKNOWN
    mean = float(log.mean())
    sums = np.bincount(place, weights=log - mean)
    half = (
        float(t.ppf(1 - TAIL, groups - 1)) * math.sqrt(float(np.square(sums).sum()) * groups / (groups - 1)) / len(log)
    )
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
