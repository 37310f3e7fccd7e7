"""What an interval is about: these prompts, or new prompts of this kind."""

from __future__ import annotations

import numpy as np

from dpeer.eval.irt.people import on_scale
from dpeer.eval.irt.stan_terms import answered_repeatedly, repeated_enough
from dpeer.eval.irt.types import Posterior
from dpeer.eval.irt.weaknesses import names_of

THRESHOLDS = {
    "common": "Score steps are common to all judges and items of a dimension (rating scale model).",
    "judge": "Score steps are common to the items; each judge has shrunken deviations of its own.",
    "item": "Score steps are common to the judges; each item has shrunken deviations of its own (partial credit).",
}

FAIR = (
    "Fair averages are expected scores for a judge of average severity, thresholds and discrimination (alpha 1) and an "
    "average criterion, averaged over the spread of the items, responses and halos"
)
PEOPLES_FAIR = (
    "Fair averages are expected scores by an average one of the people (on whose scale abilities are) on an average "
    "criterion, averaged over the spread of the items, responses and halos"
)
COMPARED = (
    "Comparisons: a logit of ability is a logit of each step from worse over tie to better, and beside ratings that of "
    "each score step, unless the scale of comparisons was estimated (--with comparison-scale)."
)
CUMULATIVE = (
    "Graded responses: logits are those of each score or a higher one (cumulative), and score steps, in ascending "
    "order, are where that is as likely as a lower score."
)
FAIR_TERMS = {
    "item_step": "with the thresholds common to all items, not each item's own",
    "judge_model": "without what single judges add to single models",
    "group": "on the mix of groups that these items have",
}
"""What fair averages make of a term that is in the model."""


def scope(posterior: Posterior) -> str:
    """One paragraph for the reader of the abilities and contrasts."""
    return _prompts(posterior) + (_mix(posterior) if "group" in posterior.draws else "")


def _mix(posterior: Posterior) -> str:
    r = posterior.ratings
    share = np.bincount(r.item_group, minlength=len(r.groups)) / len(r.item_group)
    kinds = names_of(f"{100 * part:.0f} % {name}" for name, part in zip(r.groups, share, strict=True))
    return f" Abilities, contrasts and fair averages are over the mix of these prompts, each counted once: {kinds}."


def _prompts(posterior: Posterior) -> str:
    if "theta_these" in posterior.draws:
        return (
            "Abilities, ranks and contrasts are about new prompts of this kind: their intervals hold what a model does "
            "better or worse on single prompts (model x item, s_v). Contrasts on these prompts leave that out: they "
            "are narrower, and say nothing of other prompts."
        )
    if repeated_enough(posterior.ratings):
        return (
            "Contrasts are about these prompts only: models answered prompts more than once and the model x item "
            "effect was left out, so that intervals are too narrow for new prompts."
        )
    if "s_u" in posterior.draws:
        few = "Hardly any prompt was answered more than once by a model"
        once = few if answered_repeatedly(posterior.ratings) else "Every model answered every prompt once"
        return (
            f"{once}, so that what it does on a prompt and the luck of one response are "
            "one effect (u). Contrasts are about new prompts of this kind, answered anew; contrasts on these very "
            "prompts need several samples per prompt."
        )
    said = "has one rating per dimension" if len(posterior.ratings) else "was compared no more often than links it"
    return (
        f"Every response {said}: neither prompts nor responses vary beyond the judges' noise in "
        "this model, so that intervals are too narrow for new prompts wherever they do."
    )


def shrinkage(posterior: Posterior) -> str | None:
    """How far severities were drawn towards their mean: posterior over prior variance; None where they were not, or
    where they count from the people's mean, of which this ratio says nothing."""
    options = posterior.options
    if (
        "favour" in posterior.draws
        or options.severity_prior != "shrunken"
        or "s_severity" not in posterior.draws
        or options.anchors
    ):
        return None
    rates = posterior.ratings.judge_rated.any(axis=1)
    if rates.sum() < 2:
        return None
    variance = posterior.flat("severity_judge")[:, rates].var(axis=0).mean() / (1 - 1 / rates.sum())
    share = min(float(variance / (posterior.flat("s_severity") ** 2).mean()), 1.0)
    return (
        f"Severities are drawn towards their mean by about {100 * share:.0f} %, as the judges' spread makes likely; "
        "programs without such a prior (FACETS, TAM) do not, and neither does --severity-prior wide."
    )


def fair_words(posterior: Posterior) -> str:
    """What fair averages are."""
    where, dimensions = on_scale(posterior), np.array(posterior.ratings.dimensions)
    fair = PEOPLES_FAIR if where.all() else FAIR
    if where.any() and not where.all():
        fair += (
            f"; in {names_of(dimensions[where])} by an average one of the people, on whose scale abilities are there"
        )
    return "; ".join([fair, *(words for name, words in FAIR_TERMS.items() if name in posterior.draws)]) + "."
