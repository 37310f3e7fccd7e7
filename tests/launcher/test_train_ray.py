"""The whole command line with real Ray and DeepSpeed processes: kills, signals, silence, modes, refusals, exports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dpeer.config_io import load_config
from dpeer.estimate.saved_size import saved_size
from dpeer.integrity import read_state, write_state
from dpeer.training.prepare import split_records
from dpeer.training.run_dir import RunDir
from tests.objective.test_rows import fault_of_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ALONE = ("cluster.policy_workers=1", "cluster.reference=colocated")  # a worker less to start is seconds less


def complaint(run: Any) -> str:
    """What the user sees of a refused command: exit code 1, one screen, no traceback."""
    assert run.wait() == 1, run.output
    assert "Traceback (most recent call last)" not in run.output
    assert len(run.output.splitlines()) <= 24, run.output
    return run.output[run.output.index("error:") :]


def assert_same_run(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same batches, and losses equal but for the rounding of other pack shapes."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert [a[k] for k in ("step", "records", "tokens")] == [b[k] for k in ("step", "records", "tokens")]
        assert a["golden_nll"] == pytest.approx(b["golden_nll"], rel=1e-4)
        for name, values in b["dimensions"].items():
            assert a["dimensions"][name]["edges"] == values["edges"]
            if values["edges"]:
                assert a["dimensions"][name]["loss"] == pytest.approx(values["loss"], rel=1e-4, abs=1e-4)


def assert_same_end(run: Path, other: Path) -> None:
    """The same steps, replies and choice of a checkpoint, to the bit."""
    for name in ("ledger.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    ends = [json.loads((folder / "manifest.json").read_text())["exported_step"] for folder in (run, other)]
    assert ends[0] == ends[1]


def test_files_hold_the_declared_rows_and_have_the_modes_of_the_umask(lab: Any, baseline: Path) -> None:
    assert fault_of_run(baseline) is None
    os.umask(umask := os.umask(0o077))
    shared = [p for p in baseline.parent.rglob("*") if baseline in p.parents or p.parent.name == "reference_cache"]
    assert {p.stat().st_mode & 0o777 for p in shared if p.is_file()} == {0o666 & ~umask}
    assert {p.stat().st_mode & 0o777 for p in shared if p.is_dir()} == {0o777 & ~umask}


def test_killed_and_stalled_workers_leave_no_trace_in_the_ledger(lab: Any, baseline: Path) -> None:
    """A policy worker killed, one stopped and a reference worker aborted: each time the group is made anew.

    A stopped rank is told long before cluster.timeout_s, with the stacks of the others.
    """
    run = lab.train("killed", "cluster.timeout_s=600", "cluster.stall_timeout_s=6")
    run.until(lambda: lab.steps("killed") >= 5)
    killed = run.workers[1]
    killed.kill()
    run.until(lambda: "(1 of 3)" in run.output)
    run.until(lambda: lab.steps("killed") >= 10)
    assert len(run.workers) == 6
    policy = [w for w in run.workers[3:] if w.is_running()]
    stopped = policy[1]
    stopped.suspend()
    run.until(lambda: "(2 of 3)" in run.output)
    run.until(lambda: lab.steps("killed") >= 15)
    aborted = run.workers[-1]
    aborted.send_signal(signal.SIGABRT)  # as NCCL's watchdog ends a process
    assert run.wait() == 0, run.output

    lines = [line for line in run.output.splitlines() if "Restarting from the last checkpoint" in line]
    assert len(lines) == 3
    for line, role, victim in zip(lines[::2], ("policy", "reference"), (killed, aborted), strict=True):
        assert line.startswith(f"{role} worker rank ")
        assert f"(host {os.uname().nodename}, pid {victim.pid}) died during '" in line
    said = (lab.run("killed") / "error.txt").read_text()
    assert f"pid {aborted.pid}), last lines" in said and "Fatal Python error: Aborted" in said
    line = next(line for line in run.output.splitlines() if "made no progress for 6 s during 'training step" in line)
    assert "cluster.stall_timeout_s" in line and f"pid {stopped.pid}) is silent" in line
    assert "The other 1: is in 'step " in line and "waits in " in line
    stacks = (lab.run("killed") / "stall-1.txt").read_text()
    assert "no stacks: the process did not answer" in stacks
    assert "in train_step" in stacks and stacks.count("--- policy worker rank") == 2
    assert_same_end(lab.run("killed"), baseline)
    assert run.survivors() == []


def test_stopped_killed_and_interrupted_run_goes_on_each_time(lab: Any, baseline: Path) -> None:
    """SIGTERM, SIGKILL and Ctrl-C to one run; its steps are a quiet run's, to the bit while the ranks are as many."""
    run = lab.train("stopped")
    run.until(lambda: lab.steps("stopped") >= 5)
    os.killpg(run.process.pid, signal.SIGTERM)  # to the whole process group, as a terminal or a scheduler does it
    assert run.wait(40) == 143, run.output
    assert f"saved step {lab.steps('stopped')} of 24" in run.output
    assert run.survivors() == []

    run = lab.train("stopped", resume=True)
    run.until(lambda: lab.steps("stopped") >= 10)
    left = run.ray_folder()
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    assert len(run.family) >= 5
    # Ray's two agents wait a minute for their dead cluster; all that holds memory or sockets goes at once.
    assert [c for c in run.survivors() if not c.strip().endswith("Agent")] == []
    assert left.is_dir()
    os.utime(left, (0, 0))  # an old one: nobody is about to lock it

    again = lab.train("stopped", resume=True)
    again.until(lambda: lab.steps("stopped") >= 15)
    os.killpg(again.process.pid, signal.SIGINT)
    assert again.wait(40) == 130, again.output
    assert not left.exists()
    assert again.output.splitlines()[-1].endswith("Go on with --resume.")
    done = lab.steps("stopped")
    assert (lab.run("stopped") / f"checkpoints/step-{done:07d}/state.json").exists()
    assert 15 <= done < 24 and again.survivors() == []
    for name, lines in (("ledger.jsonl", done), ("samples.jsonl", 4)):  # samples of steps 0 and 12
        found, expected = ((f / name).read_bytes().splitlines() for f in (lab.run("stopped"), baseline))
        assert found == expected[:lines]

    last = lab.train("stopped", *ALONE, resume=True)
    assert last.wait() == 0, last.output
    assert run.survivors(90) == []
    assert_same_run(lab.ledger("stopped"), lab.ledger("baseline"))


def test_signal_before_training_ends_at_once(lab: Any) -> None:
    run = lab.train("early", *ALONE)
    run.until(lambda: bool(run.look() or run.workers))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143, run.output
    assert "outside training" in run.output and "Traceback" not in run.output
    assert run.survivors() == []


def test_a_second_driver_is_refused_and_a_silent_worker_is_named_within_the_timeout(lab: Any) -> None:
    changes = (  # nothing but steps, so that one of them is interrupted
        "cluster.timeout_s=30", "cluster.max_restarts=0", "cluster.reference=colocated", "training.steps=2000",
        "training.sample_every=null", "training.checkpoint_every=1000",
    )  # fmt: skip
    run = lab.train("silent", *changes)
    run.until(lambda: lab.steps("silent") >= 3)
    said = complaint(lab.train("silent", *changes, resume=True))
    assert f"another driver (host {os.uname().nodename}, pid {run.process.pid}) trains this run" in said

    run.look()
    stopped = run.workers[1]
    began = time.monotonic()
    stopped.suspend()
    said = complaint(run)
    assert time.monotonic() - began < 30 + 20 + 60  # timeout, grace, and the end of the processes
    assert f"pid {stopped.pid}) did not answer during 'training step" in said
    assert "policy worker rank" in said and "cluster.timeout_s = 30" in said and "The other 1: is in 'step " in said
    assert "--resume" in said
    assert run.survivors() == []
    assert [entry["step"] for entry in lab.ledger("silent")] == list(range(1, lab.steps("silent") + 1))


def test_reference_modes_give_the_same_run(lab: Any, baseline: Path, colocated: Any) -> None:
    """To rounding, not to the bit: a cache packs the whole data set, colocated references pack per policy rank."""
    runs = []
    for name in ("cache", "cached"):
        runs.append(lab.train(name, "cluster.reference=cache"))
        assert runs[-1].wait() == 0, runs[-1].output
    for name in ("cache", "cached", "colocated"):
        assert_same_run(lab.ledger(name), lab.ledger("baseline"))
    assert [len(run.workers) for run in (*runs, colocated)] == [2, 2, 2]  # the policy fills the cache
    first, second = ((lab.run(name) / "ledger.jsonl").read_bytes() for name in ("cache", "cached"))
    assert first == second


def test_impossible_placement_is_refused_at_once(lab: Any) -> None:
    run = lab.train("wide", "cluster.policy_workers=64", "cluster.placement_timeout_s=3000")
    said = complaint(run)
    assert "wanted 64 policy + 1 reference workers of 0.4 CPU each" in said
    assert f"available per node: {os.cpu_count()} CPU" in said and "cluster.policy_workers" in said
    assert time.monotonic() - run.began < 90  # seconds on an idle machine: nothing waits for the placement
    assert not lab.run("wide").exists()


def test_existing_run_and_changed_recipe_are_refused(lab: Any, baseline: Path) -> None:
    before = (baseline / "ledger.jsonl").read_bytes()
    assert "a run of this name exists. Continue it with --resume" in complaint(lab.train("baseline"))
    assert (baseline / "ledger.jsonl").read_bytes() == before


def copy_unfinished(lab: Any, source: Path, name: str) -> Path:
    """A copy of a run that ended after its last checkpoint but before its export."""
    folder = shutil.copytree(source, lab.run(name))
    manifest = read_state(folder / "manifest.json", "")
    manifest["config"]["name"] = name
    write_state(folder / "manifest.json", manifest | {"finished": None})
    shutil.rmtree(folder / "export")
    return folder


def test_resume_with_another_objective_is_refused(lab: Any, baseline: Path) -> None:
    copy_unfinished(lab, baseline, "changed")
    said = complaint(lab.train("changed", *ALONE, "objective.beta=0.7", resume=True))
    assert "cannot resume" in said and "objective.beta: was 0.5, now 0.7" in said


def test_damaged_checkpoint_is_named(lab: Any, baseline: Path) -> None:
    folder = copy_unfinished(lab, baseline, "damaged") / "checkpoints" / "step-0000024"
    state = read_state(folder / "state.json", "")
    assert all(value > 0 for value in state["sums"].values())
    state["sums"]["second moments"] *= 1 + 1e-6  # weights alone would give the same log-probabilities
    write_state(folder / "state.json", state)
    RunDir(lab.run("damaged")).bind(folder, 24, read_state(folder / "run.json", "")["ledger"])
    assert "the second moments that were loaded have the sum" in complaint(lab.train("damaged", ALONE[1], resume=True))
    shard = max(folder.glob("deepspeed/*optim*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = complaint(lab.train("damaged", ALONE[1], resume=True))
    assert f"{shard} does not match its checksum" in said.replace("\n", "")
    assert f"mv {folder}" in said and "goes on from step 20" in said


def test_fault_in_the_data_is_told_by_the_worker(lab: Any) -> None:
    bad = lab.folder / "bad.jsonl"
    bad.write_text('{"prompt": "Hi", "mask": ["A", "T"], "responses": "none"}\n')
    said = complaint(lab.train("badly", f"data.train={bad}", *ALONE))
    assert "bad.jsonl, row 1, column responses" in said


def test_diverged_run_is_refused_and_keeps_its_last_checkpoint(lab: Any) -> None:
    run = lab.train(
        "diverged", *ALONE, "training.steps=12", "training.checkpoint_every=1", "training.keep_checkpoints=50",
        "training.optimizer.lr=1e30", "training.optimizer.grad_clip=0", "training.optimizer.warmup=0.9",
    )  # fmt: skip
    said = complaint(run)
    assert "Training has diverged" in said and "training.optimizer.lr" in said
    assert all(entry["objective"] is not None for entry in lab.ledger("diverged"))
    assert len(list(lab.run("diverged").glob("checkpoints/step-*/state.json"))) == lab.steps("diverged")


def test_checkpoint_is_as_large_as_preflight_says(lab: Any, baseline: Path) -> None:
    predicted = saved_size(load_config(lab.folder / "recipe.yaml"))
    (newest,) = sorted(baseline.glob("checkpoints/step-*/deepspeed"))[-1:]
    assert sum(f.stat().st_size for f in newest.iterdir()) == pytest.approx(predicted.checkpoint, rel=0.1)
    assert (baseline / "export" / "model.safetensors").stat().st_size == pytest.approx(predicted.export, rel=0.1)


def test_export_loads_without_dpeer_and_generates(lab: Any, baseline: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(baseline / "export")
    tokenizer = AutoTokenizer.from_pretrained(baseline / "export")
    assert model.config._attn_implementation == "sdpa"
    assert min(p.numel() for p in model.parameters()) > 0
    ids = tokenizer("Tell me", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=5, min_new_tokens=5).shape == (1, ids.shape[1] + 5)
    certificate = json.loads((baseline / "certificate.json").read_text())
    assert len(certificate["constraints"]) == 4
    samples = [json.loads(line) for line in (baseline / "samples.jsonl").open()]
    unseen = split_records(load_config(lab.folder / "recipe.yaml"))["dual"].records
    prompts = [unseen[i].prompt[-1].content for i in (0, len(unseen) // 2)]
    assert [(s["step"], s["prompt"]) for s in samples] == [(step, p) for step in (0, 12, 24) for p in prompts]
    assert "<html" in (baseline / "report.html").read_text()
    assert not list(baseline.glob("**/.*"))


def test_report_and_export_commands(lab: Any, baseline: Path) -> None:
    from safetensors.torch import load_file

    (baseline / "report.html").unlink()
    shutil.copytree(baseline, on_gpus := lab.run("on-gpus"))
    manifest = read_state(baseline / "manifest.json", "")
    manifest["config"]["cluster"] |= {"gpus_per_worker": 1, "policy_workers": 2}
    write_state(on_gpus / "manifest.json", manifest)  # on this machine without GPUs it is exported all the same
    data = (lab.folder / "world" / "train.jsonl").rename(lab.folder / "world" / "away.jsonl")  # neither needs it
    try:
        report, copy = lab.start("report", str(baseline)), lab.start("export", str(on_gpus), "--output", "copy")
        assert (report.wait(), copy.wait()) == (0, 0), report.output + copy.output
    finally:
        data.rename(data.with_name("train.jsonl"))
    assert (baseline / "report.html").stat().st_size > 10_000
    found, expected = (load_file(f / "model.safetensors") for f in (lab.folder / "copy", baseline / "export"))
    assert found.keys() == expected.keys() and all(found[k].equal(expected[k]) for k in expected)
    assert copy.survivors() == []


def test_what_is_exported_and_certified_is_the_best_checkpoint(lab: Any, baseline: Path) -> None:
    """The toy over-fits within 24 steps, so that the last one is not the best."""
    exported = json.loads((baseline / "manifest.json").read_text())["exported_step"]
    assert exported < 24
    assert sorted(p.name for p in baseline.glob("checkpoints/*")) == [f"step-{step:07d}" for step in (exported, 20, 24)]
    worst = {
        step: max(
            sum(r["dimensions"][d]["dual"]["loss"] * r["dimensions"][d]["dual"]["edges"] for r in rows)
            / sum(r["dimensions"][d]["dual"]["edges"] for r in rows)
            for d in "AETC"
        )
        for step in range(4, 25, 4)
        if (rows := lab.ledger("baseline")[step - 4 : step])
    }
    assert min(worst, key=lambda step: worst[step]) == exported


def test_a_proven_run_stops_early_and_a_kill_before_its_end_changes_nothing(lab: Any) -> None:
    """Killed after the last checkpoint, before its verdict and before the certificate; in two reference modes."""
    dual = lab.folder / "world" / "dual.jsonl"
    rows = [json.loads(line) for line in (lab.folder / "world" / "train.jsonl").open()]
    asked = [
        row | {"prompt": f"{row['prompt']} Please say."} for row in rows
    ]  # the trained ones themselves are refused
    dual.write_text("".join(json.dumps(row) + "\n" for row in asked))
    changes = (
        f"data.dual={dual}",
        "objective.constraint.tolerance={A: 3, C: 3, E: 3, T: .inf}",
    )
    run = lab.train("proven", *changes, "cluster.reference=cache")
    assert run.wait() == 0, run.output
    whole = lab.run("proven")
    stop = read_state(whole / "stop.json", "")
    assert stop == {"step": lab.steps("proven"), "reason": "certified", "look": stop["step"] // 4} | {
        "confidence": 1 - 0.05 / (stop["look"] * (stop["look"] + 1))
    }
    assert 4 <= stop["step"] < 24 and "training ended early" in run.output
    for name, kept in (("unjudged", False), ("judged", True)):
        folder = copy_unfinished(lab, whole, name)
        (folder / "certificate.json").unlink()
        if not kept:
            (folder / "stop.json").unlink()
        again = lab.train(name, *changes, f"cluster.reference={'cache' if kept else 'colocated'}", resume=True)
        assert again.wait() == 0, again.output
        assert_same_end(folder, whole)
        for part in ("stop.json", *(["certificate.json"] if kept else [])):
            assert (folder / part).read_bytes() == (whole / part).read_bytes()
        assert (folder / "certificate.json").exists() and (folder / "export" / "model.safetensors").exists()


def test_sft_with_adapters_exports_the_merged_model_and_the_adapter(lab: Any) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = lab.train(
        "lora", "objective.kind=sft", "model.lora={rank: 4}", "training.steps=4", "training.optimizer.lr=0.05",
        "cluster.reference=colocated", "training.keep=last", "training.stop_when=never",
    )  # fmt: skip
    assert run.wait() == 0, run.output
    losses = [entry["golden_nll"] for entry in lab.ledger("lora")]
    assert losses[-1] < losses[0] - 0.1
    export = lab.run("lora") / "export"
    assert all(t.numel() > 0 for f in export.glob("**/*.safetensors") for t in load_file(f).values())
    load = AutoModelForCausalLM.from_pretrained
    base, merged = (load(f, dtype=torch.float32) for f in (lab.folder / "model", export))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, export / "adapter")(ids).logits
    torch.testing.assert_close(adapted, merged(ids).logits, atol=1e-3, rtol=1e-3)
    assert (adapted - before).abs().max() > 0.05
