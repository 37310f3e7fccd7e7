"""Training on Ray: worker groups for the run, a lock on it, restarts, and exit codes for schedulers."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from dpeer.config import Config
from dpeer.errors import ClusterError, ConfigError, DpeerError, Interrupted
from dpeer.launcher import exit_codes
from dpeer.launcher.cluster import NodeLost, connect
from dpeer.launcher.driver import (
    already_finished,
    as_begun,
    check_startable,
    disk_faults,
    only_driver,
    refuse_lost_gpus,
    tokenise,
    watch,
    write_pages,
)
from dpeer.launcher.gpus import device_line, resolved_gpus
from dpeer.launcher.group import Groups
from dpeer.launcher.outlasting import OUTPUT, outlasting
from dpeer.launcher.preflight.quick import check_quickly, is_private, token
from dpeer.launcher.signals import Signals
from dpeer.launcher.trackers import check_trackers
from dpeer.training.calls import DeviceLost, WorkerFailed, WorkerLost
from dpeer.training.choice import check_settings
from dpeer.training.dates import dated
from dpeer.training.run import TrainingRun, roles
from dpeer.training.run_dir import RunDir

WORKING_DIR_COPIES = "/runtime_resources/working_dir_files/"  # of Ray, on each node


def run(config: Config, *, resume: bool = False) -> int:
    """Train as the recipe says; returns the process's exit code.

    0 done, 130 / 143 / 129 stopped by Ctrl-C / SIGTERM / SIGHUP and saved, 85 pre-empted and saved, 86 a node was lost.
    """
    refuse_perishable(config)
    check_settings(config)
    files = RunDir(config.run_dir)
    check_startable(files, resume)
    check_trackers(config)
    with Signals(files), outlasting(config.run_dir / OUTPUT):
        try:
            token(config)
            with connect(config.cluster.address):
                groups = begun(config, files)
                try:
                    if config.cluster.preflight:
                        check_quickly(config)
                    groups = groups or Groups(config)
                    return train(config, groups, resume=resume)
                finally:
                    if groups:
                        groups.close()
        except Interrupted as stopped:
            print(stopped, flush=True)
            return stopped.code


def begun(config: Config, files: RunDir) -> Groups | None:
    """Groups whose workers load their libraries while the driver looks at nodes and data: on a private cluster, where
    nobody else waits for the places. None where they have nothing to do yet, or do not start: the run itself tells."""
    other_first = config.cluster.reference == "cache" and not config.model.reference_in_policy
    if not is_private(config) or other_first:
        return None
    with suppress(DpeerError):
        if not files.finished:
            groups = Groups(config)
            groups.begin(*roles(config))
            return groups
    return None


def refuse_perishable(config: Config) -> None:
    """ConfigError when the run's folder is in the copy that a Ray job works in, which Ray deletes after the job."""
    if WORKING_DIR_COPIES in str(config.run_dir.absolute()):
        raise ConfigError(
            f"output_dir ({config.output_dir}) is relative to the copy of --working-dir in which a Ray job runs, and "
            "Ray deletes that copy after the job. Give an absolute path on a file system that all nodes share."
        )


def train(config: Config, groups: Groups, *, resume: bool = False) -> int:
    files = RunDir(config.run_dir)
    check_startable(files, resume)
    config = as_begun(config, files)
    if already_finished(files, config):
        return 0
    given, config = config, dated(resolved_gpus(config))
    refuse_lost_gpus(given, config, files)
    if line := device_line(given, config):
        print(line, flush=True)
    with only_driver(config):
        return _train(config, groups, files)


def _one_machine(config: Config) -> bool:
    """There is no other node to go to; lanes of a sweep find their driver's cluster on the loopback."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or ""
    return not address or address.startswith("127.")


def _train(config: Config, groups: Groups, files: RunDir) -> int:
    restarts = 0
    with Signals(files) as signals:
        tokenise(config, files)
        while True:
            try:
                with disk_faults(files):
                    TrainingRun(config, groups, files, signals, partial(watch, config, files)).run()
                    write_pages(files)
                return 0
            except WorkerFailed as failed:
                kept = files.keep_error(str(failed), failed.details)
                raise ClusterError(
                    f"{failed}\nIts traceback is in {kept}. Remove the cause. {files.way_on}"
                ) from failed
            except WorkerLost as lost:
                groups.close()
                if lost.details:
                    print(f"What the workers said: {files.keep_error(str(lost), lost.details)}", flush=True)
                if lost.report:
                    print(f"Stacks of all ranks: {files.keep_stall(lost.report)}", flush=True)
                if signals.received:
                    print(f"{lost} Stopped by a signal. {files.way_on}", flush=True)
                    return signals.exit_code
                leave = isinstance(lost, DeviceLost) and not _one_machine(config)
                restarts += 1
                if leave and restarts > config.cluster.max_restarts:
                    print(f"{lost} Leave that host out. {files.way_on}", flush=True)
                    return exit_codes.NODE_LOST
                if restarts > config.cluster.max_restarts:
                    raise ClusterError(
                        f"{lost} Gave up after {config.cluster.max_restarts} restarts (cluster.max_restarts). "
                        f"{files.way_on}"
                    ) from lost
                which = f"{restarts} of {config.cluster.max_restarts}"
                if leave and isinstance(lost, DeviceLost):
                    groups.left.add(lost.node)
                    which += f", without host {lost.host}"
                print(f"{lost} Restarting from the last checkpoint ({which}).", flush=True)
            except NodeLost as lost:
                print(f"{lost} {files.way_on}", flush=True)
                return exit_codes.NODE_LOST
            except Interrupted as stopped:
                print(stopped, flush=True)
                return stopped.code
