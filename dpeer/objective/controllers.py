"""The controllers, one class each: where the multipliers want to go, from what is known of the constraint values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dpeer.objective.options import options_of
from dpeer.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from dpeer.config import Dual


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a controller sees in one step, [C] fp64 each.

    g: constraint values of this step; smoothed: their moving average, this step included
    xi, xi_before: nu-PI's smoothed error after and before this step
    integral: the clipped sum of eta ki g; rise: growth of g since the last observation, at least 0
    multipliers: those in force
    """

    g: Tensor
    smoothed: Tensor
    xi: Tensor
    xi_before: Tensor
    integral: Tensor
    rise: Tensor
    multipliers: Tensor


class Controller(ABC):
    """Base of all controllers. A subclass is registered under its `name`.

    options: names of further numbers in `dual.options` with their defaults; None must be given
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, float | None]] = {}

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            raise TypeError(f"controller {cls.__name__} does not say its name")
        CONTROLLERS.register(cls.name, cls)

    def __init__(self, dual: Dual) -> None:
        self.dual = dual
        self.values = options_of("options", self.options, dual.options)

    def error(self, reading: Reading) -> Tensor:
        """[C]: what the dead zone is compared with."""
        return reading.g

    @abstractmethod
    def target(self, reading: Reading) -> Tensor:
        """[C]: the multipliers wanted next, before they are clipped to [0, dual.max]."""


CONTROLLERS: Registry[type[Controller]] = Registry("controller", __name__)


class Ascent(Controller):
    """Gradient ascent: lambda + eta g_hat, g_hat the moving average of g."""

    name = "ascent"

    def error(self, reading: Reading) -> Tensor:
        return reading.smoothed

    def target(self, reading: Reading) -> Tensor:
        return reading.multipliers + self.dual.eta * reading.smoothed


class NuPI(Controller):
    """Sohrabi et al. (2024): lambda + eta (ki g + kp (xi - xi_previous)), xi_{-1} = 0."""

    name = "nu_pi"

    def target(self, reading: Reading) -> Tensor:
        dual = self.dual
        return reading.multipliers + dual.eta * (dual.ki * reading.g + dual.kp * (reading.xi - reading.xi_before))


class PID(Controller):
    """Stooke et al. (2020): I + eta (kp g + kd [g - g_previous]+) with the integral I = [I + eta ki g] in [0, max]."""

    name = "pid"

    def target(self, reading: Reading) -> Tensor:
        dual = self.dual
        return reading.integral + dual.eta * (dual.kp * reading.g + dual.kd * reading.rise)
