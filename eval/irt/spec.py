"""What a simulated data set consists of, and the truth behind it."""

from __future__ import annotations

from dataclasses import dataclass

from dpeer.errors import ConfigError
from dpeer.eval.irt.types import GRADED


@dataclass(frozen=True, slots=True)
class Spec:
    """A design and the truth behind it. Spreads and effects are in logits; 0 switches a term off."""

    models: int = 8
    items: int = 60
    dimensions: int = 4
    judges: int = 3
    categories: int = 5
    samples: int = 1
    """Responses per model and item."""
    link: str = "adjacent"
    """Logits of adjacent categories, or cumulative ones (graded), whose thresholds are put in order."""
    repeats: int = 1
    """Ratings per judge, response and criterion; every second one lists the scale from the top."""
    criteria: int = 1
    """Per dimension."""
    families: int = 4
    """Model m is of family m modulo this number; so is judge j."""
    self_judges: int = 0
    """So many judges are models under test: judge j is model j."""
    linked: tuple[int, int] | None = None
    """Anchor items and judges per response of a linked design; None: every judge rates everything."""
    missing: float = 0.0
    """Share of ratings that did not parse."""
    rated: bool = True
    """Whether responses are rated; without, there are comparisons only."""
    compared: int = 0
    """How often each judge compares every two models' responses to an item, each time in both orders."""
    position: float = 0.0
    """What being shown first adds in a comparison, mean over judges."""
    s_position: float = 0.0
    """Spread of that over judges."""
    tie: float = 0.0
    """Log odds of a tie between equals, over either of them winning."""
    comparison_scale: float = 1.0
    """Logits of a comparison per logit of a rating."""
    mu: float = 0.0
    s_theta: float = 1.0
    correlation: float = 0.3
    """Of abilities between any two dimensions."""
    s_beta: float = 0.8
    s_u: float = 0.8
    s_v: float = 0.0
    """Of model x item effects."""
    s_severity: float = 0.6
    s_dev: float = 0.2
    s_alpha: float = 0.25
    """Of log discrimination; 0 is the many-facet Rasch model."""
    s_delta: float = 0.3
    s_tau: float = 0.2
    """Of a judge's deviations from the common thresholds."""
    step: float = 1.0
    """Distance of neighbouring thresholds."""
    s_halo: float = 0.0
    length: float = 0.0
    """Per standard deviation of log response length."""
    order: float = 0.0
    own_family: float = 0.0
    own_model: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("models", "items", "dimensions", "judges", "samples", "repeats", "criteria", "families")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; must be at least 1")
        if self.link not in ("adjacent", GRADED):
            raise ConfigError(f"link: {self.link}; must be adjacent or {GRADED}")
        if not 2 <= self.categories <= 10:
            raise ConfigError(f"categories: {self.categories}; must be from 2 to 10")
        if not 0 <= self.self_judges <= min(self.judges, self.models):
            raise ConfigError(f"self_judges: {self.self_judges}; must be from 0 to the number of judges and of models")
        if not 0 <= self.missing < 1:
            raise ConfigError(f"missing: {self.missing}; must be from 0 to less than 1")
        spreads = ("theta", "beta", "u", "v", "severity", "dev", "alpha", "delta", "tau", "halo", "position")
        for name in (f"s_{spread}" for spread in spreads):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}; a standard deviation is not negative")
        if not -1 / max(self.dimensions - 1, 1) < self.correlation < 1:
            raise ConfigError(f"correlation: {self.correlation}; not possible between {self.dimensions} dimensions")
