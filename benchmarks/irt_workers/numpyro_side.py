"""NumPyro's side of irt_vs_numpyro.py, in an environment that holds NumPyro alone.

The model of eval/irt/model.stan with one criterion and no covariates, as a NumPyro user would write it: whole arrays,
zero-sum normal and `LKJCholesky` priors, one categorical observation per rating. Blocks are centred as ours are, by the
constants that come with the data: that is a choice of coordinates, not a part of the model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.transforms import ZeroSumTransform
from numpyro.infer import MCMC, NUTS, init_to_value
from numpyro.infer.util import initialize_model, log_density

Array = Any


def read(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] if file[name].ndim else file[name].item() for name in file.files}


def zero_sum(scale: Array, shape: tuple[int, ...]) -> dist.Distribution:
    """`ZeroSumNormal(scale, shape)`, which takes one scale only, for a batch of scales."""
    free = scale.shape + tuple(n - 1 for n in shape)
    normal = dist.Normal(0.0, scale.reshape(*scale.shape, *[1] * len(shape))).expand(free)
    return dist.TransformedDistribution(normal.to_event(len(shape)), ZeroSumTransform(len(shape)))


def model(data: dict[str, Any]) -> None:
    Q, J, D, K = (data[name] for name in ("items", "judges", "dimensions", "categories"))

    def partly(name: str, scale: Array, shape: tuple[int, ...]) -> Array:
        """Effects that sum to zero over the axes of `shape`, with prior normal(0, scale) and scale's shape before."""
        share = data[f"centre_{name}"]
        raw = numpyro.sample(f"{name}_raw", zero_sum(scale**share, shape))
        factor = scale ** (1 - share)
        return factor.reshape(*factor.shape, *[1] * len(shape)) * raw

    def spread(name: str, middle: float, sd: float, *shape: int) -> Array:
        return numpyro.sample(f"s_{name}", dist.LogNormal(jnp.log(middle) * jnp.ones(shape), sd))

    mu = numpyro.sample("mu", dist.Normal(jnp.zeros(D), 5.0))
    root = spread("theta", 1.0, 0.8, D)[:, None] * numpyro.sample("L_theta", dist.LKJCholesky(D, 2.0))
    # raw = t factor - seen with t ~ normal(0, 1) and theta = t root', so raw is normal as well
    told = data["centre_theta"]
    factor = jnp.linalg.cholesky(jnp.eye(D) + root.T @ (told[:, None] * root))
    seen = jnp.linalg.solve(factor, root.T @ (told[:, None] * data["centre_theta_at"].T)).T
    raw = numpyro.sample("theta_raw", dist.MultivariateNormal(-seen, covariance_matrix=factor.T @ factor))
    rows = jnp.linalg.solve(factor.T, (raw + seen).T).T @ root.T
    theta = numpyro.deterministic("theta", data["basis"] @ rows)  # [M, D]
    beta = partly("beta", spread("beta", 0.7, 0.8, D), (Q,))  # [D, Q]
    severity = partly("severity", spread("severity", 0.5, 0.8), (J,))[:, None]
    severity = numpyro.deterministic("severity", severity + partly("dev", spread("dev", 0.25, 0.7), (J, D)))
    alpha = jnp.exp(partly("alpha", spread("alpha", 0.35, 0.8), (J,)))
    steps = numpyro.sample("tau_raw", dist.Normal(jnp.zeros((D, K - 2)), 2.5))
    s_tau, share = spread("tau", 0.25, 1.0), data["centre_tau"]
    common = alpha[:, None] * steps[:, None]  # [D, J, K - 2], thresholds in log odds without their sum
    own = numpyro.sample("kappa_raw", dist.Normal(share * common, s_tau**share))
    kappa = (common + s_tau ** (1 - share) * (own - share * common)) @ data["step_basis"].T  # [D, J, K - 1]
    s_u = numpyro.sample("s_u", dist.FoldedDistribution(dist.StudentT(4.0, jnp.zeros(D), 1.0)))

    d = data["cell_dimension"]
    eta = (mu + theta)[data["cell_model"], d] - beta[d, data["cell_item"]]
    share = data["centre_u"]  # [cells]
    u = numpyro.sample("u_raw", dist.Normal(share * eta, s_u[d] ** share))
    eta = eta + s_u[d] ** (1 - share) * (u - share * eta)  # [cells]
    passed = jnp.concatenate([jnp.zeros((D, J, 1)), jnp.cumsum(kappa, axis=-1)], axis=-1)  # [D, J, K]
    if "scores" in data:  # every judge rates every cell: [cells, J, K] without a gather per rating
        place = eta[:, None] - severity.T[d]
        logits = (alpha * place)[..., None] * jnp.arange(K) - passed[d]
        numpyro.sample("score", dist.Categorical(logits=logits), obs=data["scores"])
    else:
        cell, j = data["cell"], data["judge"]
        place = eta[cell] - severity[j, d[cell]]
        logits = (alpha[j] * place)[:, None] * jnp.arange(K) - passed[d[cell], j]
        numpyro.sample("score", dist.Categorical(logits=logits), obs=data["category"])


def crossed(data: dict[str, Any]) -> dict[str, Any]:
    """Scores [cells, J] in place of one entry per rating."""
    scores = np.full((len(data["cell_item"]), data["judges"]), -1)
    scores[data["cell"], data["judge"]] = data["category"]
    if (scores < 0).any() or scores.size != len(data["category"]):
        raise SystemExit("not a full crossing")
    return {name: value for name, value in data.items() if name not in ("cell", "judge", "category")} | {
        "scores": scores
    }


def density(data: dict[str, Any], points: dict[str, Array]) -> list[float]:
    count = len(next(iter(points.values())))
    each = jax.jit(lambda values: log_density(partial(model, data), (), {}, values)[0])
    return [float(each({name: jnp.asarray(v[i]) for name, v in points.items()})) for i in range(count)]


def gradient(data: dict[str, Any], job: dict[str, Any], start: dict[str, Array]) -> list[float]:
    """CPU ms of one compiled gradient of the potential, per round; what NUTS does around it is not counted."""
    info = initialize_model(jax.random.PRNGKey(0), partial(model, data), init_strategy=init_to_value(values=start))
    each = jax.jit(jax.value_and_grad(info.potential_fn))
    jax.block_until_ready(each(info.param_info.z))
    found = []
    for _ in range(job["rounds"]):
        begin = time.process_time()
        for _ in range(job["calls"]):
            jax.block_until_ready(each(info.param_info.z))
        found.append(1000 * (time.process_time() - begin) / job["calls"])
    return found


def sample(data: dict[str, Any], job: dict[str, Any], start: dict[str, Array]) -> dict[str, Any]:
    """Chains in parallel, one device each: they are compiled together, which takes the least CPU time."""
    kernel = NUTS(partial(model, data), init_strategy=init_to_value(values=start), target_accept_prob=job["accept"])
    sizes = {"num_warmup": job["warmup"], "num_samples": job["draws"], "num_chains": job["chains"]}
    run = MCMC(kernel, chain_method="parallel", progress_bar=False, **sizes)
    before = time.process_time()
    run.warmup(jax.random.PRNGKey(job["seed"]))
    middle = time.process_time()
    run.run(run.post_warmup_state.rng_key, extra_fields=("num_steps", "diverging"))
    found = run.get_samples(group_by_chain=True)
    named = {name: np.asarray(found[name], np.float64) for name in ("theta", "severity")}
    np.savez(job["output"], **named)
    extra = run.get_extra_fields(group_by_chain=True)
    return {
        "gradients": int(np.sum(extra["num_steps"])),
        "divergences": int(np.sum(extra["diverging"])),
        "warmup_cpu_s": middle - before,
        "draws_cpu_s": time.process_time() - middle,
    }


def main(job: dict[str, Any]) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", job["precision"] == 64)
    data = read(job["data"])
    data = crossed(data) if job["crossed"] else data
    points = read(job["points"])
    start = {name: values[0] for name, values in points.items()}
    result: dict[str, Any] = {"density": density(data, points)}
    if job["step"] == "gradient":
        result["ms"] = gradient(data, job, start)
    elif job["step"] == "sample":
        result |= sample(data, job, start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result | {"peak_mb": int(status["VmHWM"].split()[0]) / 1024}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
