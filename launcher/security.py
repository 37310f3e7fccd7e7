"""How the clusters that dpeer starts or joins are guarded: set in one place, when a cluster is connected to."""

from __future__ import annotations

import os
import sys
from typing import Any

from dpeer.errors import ClusterError

DEFAULTS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # every worker has an environment of its own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of Ray and of all that it starts; what the user has set stays."""


def guard_ray() -> None:
    """Ask for a token from whoever connects, unless RAY_AUTH_MODE says otherwise; no reports to Ray's makers.

    ClusterError: this process is in a cluster already that lets everybody in, which cannot be changed any more.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "ray" not in sys.modules:
        return  # it reads them when it is imported
    import ray
    from ray import _raylet
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    if not ray.is_initialized():
        raylet: Any = _raylet
        raylet.Config.initialize("")  # as Ray does itself when it turns tokens on
    elif os.environ["RAY_AUTH_MODE"].lower() == "token" and not is_token_auth_enabled():
        raise ClusterError(
            "this process is connected to a Ray cluster without authentication: whoever reaches one of its ports can "
            "run code as you. Let dpeer connect first, or call ray.shutdown() before it; to accept an open cluster, "
            "set RAY_AUTH_MODE=disabled before Ray is imported."
        )
