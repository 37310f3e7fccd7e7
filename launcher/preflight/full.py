"""`dpeer preflight`: the quick checks, then data, models, one score by policy and reference, one checkpoint."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from typing import Any

from dpeer.config import Config
from dpeer.errors import ClusterError, DpeerError
from dpeer.estimate.saved_size import saved_size
from dpeer.integrity import read_state
from dpeer.launcher.cluster import connect
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.group import Group, Groups
from dpeer.launcher.preflight import judge
from dpeer.launcher.preflight.checklist import Checklist, Warn
from dpeer.launcher.preflight.quick import Say, bytes_in, quick, token
from dpeer.training import preflight
from dpeer.training.calls import LONG_S, Phase, PolicyCalls, ReferenceCalls, Scores
from dpeer.training.choice import check_settings
from dpeer.training.dates import dated
from dpeer.training.grace import shortage
from dpeer.training.policy import TreeMismatch
from dpeer.training.prepare import Prepared, prepare
from dpeer.training.run_dir import RunDir, refuse_unshared
from dpeer.training.scoring import merge

Score = Callable[[Any, int, int], Scores]
RECORDS = 8  # scored by policy and reference
DATA = (
    "records",
    "objective",
    "chat template",
    "reference weights",
    "run folder",
    "checkpoints",
)
ROLES = ("process groups", "reference model", "policy model", "tree attention")
SCORES = ("step-0 identity", "reference cache")
ROUND_TRIP = ("save and load",)


def full(config: Config, checks: Checklist, *, only_quick: bool = False, say: Say = lambda text: None) -> None:
    """Every check; what cannot be tried after a red one is listed as skipped."""
    deep = (*DATA, *ROLES, *SCORES, *ROUND_TRIP)
    checks.check("config", check_settings, config)
    checks.check("token", token, config)
    if not checks.ok:
        checks.skip(("cluster",), "not tried")
        return
    try:
        say("connecting")
        with connect(config.cluster.address):
            config = resolved_gpus(config)
            quick(config, checks, say)
            if only_quick:
                return
            config = dated(RunDir(config.run_dir).at_its_rate(config))
            prepared = data(config, checks, say)
            if prepared is None or not checks.ok:
                checks.skip(tuple(n for n in deep if n not in DATA), "after a fault above")
                return
            groups = Groups(config)
            try:
                models(config, checks, groups, prepared, say)
            finally:
                groups.close()
    except ClusterError as error:
        checks.fail("cluster", error)


def data(config: Config, checks: Checklist, say: Say) -> Prepared | None:
    """Records, template and what an earlier life of the run has left."""
    say("reading and auditing the data")
    box: list[Prepared] = []

    def audit() -> str | Warn:
        box.append(prepare(config))
        found, told = preflight.tokens(box[0]), box[0].warnings
        return Warn(f"{found}; {'; '.join(told)}", "") if told else found

    if not checks.check("records", audit):
        checks.skip(DATA[1:], "after a fault above")
        return None
    prepared = box[0]
    checks.check("objective", _objective, config, prepared)
    checks.check("chat template", preflight.chat_template, config, prepared)
    checks.check("reference weights", preflight.reference, config, prepared)
    checks.check("run folder", preflight.run_folder, config, prepared)
    checks.check("checkpoints", preflight.checkpoints, config, prepared)
    return prepared


def _objective(config: Config, prepared: Prepared) -> str | Warn:
    found = preflight.objective(config, prepared)
    if lines := preflight.out_of_reach(config, prepared):
        return Warn("; ".join(lines), "`dpeer tolerance` says what can be had and proven.")
    return found


# Models


def models(config: Config, checks: Checklist, groups: Groups, prepared: Prepared, say: Say) -> None:
    """Workers, models, one score of a few records by both of them, and a checkpoint there and back."""
    mode, preference = config.cluster.reference, config.objective.kind == "preference"
    count = min(RECORDS, len(prepared.train.trees))
    scores: dict[str, list[list[float]]] = {}

    def start() -> str:
        began = time.monotonic()
        ranks = groups.start("policy", "reference") if mode == "workers" else groups.start("policy")
        return f"{sum(g.size for g in ranks)} ranks joined, one all-reduce each, in {time.monotonic() - began:.1f} s"

    def score(group: Group, method: Score = ReferenceCalls.score_train) -> list[list[float]]:
        return merge(group.call("scoring a few records", method, 0, count), count)

    def build_reference() -> str:
        group = groups.reference() if mode == "workers" else groups.policy()
        group.build(config, "reference")
        scores["reference"] = score(group)
        return f"{config.model.reference_path or config.model.path}: {count} records scored"

    def build_policy() -> str:
        groups.policy().build(config)
        scores["policy"] = score(groups.policy())
        if mode == "colocated":
            scores["reference"] = score(groups.policy(), PolicyCalls.score_train_reference)
        return f"{config.model.path}: {count} records scored"

    say("starting the workers")
    if not checks.check("process groups", start):
        checks.skip((*ROLES[1:], *SCORES, *ROUND_TRIP), "after a fault above")
        return
    if config.cluster.on_gpus:
        say("measuring the links between GPUs")
        checks.check("GPU links", _links, groups.policy())
    say("loading the models")
    if preference and mode != "colocated" and not checks.check("reference model", build_reference):
        checks.skip((*ROLES[2:], *SCORES, *ROUND_TRIP), "after a fault above")
        return
    try:
        built = build_policy()
    except DpeerError as error:
        mismatch = isinstance(error, TreeMismatch)
        checks.fail("tree attention" if mismatch else "policy model", error)
        checks.skip((*([] if mismatch else ["tree attention"]), *SCORES, *ROUND_TRIP), "after a fault above")
        return
    checks.check("policy model", lambda: built)
    checks.check("tree attention", lambda: "a record scores the same as a tree and as separate sequences")
    if preference:
        compare_scores(config, checks, prepared, scores["policy"], scores["reference"])
    else:
        checks.skip(SCORES, "objective sft has no reference")
    say("saving and loading a checkpoint")
    checks.check("save and load", round_trip, config, groups.policy())


def _links(policy: Group) -> str | Warn:
    return judge.gpu_links(policy.bandwidth(), policy.size, len({place["node"] for place in policy.hosts}))


def compare_scores(
    config: Config, checks: Checklist, prepared: Prepared, policy: list[list[float]], reference: list[list[float]]
) -> None:
    """The fresh policy must score as the reference does; the cache must hold what the reference says."""
    if config.model.reference_is_base:
        checks.check("step-0 identity", preflight.identity, config, prepared.train, policy, reference)
    else:
        checks.skip(("step-0 identity",), "the reference is another model")
    checks.check("reference cache", preflight.reference_cache, config, prepared.train, reference)


def round_trip(config: Config, policy: Group) -> str | Warn:
    """A checkpoint of the fresh policy in a temporary folder, loaded into blanked weights and compared."""
    folder = config.output_dir / f".preflight-{uuid.uuid4().hex[:12]}"
    try:
        times = [time.monotonic()]
        save = policy.call(Phase("saving a checkpoint", LONG_S), PolicyCalls.save, folder)[0]
        refuse_unshared(folder, "the driver")
        times.append(time.monotonic())
        size, engine = bytes_in(folder), read_state(folder / "state.json", "")["engine"]
        policy.call("blanking the weights", PolicyCalls.blank)  # or weights that were not loaded would still be there
        policy.call(Phase("loading a checkpoint", LONG_S), PolicyCalls.load, folder)
        times.append(time.monotonic())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    speed = f"{save['bytes'] / max(save['seconds'], 1e-9) / 1e9:.2f} GB/s"
    shown = (
        f"{size / 2**20:,.1f} MiB saved in {times[1] - times[0]:.1f} s ({speed}), loaded in {times[2] - times[1]:.1f} s"
    )
    full = saved_size(config, frozen=engine == "deepspeed").checkpoint  # this one has no moments yet
    if short := shortage(config, full, save["seconds"] * full / max(save["bytes"], 1)):
        return Warn(f"{shown}.", f"{short[0].upper()}{short[1:]}.")
    return shown
