"""The RayJob of docs/cluster.md has fields that exist, with values of their types.

The table below is written by hand from KubeRay's published ray.io/v1 types and the pod fields that the manifest uses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


class Fields(dict[str, Any]):
    """An object: field -> type; names with * must be there."""


MAP = {str: str}
POD = Fields({
    "metadata": dict,
    "spec*": Fields({
        "terminationGracePeriodSeconds": int,
        "volumes": [Fields({"name*": str, "persistentVolumeClaim": Fields({"claimName*": str, "readOnly": bool}),
                            "emptyDir": Fields({"medium": str, "sizeLimit": str})})],
        "containers*": [Fields({
            "name*": str, "image": str,
            "resources": Fields({"limits": MAP, "requests": MAP}),
            "volumeMounts": [Fields({"name*": str, "mountPath*": str, "readOnly": bool, "subPath": str})],
        })],
    }),
})  # fmt: skip
RAYJOB = Fields({
    "apiVersion*": "ray.io/v1", "kind*": "RayJob", "metadata*": Fields({"name*": str, "namespace": str}),
    "spec*": Fields({
        "entrypoint": str, "backoffLimit": int, "activeDeadlineSeconds": int, "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int, "runtimeEnvYAML": str, "submissionMode": str,
        "submitterConfig": Fields({"backoffLimit": int}),
        "rayClusterSpec": Fields({
            "rayVersion": str, "authOptions": Fields({"mode": str, "secretName": str}),
            "headGroupSpec*": Fields({"serviceType": str, "rayStartParams": MAP, "template*": POD}),
            "workerGroupSpecs": [Fields({
                "groupName*": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int,
                "rayStartParams": MAP, "template*": POD,
            })],
        }),
    }),
})  # fmt: skip


def faults(value: Any, wanted: Any, at: str = "") -> list[str]:
    if isinstance(wanted, Fields):
        if not isinstance(value, dict):
            return [f"{at}: not an object"]
        types = {name.rstrip("*"): kind for name, kind in wanted.items()}
        found = [f"{at}.{name}: missing" for name in wanted if name.endswith("*") and name[:-1] not in value]
        found += [f"{at}.{name}: unknown" for name in value if name not in types]
        return found + [f for n, v in value.items() if n in types for f in faults(v, types[n], f"{at}.{n}")]
    if isinstance(wanted, list):
        return [f for i, v in enumerate(value) for f in faults(v, wanted[0], f"{at}[{i}]")]
    if isinstance(wanted, dict):
        return [f"{at}.{k}: not text" for k, v in value.items() if not (isinstance(k, str) and isinstance(v, str))]
    fits = type(value) is wanted if isinstance(wanted, type) else value == wanted
    return [] if fits else [f"{at}: {value!r} is not {wanted!r}"]


@pytest.fixture
def manifest() -> Any:
    found = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.S)
    assert found
    return yaml.safe_load(found[1])


def test_manifest_fits_the_published_types(manifest: Any) -> None:
    assert faults(manifest, RAYJOB) == []
    assert manifest["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "600"


def test_the_check_sees_faults(manifest: Any) -> None:
    spec = manifest["spec"]
    spec["backoffLimits"] = spec.pop("backoffLimit")
    spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-gpus"] = 8
    del spec["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    assert len(faults(manifest, RAYJOB)) == 3


def test_ray_version_is_the_one_that_is_installed(manifest: Any) -> None:
    from importlib.metadata import version

    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
