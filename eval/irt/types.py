"""What passes between the rooms of the psychometrics: ratings as index arrays, options, posterior draws, tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


GRADED = "graded"
MODELS = ("gmfrm", "rasch", GRADED)
_NO_INTS: Ints = np.zeros(0, np.int64)
_NO_FLOATS: Floats = np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False)
class Comparisons:
    """V comparisons of a response with another one to the same item, as index arrays into the tuples of `Ratings`."""

    response: Ints = field(default_factory=lambda: _NO_INTS)  # [V]
    other: Ints = field(default_factory=lambda: _NO_INTS)  # [V] response
    dimension: Ints = field(default_factory=lambda: _NO_INTS)  # [V]
    judge: Ints = field(default_factory=lambda: _NO_INTS)  # [V]
    outcome: Ints = field(
        default_factory=lambda: _NO_INTS
    )  # [V] 0: the other is better, 1: a tie, 2: this one is better
    place: Floats = field(default_factory=lambda: _NO_FLOATS)  # [V] 1/2: shown first, -1/2: shown second, 0: not known
    own_family: Ints = field(
        default_factory=lambda: _NO_INTS
    )  # [V] 1: this response is of the judge's family, -1: the other is, 0: both or none
    own_model: Ints = field(default_factory=lambda: _NO_INTS)  # [V]

    def __len__(self) -> int:
        return len(self.outcome)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ratings:
    """N ratings and V comparisons with status ok as index arrays into the name tuples; R responses."""

    models: tuple[str, ...]
    items: tuple[str, ...]
    judges: tuple[str, ...]
    dimensions: tuple[str, ...]
    criteria: tuple[tuple[str, str], ...]
    """(dimension, criterion) pairs."""
    scale: tuple[int, ...]
    """The K possible scores, ascending, unused ones included."""
    response_model: Ints  # [R]
    response_item: Ints  # [R]
    response_length: Floats  # [R] standardised log length; all zeros when unknown
    response: Ints  # [N]
    dimension: Ints  # [N]
    criterion: Ints  # [N]
    judge: Ints  # [N]
    category: Ints  # [N] index into scale
    reversed: Bools  # [N] the scale was listed from the top
    own_family: Bools  # [N] judge and model are of one family
    own_model: Bools  # [N] the judge is the model
    statuses: dict[str, int] = field(default_factory=dict)
    """Rows of the table per status, those left out included."""
    status_by_judge: dict[str, dict[str, int]] = field(default_factory=dict)
    unrated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Models, items, dimensions and judges (by these words, singular) without any usable rating, and so left out."""
    notes: tuple[str, ...] = ()
    """What is odd about the table that they came from."""
    people: tuple[str, ...] = ()
    """Judges that are people."""
    groups: tuple[str, ...] = ()
    """Kinds of items, where the table names them."""
    item_group: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [Q] index into groups; empty without
    tokens: dict[str, float] = field(default_factory=dict)
    """Tokens that a judge reads and writes per usable rating, where the table says so."""
    price: dict[str, float] = field(default_factory=dict)
    """Of 1,000 usable ratings of a judge, in `currency`, where it is known."""
    currency: str = ""
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    """What stands behind the names of models, judges and dimensions (hashes of weights and wording), where known."""
    comparisons: Comparisons = field(default_factory=Comparisons)

    @property
    def model(self) -> Ints:
        """[N]"""
        return self.response_model[self.response]

    @property
    def item(self) -> Ints:
        """[N]"""
        return self.response_item[self.response]

    @property
    def judge_rated(self) -> Bools:
        """[J, D] judges that rated in a dimension; of the others the draws hold no more than the prior."""
        rated = np.zeros((len(self.judges), len(self.dimensions)), dtype=bool)
        rated[self.judge, self.dimension] = True
        return rated

    @property
    def comparers(self) -> tuple[str, ...]:
        """Judges who compare."""
        return tuple(self.judges[j] for j in np.unique(self.comparisons.judge))

    @property
    def rated_dimensions(self) -> tuple[str, ...]:
        return tuple(name for name, rated in zip(self.dimensions, self.rated, strict=True) if rated)

    @property
    def rated_criteria(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.criteria[c] for c in np.unique(self.criterion))

    @property
    def rated(self) -> Bools:
        """[D] dimensions with ratings; in the others there are comparisons only."""
        return np.bincount(self.dimension, minlength=len(self.dimensions)) > 0

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Names along each axis of `AXES`; a step is named by its upper score."""
        return {
            "model": self.models,
            "judge": self.judges,
            "item": self.items,
            "dimension": self.dimensions,
            "criterion": tuple(f"{d}/{c}" for d, c in self.criteria),
            "step": tuple(str(score) for score in self.scale[1:]),
            "group": self.groups,
        }

    def __len__(self) -> int:
        return len(self.category)

    def __repr__(self) -> str:
        sizes = (f"{len(getattr(self, name))} {name}" for name in ("models", "items", "judges", "dimensions"))
        compared = f", {len(self.comparisons):,} comparisons" if len(self.comparisons) else ""
        return f"Ratings({len(self):,} ratings{compared}: {', '.join(sizes)})"


AXES = {
    "theta": ("model", "dimension"),
    "theta_these": ("model", "dimension"),
    "group": ("model", "group", "dimension"),
    "judge_model": ("judge", "model"),
    "favour": ("model", "dimension"),
    "severity": ("judge", "dimension"),
    "severity_judge": ("judge",),
    "log_alpha": ("judge",),
    "beta": ("item", "dimension"),
    "delta": ("criterion",),
    "tau": ("judge", "dimension", "step"),
    "tau_average": ("dimension", "step"),
    "correlation": ("dimension", "dimension"),
    "mu": ("dimension",),
    "length": ("dimension",),
    "s_theta": ("dimension",),
    "s_beta": ("dimension",),
    "s_u": ("dimension",),
    "s_v": ("dimension",),
    "s_group": ("dimension",),
    "position": ("judge",),
    "tie": ("judge",),
}
"""Axes of the blocks of draws, see `Posterior`; a block that is absent here is a single number."""

THINNED = ("u", "v", "judge_item", "item_step")
"""Blocks with an element per response or item, kept for the draws `facts["u_draws"]` only."""
KEPT_EFFECTS = 200
"""Such draws, over all chains."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the model contains and how it is sampled."""

    model: str = "gmfrm"
    """Logits of adjacent categories, rasch: with equal discrimination, gmfrm: with a discrimination per judge; graded:
    cumulative logits (Samejima 1969) with a discrimination per judge."""
    response_effect: bool | None = None
    """None: on where a response is rated more than once per dimension."""
    model_item: bool | None = None
    """None: on where enough pairs of model and item were answered more than once, see `stan_terms.repeated_enough`."""
    halo: bool = False
    judge_model: bool = False
    judge_item: bool = False
    people_scale: bool | None = None
    """Abilities as people among the judges see them, apart from what judges that are models have in common. None: on
    where people rated enough, see `people.scaled`."""
    groups: bool = False
    """An effect of every model on every group of items."""
    length: bool = False
    order: bool = False
    self_family: bool = False
    self_model: bool = False
    thresholds: str = "judge"
    """common: one set per dimension (rating scale); judge, item: deviations per judge, or item (partial credit)."""
    severity_prior: str = "shrunken"
    """shrunken: severities are drawn towards their mean as far as they are uncertain; wide: they are not."""
    comparison_scale: bool = False
    """Comparisons beside ratings: estimate how much sharper they are. Without, judges discriminate alike in both."""
    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    """Per chain, after warm-up."""
    seed: int = 1
    threads: int = 1
    """Threads per chain (reduce_sum)."""
    approx: bool = False
    """A short run that is labelled approximate and supports no claim."""
    anchors: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Posterior:
    """Draws [chains, draws, ...] by name, and what the sampler said.

    theta [M, D] ability on new items, theta_these on those that the model answered (where both are known) | mu [D]
    severity [J, D] total of judge and judge x dimension | severity_judge [J]
    log_alpha [J] | beta [Q, D] difficulty (nan where the item was not rated in d) | delta [C] criterion difficulty
    tau [J, D, K-1] thresholds (nan where a judge does not use the score), tau_average [D, K-1] of the average
    one | s_theta, s_beta, s_u [D] | s_severity, s_dev, s_tau (of deviations in log odds),
    s_alpha [] | correlation [D, D] of abilities | length [D] | order [] | own_family, own_model [] | s_halo []
    judge_model [J, M] (nan where a judge did not meet a model) | group [M, H, D], zero-sum over models, and
    over groups weighted by their items
    favour [M, D] what judges that are models add to a model against the people, zero-sum over models
    s_v, s_group [D] | s_judge_model, s_favour, s_judge_item, s_item_step []
    | position [J] what being shown first adds in a comparison, position_mean [], s_position [] | tie [J] log odds of a
    tie between equals, tie_mean [], s_tie [] | comparison_scale [] logits of a comparison per logit of a rating
    Thinned: u [R, D] response effects | v [M, Q, D] model x item | judge_item [J, Q] | item_step [Q, D, K-1] deviations
    of an item's thresholds. Names of terms that are switched off are absent.
    """

    ratings: Ratings
    options: Options
    draws: dict[str, Floats]
    sampler: dict[str, Floats]
    """divergent, energy, treedepth, stepsize: each [chains, draws]."""
    facts: dict[str, Any]
    """CmdStan version, seconds, model hash, unused categories, notes."""
    left: dict[str, Floats] = field(default_factory=dict)
    """What a fit of more ratings may start from, see `dpeer.eval.irt.restart`."""

    @property
    def length(self) -> int:
        """Draws per chain: more than were asked for where chains went on, fewer where they could end early."""
        return int(self.sampler["divergent"].shape[1])

    def flat(self, name: str) -> Floats:
        """Draws of all chains in one axis: [chains * draws, ...]."""
        values = self.draws[name]
        return values.reshape(-1, *values.shape[2:])

    def __repr__(self) -> str:
        chains, draws = self.sampler["divergent"].shape
        return f"Posterior({self.options.model}, {chains} chains x {draws} draws of {self.ratings!r})"
