"""`cluster.gpus_per_worker: auto`, made a number once the cluster is known."""

from __future__ import annotations

from dpeer.config import Config


def resolved_gpus(config: Config, gpus: float | None = None) -> Config:
    """One GPU per worker where there are any (`gpus`; default: what Ray shows), else none. Too few for all workers are
    refused by their placement: whoever has a GPU shall not train on the CPU unawares."""
    if config.cluster.gpus_per_worker != "auto":
        return config
    if gpus is None:
        import ray  # torchrun does without it

        gpus = ray.cluster_resources().get("GPU", 0)
    cluster = config.cluster.model_copy(update={"gpus_per_worker": 1 if gpus else 0})
    return config.model_copy(update={"cluster": cluster})


def device_line(before: Config, after: Config) -> str:
    """What `auto` has become, in words; empty where the recipe says it."""
    if before.cluster.gpus_per_worker != "auto":
        return ""
    chosen = "one GPU per worker" if after.cluster.on_gpus else "trains on the CPU: the cluster shows no GPU"
    return f"{after.name}: {chosen} (cluster.gpus_per_worker is auto)"
