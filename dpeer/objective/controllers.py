"""The controllers, one class each: where the multipliers want to go, from what is known of the constraint values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dpeer.objective.options import options_of
from dpeer.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from dpeer.config import Dual

Memory = Mapping[str, "Tensor"]
"""What a controller or a form remembers between steps, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a controller sees in one step, [C] fp64 each.

    g: constraint values of this step, above 0 where violated; smoothed: their moving average, this step included
    multipliers: those in force
    first: bool, the constraint has not been observed before
    clip: where multipliers must stay, [0, dual.max] or the simplex
    """

    g: Tensor
    smoothed: Tensor
    multipliers: Tensor
    first: Tensor
    clip: Callable[[Tensor], Tensor]


class Controller(ABC):
    """Base of all controllers. A subclass is registered under its `name`.

    kp, ki, kd: its gains where the recipe gives none
    options: names of further numbers in `dual.options` with their defaults; None must be given
    """

    name: ClassVar[str]
    kp: float = 1.0
    ki: float = 1.0
    kd: float = 0.0
    options: ClassVar[Mapping[str, float | None]] = {}

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            raise TypeError(f"controller {cls.__name__} does not say its name")
        CONTROLLERS.register(cls.name, cls)

    def __init__(self, dual: Dual) -> None:
        self.dual = dual
        self.values = options_of("options", self.options, dual.options)
        for gain in ("kp", "ki", "kd"):
            if (given := getattr(dual, gain)) is not None:
                setattr(self, gain, given)

    def memory(self, multipliers: Tensor) -> Memory:
        """What it remembers before the first step, [C] each, from the first multipliers."""
        return {}

    def error(self, reading: Reading) -> Tensor:
        """[C]: what the dead zone is compared with."""
        return reading.g

    @abstractmethod
    def step(self, reading: Reading, memory: Memory) -> tuple[Tensor, Memory]:
        """[C], the multipliers wanted next, which are clipped afterwards; and what to remember."""


CONTROLLERS: Registry[type[Controller]] = Registry("controller", __name__)


class PI(Controller):
    """lambda = clip(I + kp g_hat), I <- I + (ki / kp) (clip(I + kp g) - I), g_hat the moving average of g.

    Proportional-integral with joint clipping: as long as lambda is inside its range the second rule is I + ki g, the
    method of multipliers with penalty kp; at the edge the integral follows the clipped multiplier and does not wind up.
    """

    name = "pi"
    kp = 10.0
    ki = 0.2

    def memory(self, multipliers: Tensor) -> Memory:
        return {"integral": multipliers}

    def step(self, reading: Reading, memory: Memory) -> tuple[Tensor, Memory]:
        integral = memory["integral"]
        if self.kp > 0:
            reached = reading.clip(integral + self.kp * reading.g)
            moved = integral + min(1.0, self.ki / self.kp) * (reached - integral)
        else:
            moved = reading.clip(integral + self.ki * reading.g)
        return moved + self.kp * reading.smoothed, {"integral": moved}


class Ascent(Controller):
    """Gradient ascent: lambda + eta g_hat."""

    name = "ascent"

    def error(self, reading: Reading) -> Tensor:
        return reading.smoothed

    def step(self, reading: Reading, memory: Memory) -> tuple[Tensor, Memory]:
        return reading.multipliers + self.dual.eta * reading.smoothed, {}


class NuPI(Controller):
    """Sohrabi et al. (2024): lambda + eta (ki g + kp (xi - xi_previous)), xi <- nu xi + (1 - nu) g, xi_{-1} = 0."""

    name = "nu_pi"

    def memory(self, multipliers: Tensor) -> Memory:
        return {"xi": 0 * multipliers}

    def step(self, reading: Reading, memory: Memory) -> tuple[Tensor, Memory]:
        before, nu = memory["xi"], self.dual.nu
        xi = nu * before + (1 - nu) * reading.g
        return reading.multipliers + self.dual.eta * (self.ki * reading.g + self.kp * (xi - before)), {"xi": xi}


class PID(Controller):
    """Stooke et al. (2020): I + eta (kp g + kd [g - g_previous]+) with the integral I = [I + eta ki g] in [0, max]."""

    name = "pid"

    def memory(self, multipliers: Tensor) -> Memory:
        return {"integral": multipliers, "previous": 0 * multipliers}

    def step(self, reading: Reading, memory: Memory) -> tuple[Tensor, Memory]:
        eta, g = self.dual.eta, reading.g
        integral = reading.clip(memory["integral"] + eta * self.ki * g)
        rise = (g - memory["previous"]).clamp(min=0).where(~reading.first, 0.0)
        return integral + eta * (self.kp * g + self.kd * rise), {"integral": integral, "previous": g}
