"""A few seeded faults over one run; `chaos.py` plants as many as you like."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.chaos import Chaos
from tests.launcher.conftest import build_lab


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_run_survives_a_full_disk_and_the_death_of_rays_daemons(tmp_path: Path) -> None:
    """Kills of driver and workers are in test_train_ray.py."""
    outcomes = Chaos(build_lab(tmp_path), ("disk", "gcs", "raylet"), seed=0).run()
    assert {o.fault for o in outcomes} >= {"gcs", "raylet"}
    for outcome in outcomes:
        assert outcome.code != 0
        if outcome.fault == "disk":
            assert (outcome.code == 1 and "make room" in outcome.reason) or "there is room" in outcome.reason
