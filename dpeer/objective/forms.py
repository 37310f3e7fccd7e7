"""The constraint forms, one class each: what is bounded, by what, and how it is certified on held-out records.

Every form bounds linear combinations of per-dimension means: g_c = sum over members of +-(q_d - offset_d) - bound_c,
which must be <= 0; q_d is the mean over the dimension's edges of the edge loss or of a value of the form's own. The
first member of a constraint counts positive, a second one negative. What a form remembers between steps is a dict of
tensors that it alone reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

from dpeer.objective.options import options_of
from dpeer.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from dpeer.config import Objective
    from dpeer.objective.controllers import Memory
    from dpeer.objective.statistics import Summary


class Form:
    """Base of all forms. A subclass with a `name` is registered; `meaning` and `certifiable` have no default.

    name: what recipes say
    meaning: a clause in plain words, for cards and reports
    certifiable: True only if the mean of `edge_values` (or of the edge loss) minus `certified_offsets` over held-out
        records, compared with the bound, is what the form promises
    own_values: the bounded quantity is the mean of `edge_values`, not of the edge loss
    proxy: multipliers weigh the edge loss although `own_values` are bounded, as these have no useful gradient
        (proxy Lagrangian; Cotter et al., 2019)
    simplex: multipliers are the weights themselves: at least 0, with sum 1, in place of primary weights
    uses_slack: the bound is `constraint.slack`
    bounds_loss: a tolerance is a level of the edge loss itself, so that it may be drawn into plots of the loss
    options: names of further numbers in `constraint.options` with their defaults; None must be given
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    certifiable: ClassVar[bool]
    own_values: ClassVar[bool] = False
    proxy: ClassVar[bool] = False
    simplex: ClassVar[bool] = False
    bounds_loss: ClassVar[bool] = False
    uses_slack: ClassVar[bool] = False
    options: ClassVar[Mapping[str, float | None]] = {}

    def __init_subclass__(cls) -> None:
        for attribute in ("name", "meaning", "certifiable"):
            if attribute not in vars(cls):
                raise TypeError(f"constraint form {cls.__name__} does not say its {attribute}")
        FORMS.register(cls.name, cls)

    def __init__(self, slack: float = 0.0, options: Mapping[str, float] | None = None) -> None:
        self.slack = slack
        self.values = options_of("options", self.options, options or {})

    def members(self, dimensions: int) -> tuple[tuple[int, ...], ...]:
        """Dimension indices of each constraint: one, or two of which the second counts negative."""
        return tuple((d,) for d in range(dimensions))

    def bounds(self, tolerances: Tensor) -> Tensor:
        """[C]: what an estimate may not exceed, from the tolerances [C]; inf stays inf."""
        return tolerances

    def edge_values(self, margins: Tensor, losses: Tensor, tolerances: Tensor) -> Tensor:
        """[E], differentiable: the form's own value of each edge, from its margin, loss and tolerance. Read where
        `own_values` is set."""
        raise AssertionError(f"form {self.name} bounds the edge loss")

    def edge_bound(self, objective: Objective) -> float | None:
        """What no edge's value (>= 0) exceeds; None: it counts up to `objective.certificate.bound` if certified."""
        return None

    def memory(self, dimensions: int) -> Memory:
        """What the form remembers before the first step."""
        return {}

    def remember(self, memory: Memory, summary: Summary, ema: float) -> Memory:
        """The memory after a step with these statistics."""
        return memory

    def offsets(self, memory: Memory, summary: Summary) -> Tensor | float:
        """[D] or a number: what is subtracted from each mean in training, before this step is remembered."""
        return 0.0

    def certified_offsets(self, memory: Memory | None, dimensions: int) -> Tensor | float:
        """[D] or a number: what is subtracted from each held-out mean; nan where it is unknown. `memory` is that at
        the end of training, None where there was none."""
        return 0.0


FORMS: Registry[type[Form]] = Registry("constraint form", __name__)


class Threshold(Form):
    """L_d <= eps_d."""

    name = "threshold"
    meaning = "the mean edge loss of each dimension stays at or below its tolerance"
    certifiable = True
    bounds_loss = True


class WinRate(Form):
    """1 - (share of edges with a positive margin) <= eps_d. Multipliers follow the share, gradients the edge loss."""

    name = "winrate"
    meaning = "the share of pairs of each dimension that the model ranks wrongly stays at or below its tolerance"
    certifiable = True
    own_values = True
    proxy = True

    def edge_values(self, margins: Tensor, losses: Tensor, tolerances: Tensor) -> Tensor:
        return (margins <= 0).to(margins.dtype)

    def edge_bound(self, objective: Objective) -> float:
        return 1.0


class Worst(Form):
    """L_d <= eps_d as in `threshold`, trained for the worst: min over policies of max_d (L_d - eps_d).

    With one tolerance for all dimensions this finds the tightest one that they can have in common. The multipliers are
    the weights, on the simplex: group DRO (Sagawa et al., 2020), of which this is the epigraph form.
    """

    name = "worst"
    meaning = "the mean edge loss of each dimension stays at or below its tolerance, the worst one being trained most"
    certifiable = True
    bounds_loss = True
    simplex = True


class Balance(Form):
    """L_i - L_j <= eps_i for each ordered pair (i, j).

    The Lagrangian stays linear in every L_d, and with one eps per dimension eps_i says how far dimension i may lag
    behind any other.
    """

    name = "balance"
    meaning = "the mean edge loss of no dimension exceeds that of another by more than its tolerance"
    certifiable = True

    def members(self, dimensions: int) -> tuple[tuple[int, ...], ...]:
        return tuple(permutations(range(dimensions), 2))


class Margin(Form):
    """Mean hinge [eps_d - m]+ <= slack; its multiplier weighs the hinge itself."""

    name = "margin"
    meaning = "the mean hinge [tolerance - margin]+ of each dimension stays at or below the slack"
    certifiable = True
    own_values = True
    uses_slack = True

    def bounds(self, tolerances: Tensor) -> Tensor:
        return tolerances.where(~tolerances.isfinite(), self.slack)

    def edge_values(self, margins: Tensor, losses: Tensor, tolerances: Tensor) -> Tensor:
        from dpeer.objective.preference import margin_hinge

        return margin_hinge(margins, tolerances)


class Protect(Form):
    """L_d - best_d <= eps_d, best_d being the lowest level that L_d has provably had before; 0 at first.

    A level counts once the smoothed loss plus two of its standard errors lies below the best so far: the minimum of a
    noisy curve alone falls for ever, and the constraint with it.
    """

    name = "protect"
    meaning = "the mean edge loss of no dimension rises above its best so far by more than its tolerance"
    certifiable = True

    def memory(self, dimensions: int) -> Memory:
        import torch

        zeros = torch.zeros(dimensions, dtype=torch.float64)
        return {"loss": zeros, "variance": zeros, "best": zeros + math.inf}

    def remember(self, memory: Memory, summary: Summary, ema: float) -> Memory:
        import torch

        first, seen = memory["best"].isinf(), summary.edges > 0
        noise = summary.loss_se.nan_to_num(0.0).square()
        loss = (ema * memory["loss"] + (1 - ema) * summary.loss).where(~first, summary.loss)
        variance = (ema**2 * memory["variance"] + (1 - ema) ** 2 * noise).where(~first, noise)
        best = torch.minimum(memory["best"], loss + 2 * variance.sqrt())
        new = {"loss": loss, "variance": variance, "best": best}
        return {name: values.where(seen, memory[name]) for name, values in new.items()}

    def offsets(self, memory: Memory, summary: Summary) -> Tensor:
        return memory["best"].where(memory["best"].isfinite(), summary.loss)

    def certified_offsets(self, memory: Memory | None, dimensions: int) -> Tensor:
        from dpeer.errors import DpeerError

        if memory is None:
            raise DpeerError("form 'protect' is judged against the best loss in training: pass the final dual state")
        return memory["best"].where(memory["best"].isfinite(), math.nan)
