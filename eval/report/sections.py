"""The chapters of the page: which pictures and tables stand where, and the words that introduce them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dpeer.eval.report import abilities, agreement, data, judges, people, robust, tables
from dpeer.eval.report.picture import Picture
from dpeer.eval.report.table import Table
from dpeer.eval.report.words import Frames
from dpeer.eval.report.wright import wright


@dataclass(frozen=True, slots=True)
class Section:
    """`estimates`: it is neither a check nor a count; a fit that supports no claim shows it folded, below those."""

    heading: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    estimates: bool = True

    @property
    def empty(self) -> bool:
        return not self.pictures and not self.tables


def sections(frames: Frames, claim: bool) -> Iterator[Section]:
    """All chapters that have content. Without a claim, contrasts, ranks and reversals are left out."""
    every = (*_models(frames, claim), *_judges(frames), *_items(frames), *_data(frames))
    yield from (section for section in every if not section.empty)


def one(frames: Frames, name: str) -> list[Table]:
    """The table of that name, if the fit has it."""
    if name not in frames:
        return []
    made: Table = getattr(people if name in people.TABLES else tables, name)(frames)
    return [made] if made.rows else []


def _drawn(frames: Frames, draw: Callable[[Frames], Iterator[Picture]], name: str) -> list[Picture]:
    """The pictures of that table, if the fit has it."""
    return list(draw(frames)) if name in frames else []


def _models(frames: Frames, claim: bool) -> Iterator[Section]:
    drawn = _drawn(frames, abilities.ability, "ability")
    yield Section(
        "Abilities",
        "What a model's answers deserve, with the severity of judges, the difficulty of items and the luck of single "
        "responses taken out. Bars are 95 % intervals; panels of a kind share one axis.",
        [picture for picture in drawn if claim or not picture.name.startswith("contrast_")],
        ([tables.ability(frames, claim)] if "ability" in frames else []) + one(frames, "reliability"),
    )
    if claim:
        yield Section(
            "Ranks",
            "How sure the order of the models is.",
            _drawn(frames, abilities.ranks, "ranks"),
            one(frames, "rank_sets"),
        )
        yield Section(
            "What rests on one judge, or on the prior",
            "Each judge left out in turn: a difference changes where its verdict is another one then, or where it lies "
            "outside the interval of all judges. And the posterior with the prior, or what the ratings say, weighed "
            "more and less: where the prior moves a quantity, look at it before a claim.",
            [],
            [
                *([robust.stable(frames)] if "stable" in frames.get("contrasts", ()) else []),
                *(found for found in _without(frames) if found.rows),
                *([robust.sensitivity(frames)] if "sensitivity" in frames else []),
            ],
        )
    yield Section(
        "Fair averages and raw means",
        "A raw mean mixes what a model did with who judged it on what. The fair average is the score that an average "
        "judge would give it over items like these: the ability in the units of the rating scale.",
        _drawn(frames, abilities.fair, "ability"),
        one(frames, "reversals") if claim else [],
    )
    yield Section(
        "One ruler for models, items and judges",
        "Abilities, difficulties, severities and score steps are on the same logit scale, so that they can be laid "
        "side by side. Models are measured best where items and score steps are.",
        _drawn(frames, wright, "ability"),
    )


def _without(frames: Frames) -> Iterator[Table]:
    if "without_judge" in frames:
        yield robust.without_judge(frames)


def _judges(frames: Frames) -> Iterator[Section]:
    yield Section(
        "People and models as judges",
        "What the judges that are models have in common against the people among the judges: a leniency towards all "
        "models alike, and beyond it a taste for single models. Neither can be seen in the models' ratings alone. "
        "Where abilities are on the people's scale, their intervals hold what the people's ratings leave open of it.",
        _drawn(frames, people.favoured, "favours"),
        [*one(frames, "leniency"), *one(frames, "favours"), *one(frames, "human_ratings")],
    )
    severity = list(judges.severity(frames)) if {"judges", "severity"} & set(frames) else []
    yield Section(
        "Judges",
        "Severity is how much a judge takes off, discrimination how closely it follows the consensus. Infit and "
        "outfit are mean squared residuals, 1 where a judge is as predictable as the model expects; p is their "
        "posterior predictive probability, and ! marks one outside 0.025 to 0.975.",
        [*severity, *_drawn(frames, judges.discrimination, "judges"), *_drawn(frames, judges.fit, "judges")],
        one(frames, "judges"),
    )
    yield Section(
        "Judge cards",
        "All that is known of each judge. Severity and discrimination are those of the fit. The effects compare a "
        "judge with the other judges of the same responses, before any model: what it adds to answers of its own "
        "family or of its own, to longer ones, and with the scale listed from the top.",
        [],
        one(frames, "cards"),
    )
    yield Section(
        "Agreement",
        "How far judges give the same scores to the same responses, without a model of judging: severity counts as "
        "disagreement here. Intervals are 95 % over items.",
        [*_drawn(frames, agreement.agreement, "kappa"), *_drawn(frames, agreement.confusion, "confusion")],
        [*one(frames, "alpha"), *one(frames, "kappa")],
        estimates=False,
    )
    yield Section(
        "Judges who see a model differently",
        "Mean score of a judge on a model minus the one that the fit expects. A gap is what severity and ability "
        "cannot explain: self-preference, a string matcher, a rubric read in another way. Look here first.",
        _drawn(frames, judges.misfit, "misfit"),
        [*one(frames, "misfit"), *one(frames, "models_fit")],
        estimates=False,
    )
    yield Section(
        "Biases of judges",
        "Each judge was checked for favouring a model, for a halo over the dimensions of a response, for items that it "
        "finds harder than other judges do, for leaving out poor or good answers, and for keeping to the middle of "
        "the scale. All kinds together name somebody in fewer than one in twenty fits without any bias.",
        [],
        one(frames, "biases"),
        estimates=False,
    )
    yield Section(
        "Side effects",
        "What else moves ratings, as far as it was fitted.",
        [*_drawn(frames, data.effects, "effects"), *_drawn(frames, data.correlation, "correlation")],
        [*one(frames, "effects"), *one(frames, "judge_model"), *one(frames, "groups")],
    )


def _items(frames: Frames) -> Iterator[Section]:
    yield Section(
        "Items",
        "How hard it is to get a high score on an item.",
        _drawn(frames, data.items, "items"),
        [*one(frames, "items"), *one(frames, "criteria")],
    )
    yield Section(
        "Does the fit reproduce the scores?",
        "Scores that were given, beside those that the fitted model would give: where they part, the model is wrong "
        "about that judge.",
        _drawn(frames, judges.predictive, "ppc"),
        estimates=False,
    )
    yield Section(
        "Does the fit reproduce the comparisons?",
        "How every two models fared against each other, beside what the fitted model would give.",
        [],
        one(frames, "comparisons"),
        estimates=False,
    )
    yield Section(
        "Score steps",
        "Where a judge passes from one score to the next. Steps out of order mean that a score in between is never "
        "the most likely one: the judge does not use it as the rubric asks.",
        _drawn(frames, judges.thresholds, "thresholds"),
    )


def _data(frames: Frames) -> Iterator[Section]:
    yield Section(
        "Ratings",
        "What became of the planned ratings, and which judge rated which model.",
        [*_drawn(frames, data.statuses, "statuses"), *_drawn(frames, data.connectivity, "connectivity")],
        one(frames, "statuses"),
        estimates=False,
    )
    yield Section(
        "Anchors",
        "Judges and items that an earlier fit shares, and how far they have moved since. Those that drifted no longer "
        "serve as anchors.",
        _drawn(frames, data.drift, "drift"),
        one(frames, "drift"),
    )
