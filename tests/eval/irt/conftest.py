"""One real fit that the tests of this folder share."""

from __future__ import annotations

import pytest

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Floats, Options, Posterior

SMALL = Spec(models=4, items=16, dimensions=2, judges=3)
SEED = 5


@pytest.fixture(scope="session")
def truth() -> dict[str, Floats]:
    return simulate(SMALL, SEED)[1]


@pytest.fixture(scope="session")
def posterior() -> Posterior:
    table, _ = simulate(SMALL, SEED)
    return fit(encode(table), Options(chains=2, warmup=300, draws=300))
