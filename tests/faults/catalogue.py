"""The table of faults: what is done, to what, and what dpeer promises then. `play` does it and says what was seen.

A row is played on a copy of a folder that an undisturbed or a killed command has left (`Stage.made`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal

from tests.faults import deeds
from tests.faults.stage import Play
from tests.faults.trap import Trap


class Outcome(StrEnum):
    """What follows. Always: equal results in the end; no process, lock or temporary folder left."""

    GOES_ON = "goes on"
    RESUMED = "resumed"
    STOPPED = "stopped"
    REFUSED = "refused"
    REMADE = "told"


MEANS = {
    Outcome.GOES_ON: "by itself, as if nothing had happened",
    Outcome.RESUMED: "it ends at once; the next start goes on from what is saved",
    Outcome.STOPPED: "it saves, says so, and ends with the signal's exit code; the next start goes on",
    Outcome.REFUSED: "it ends with exit code 1 and a message that names the file and a way back; that taken, the next "
    "start goes on",
    Outcome.REMADE: "it says what is wrong and goes on; what was lost is made again",
}
Begins = Literal["fresh", "half", "finished", "answered", "half-rated", "rated", "fitted"]
Needs = Literal["", "mount", "cmdstan"]
GOES_ON, RESUMED, STOPPED, REFUSED, REMADE = Outcome


@dataclass(frozen=True)
class Fault:
    name: str
    done: str
    promised: Outcome
    what: str = "train"
    """The command that meets it."""
    begins: Begins = "fresh"
    traps: tuple[Trap, ...] = ()
    """For one life each; a last one follows without."""
    damage: Callable[[Play], None] | None = None
    """Done to the folder before the first life."""
    changes: tuple[str, ...] = ()
    """Arguments of the first life alone."""
    says: str = ""
    """What its words must match."""
    back: Callable[[Play], None] | None = None
    """The way back that a refusal has named."""
    meanwhile: Callable[[Play], None] | None = None
    """Done while the first life is suspended."""
    clock: float = 0.0
    """Seconds by which the clock of the last life is wrong."""
    quick: bool = False
    """Played in the ordinary tests too."""
    needs: Needs = ""

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def kill(name: str, when: str, *traps: Trap, what: str = "train", begins: Begins = "fresh", **more: bool) -> Fault:
    return Fault(f"kill: {name}", f"`kill -9` {when}", RESUMED, what, begins, traps, **more)  # type: ignore[arg-type]


def renames(path: str, nth: int = 1, deed: str = "kill") -> Trap:
    """When something is about to get its final name: all writers write beside it first."""
    return Trap("os.rename", f" > \\S*{path}", deed, nth)  # type: ignore[arg-type]


def opens(path: str, nth: int = 1, deed: str = "kill") -> Trap:
    return Trap("open", path, deed, nth)  # type: ignore[arg-type]


LEDGER, TIMING = r"ledger\.jsonl > a", r"timing\.jsonl > a"
PART, RESPONSES = r"/ratings/.*part-", r"/responses/.*part-"
WRITING = Trap("os.mkdir", r"\.writing-")

KILLS = (
    kill("opening", "before the first manifest has its name", renames("manifest.json")),
    kill("reference cache", "while the second of three caches is written", renames("reference_cache/", 2), quick=True),
    kill("step", "before a step's line is in the ledger", opens(LEDGER, 4)),
    kill("ledger", "after a line of the ledger, before that of the timings", opens(TIMING, 4), quick=True),
    kill("shards", "in a save, before its `state.json`", renames("writing-0000004/state.json")),
    kill("binding", "in a save, before `run.json` in it", renames("writing-0000004/run.json")),
    kill("commit", "before a whole checkpoint has its name", renames("checkpoints/step-0000004"), quick=True),
    kill("prune", "half-way through the removal of an old checkpoint", Trap("os.rmdir", "^plain"), quick=True),
    kill("held-out", "while held-out margins are written", renames("heldout.safetensors"), begins="half"),
    kill("certificate", "before the certificate has its name", renames("certificate.json"), begins="half"),
    kill("export", "before the export has its name", renames("runs/toy/export"), begins="half", quick=True),
    kill("finish", "before the manifest says that the run is finished", renames("manifest.json", 2), begins="half"),
    kill("page", "while the page is written", renames("report.html"), begins="half"),
    kill("twice", "in a save, and again while the next start shortens the ledger",
         renames("writing-0000004/run.json"), renames("ledger.jsonl")),
    kill("three times", "in a step, in the prune of the next start, and before that one's export",
         opens(LEDGER, 4), Trap("os.rmdir", "^plain"), renames("runs/toy/export")),
    kill("generate", "while the second part of the answers is written", renames(RESPONSES, 2), what="generate"),
    kill("judge", "while a part of the ratings is written", renames(PART, 3), what="judge", begins="answered",
         quick=True),
    kill("union", "while the table of all ratings is written", renames("ratings.parquet"), what="judge",
         begins="half-rated", quick=True),
    kill("judge twice", "in a part of the ratings, and again in the table of all", renames(PART, 3),
         renames("ratings.parquet"), what="judge", begins="answered"),
    kill("fit", "while draws are written", renames("draws.npz"), what="fit", begins="rated", needs="cmdstan"),
    kill("fit's manifest", "between a fit's draws and its manifest", renames("irt/manifest.json"), what="fit",
         begins="rated", needs="cmdstan"),
)  # fmt: skip

SIGNALS = (
    Fault("stop: step", "SIGSTOP in a step, then SIGCONT", GOES_ON, traps=(opens(LEDGER, 4, "stop"),)),
    Fault("stop: second driver", "SIGSTOP in a save; a second driver of the run starts; SIGCONT", GOES_ON,
          traps=(renames("checkpoints/step-0000004", deed="stop"),), meanwhile=deeds.second_driver, quick=True),
    Fault("stop: second judge", "SIGSTOP in `judge`; a second one starts; SIGCONT", GOES_ON, "judge", "answered",
          (renames(PART, 2, "stop"),), meanwhile=deeds.second_judge),
    Fault("signal: training", "SIGTERM in a step", STOPPED, traps=(opens(LEDGER, 3, "term"),),
          says="saved step 2 of 6"),
    Fault("signal: pre-emption", "SIGUSR1 in a step", STOPPED, traps=(opens(LEDGER, 3, "preempt"),),
          says="saved step 2 of 6"),
    Fault("signal: export", "SIGTERM while the export is written", STOPPED, begins="half",
          traps=(renames("runs/toy/export", deed="term"),), says="--resume"),
    Fault("signal: generate", "SIGTERM in `generate`", STOPPED, "generate", traps=(renames(RESPONSES, 2, "term"),),
          says="same command"),
    Fault("signal: judge", "SIGTERM in `judge`", STOPPED, "judge", "answered", (renames(PART, 3, "term"),),
          says="same command", quick=True),
    Fault("signal: judge pre-empted", "SIGUSR1 in `judge`", STOPPED, "judge", "answered",
          (renames(PART, 3, "preempt"),), says="same command"),
)  # fmt: skip

CUT = "is cut after 300 bytes (a limit on file sizes)"
FILL = "on a disk that is full at that moment"
DISKS = (
    *(
        Fault(f"cut: {name}", f"{words} {CUT}", REFUSED, what, begins, (trap,), says=r"File too large.*ulimit")
        for name, words, what, begins, trap in (
            ("reference cache", "the reference cache", "train", "fresh", opens("reference_cache/.* > w", deed="cut")),
            ("checkpoint", "a checkpoint", "train", "fresh", Trap("os.mkdir", r"\.writing-0000004", "cut")),
            ("ledger", "the ledger", "train", "fresh", opens(LEDGER, 4, "cut")),
            ("certificate", "the certificate", "train", "half", opens(r"certificate.json.* > w", deed="cut")),
            ("export", "the export", "train", "half", Trap("os.mkdir", r"\.export\.tmp", "cut")),
            ("answers", "a part of the answers", "generate", "fresh", opens(r"part-.* > w", 2, "cut")),
            ("ratings", "a part of the ratings", "judge", "answered", opens(r"part-.* > w", 3, "cut")),
            ("union", "the table of all ratings", "judge", "half-rated", opens(r"ratings\.parquet.* > w", deed="cut")),
        )
    ),
    *(
        Fault(f"full: {name}", f"{words} {FILL}", REFUSED, what, begins, (trap,), says="No space left.*make room",
              back=deeds.make_room, needs="mount")
        for name, words, what, begins, trap in (
            ("manifest", "the first manifest", "train", "fresh", opens(r"manifest.json.* > w", deed="fill")),
            ("reference cache", "the reference cache", "train", "fresh", opens("reference_cache/.* > w", deed="fill")),
            ("checkpoint", "a checkpoint", "train", "fresh", Trap("os.mkdir", r"\.writing-0000004", "fill")),
            ("ledger", "the ledger", "train", "fresh", opens(LEDGER, 4, "fill")),
            ("export", "the export", "train", "half", Trap("os.mkdir", r"\.export\.tmp", "fill")),
            ("page", "the page", "train", "half", opens(r"report\.html.* > w", deed="fill")),
            ("ratings", "a part of the ratings", "judge", "answered", opens(r"part-.* > w", 3, "fill")),
        )
    ),
    Fault("folder: read-only", "the disk is read-only when a checkpoint is to be written", REFUSED,
          traps=(Trap("os.mkdir", r"\.writing-0000004", "refuse"),), says="Read-only file system.*permit writing"),
    Fault("folder: read-only ratings", "the disk is read-only when a part of the ratings is to be written", REFUSED,
          "judge", "answered", (opens(r"part-.* > w", 3, "refuse"),), says="Read-only file system.*permit writing"),
    Fault("folder: protected checkpoint", "an old checkpoint may not be removed, later it may", REMADE,
          changes=("training.keep_checkpoints=1",), traps=(Trap("os.rename", r"> .*\.removing-", "protect"),),
          says="warning: .*cannot be removed"),
    Fault("folder: vanished", "the output folder vanishes in a save", REFUSED,
          traps=(renames("writing-0000004/state.json", deed="vanish"),), says="is gone.*restore it",
          back=deeds.bring_back),
    Fault("folder: lost checkpoints", "the folder of checkpoints is gone", REFUSED, begins="half",
          damage=deeds.hide("checkpoints"), says="no checkpoint is there.*Restore the folder", back=deeds.restore,
          quick=True),
)  # fmt: skip

AWAY = r"(move the checkpoint away|move the checkpoints after step)"
BYTES = (
    *(
        Fault(f"byte: {name}", f"one byte of {words} is changed", REFUSED, begins="half", damage=deeds.flip(path),
              says=says, back=back, quick=name in ("state", "ledger"))
        for name, words, path, says, back in (
            ("manifest", "the manifest", "manifest.json", "manifest.json does not match.*restore it", deeds.restore),
            ("ledger", "the ledger", "ledger.jsonl", f"ledger.jsonl: line . has changed.*{AWAY}", deeds.restore),
            ("timings", "the timings", "timing.jsonl", f"timing.jsonl: line . has changed.*{AWAY}", deeds.restore),
            ("state", "a checkpoint's `state.json`", "checkpoints/step-0000004/state.json",
             f"step-0000004.*{AWAY}", deeds.move_away),
            ("binding", "a checkpoint's `run.json`", "checkpoints/step-0000004/run.json",
             f"run.json does not match.*{AWAY}", deeds.move_away),
            ("shard", "a checkpoint's weights", "checkpoints/step-0000004/plain/0000.safetensors",
             f"0000.safetensors does not match.*{AWAY}", deeds.move_away),
        )
    ),
    Fault("byte: reference cache", "one byte of a reference cache is changed", REMADE, begins="half",
          damage=deeds.flip_cache, says="reference cache .*does not match.*That is done now", quick=True),
    *(
        Fault(f"byte: {name}", f"one byte of a finished run's {words} is changed", REMADE, begins="finished",
              damage=deeds.flip(path), says=f"{says}.*made again")
        for name, words, path, says in (
            ("held-out", "held-out margins", "heldout.safetensors", "heldout.safetensors does not match"),
            ("certificate", "certificate", "certificate.json", "certificate.json does not match"),
            ("export", "exported weights", "export/model.safetensors", "model.safetensors does not match"),
        )
    ),
    Fault("byte: answers", "one byte of a part of the answers is changed", REFUSED, "generate", "answered",
          damage=deeds.flip_part("responses"), says="part-.*damaged.*delete it", back=deeds.delete_damaged),
    Fault("byte: ratings", "one byte of a part of the ratings is changed", REFUSED, "judge", "rated",
          damage=deeds.flip_part("ratings"), says="part-.*damaged.*delete it", back=deeds.delete_damaged, quick=True),
    Fault("byte: union", "one byte of the table of all ratings is changed", REMADE, "judge", "rated",
          damage=deeds.flip_union, says="ratings.parquet is damaged.*made again", quick=True),
    Fault("byte: draws", "one byte of a fit's draws is changed", REFUSED, "fit report", "fitted",
          damage=deeds.flip_draws, says="draws.npz.*fit again", back=deeds.fit_again, needs="cmdstan"),
)  # fmt: skip

FILES = (
    Fault("file: cut ledger", "the ledger ends in the middle of its third line", REFUSED, begins="half",
          damage=deeds.cut_ledger, says=f"only 2 whole lines.*{AWAY}", back=deeds.restore),
    Fault("file: manifest gone, other beta", "the manifest is deleted and the run started with another beta", REFUSED,
          begins="half", damage=deeds.hide("manifest.json"), changes=("objective.beta=0.1",),
          says="manifest.json is missing.*restore it", back=deeds.restore, quick=True),
    Fault("file: later version", "the manifest has a later format", REFUSED, begins="half", damage=deeds.later_manifest,
          says="format 2.*a later version wrote it", back=deeds.restore),
    Fault("file: foreign checkpoint", "the newest checkpoint is replaced by one of another run", REFUSED,
          begins="half", damage=deeds.foreign_checkpoint, says=f"belongs to another run.*{AWAY}", back=deeds.move_away),
    Fault("file: renamed run", "the run's folder is renamed and resumed under the new name", REFUSED, begins="half",
          damage=deeds.rename, changes=("name=other",), says="renamed.*mv .*other .*toy", back=deeds.rename_back),
    Fault("file: export gone", "a finished run's export is deleted", REMADE, begins="finished",
          damage=deeds.delete("export"), says="export is missing.*made again"),
    Fault("file: page gone", "a finished run's page is deleted", REMADE, begins="finished",
          damage=deeds.delete("report.html"), says="report.html is missing; made again"),
    Fault("file: doubled part", "a part of the ratings is copied under another name", REFUSED, "judge", "rated",
          damage=deeds.double_part, says="occur more than once.*Delete the copies", back=deeds.delete_double),
    Fault("file: score off the scale", "a part with a score that the rubric does not know", REFUSED, "judge", "rated",
          damage=deeds.score_nine, says="scores that the rubric does not know, such as 9.*delete it",
          back=deeds.delete_damaged),
    Fault("file: cut rates", "`rates.json` is cut", REMADE, "judge", "half-rated", damage=deeds.cut_rates,
          says="rates.json.*ignored"),
    Fault("file: emptied program", "the compiled Stan model is emptied", REMADE, "fit", "rated",
          damage=deeds.empty_program, says="compiling it again", needs="cmdstan"),
    Fault("edit: other settings", "a run is resumed with another beta", REFUSED, begins="half",
          changes=("objective.beta=0.1",), says="objective.beta: was 0.5, now 0.1.*restore these"),
    Fault("edit: other data", "a run is resumed with other data", REFUSED, begins="half", damage=deeds.other_data,
          changes=("data.train=other.jsonl",), says="data.*was.*restore these"),
    Fault("edit: other rubric", "ratings go on under another rubric, then under the first again", GOES_ON, "judge",
          "half-rated", damage=deeds.other_rubric),
)  # fmt: skip

OTHERS = (
    Fault("lock: stale", "the lock of a driver that died on this machine", GOES_ON, begins="half",
          damage=deeds.lock("dead")),
    Fault("lock: half-written", "an empty lock file", REMADE, begins="half", damage=deeds.lock("empty"),
          says="half-written.*waiting up to", quick=True),
    Fault("lock: other machine", "the lock of a driver that died with its machine", REMADE, begins="half",
          damage=deeds.lock("elsewhere"), says="on another machine.*waiting up to"),
    Fault("clock: back", "the clock goes back by a day between two starts", GOES_ON, begins="half", clock=-86400.0),
    Fault("clock: forward", "the clock goes forward by a year, and old files are from the future", GOES_ON,
          begins="half", damage=deeds.future_files, clock=3e7),
    Fault("clock: judge", "the clock goes back by a day in the middle of the ratings", GOES_ON, "judge", "half-rated",
          damage=deeds.future_files, clock=-86400.0),
    Fault("death: chain", "`kill -9` of a chain of the sampler", REFUSED, "fit", "rated",
          (Trap("subprocess.Popen", "method=sample", "kill child"),), says="killed by signal 9.*no memory",
          needs="cmdstan"),
    Fault("death: endpoint", "an endpoint that rates goes away after 70 ratings, and is back later", REFUSED,
          "judge by endpoint", "answered", damage=deeds.endpoint_that_dies, says="cannot be reached.*saved",
          back=deeds.endpoint_returns),
    Fault("left: temporary files", "what kills of earlier versions have left", GOES_ON, begins="half",
          damage=deeds.leave_rests),
    Fault("left: ratings", "what kills of earlier versions have left in an evaluation", GOES_ON, "judge", "half-rated",
          damage=deeds.leave_rating_rests),
)  # fmt: skip

CATALOGUE: tuple[Fault, ...] = (*KILLS, *SIGNALS, *DISKS, *BYTES, *FILES, *OTHERS)


def play(fault: Fault, stage: Play) -> str:
    """Do it; what was seen: the value of an Outcome, or what did not hold."""
    if fault.damage:
        fault.damage(stage)
    for trap in fault.traps or (None,):
        stage.start(
            fault.what,
            *fault.changes,
            trap=trap,
            clock=0.0 if fault.traps else fault.clock,
            meanwhile=partial(fault.meanwhile, stage) if fault.meanwhile else None,
        )
    first = stage.lives[0]
    seen = outcome(first.code, first.said)
    if seen is REFUSED and fault.back:
        fault.back(stage)
    if first.code or fault.changes:
        stage.start(fault.what, clock=fault.clock)
    reasons = [
        *([] if seen else [f"ended with {first.code}: {' '.join(first.said.split()[-40:])}"]),
        *(["was never suspended"] if missed_stop(fault, first.stopped) else []),
        *([] if re.search(fault.says, " ".join(first.said.split())) else [f"did not say {fault.says!r}: {first.said}"]),
        *([] if stage.lives[-1].code == 0 else [f"the last start ended with {stage.lives[-1].code}: "
                                                f"{stage.lives[-1].said[-2000:]}"]),
        *(["a traceback"] if any("Traceback (most" in life.said for life in stage.lives) else []),
        *(f"left behind: {name}" for name in (*(n for life in stage.lives for n in life.left), *stage.leftovers())),
        *stage.differences(fault.what),
    ]  # fmt: skip
    return "; ".join(reasons) or str(seen)


def missed_stop(fault: Fault, stopped: bool) -> bool:
    """Whether the first life was to be suspended and was not: it would go on as if the fault had been withstood."""
    return any(trap.deed == "stop" for trap in fault.traps[:1]) and not stopped


def outcome(code: int, said: str) -> Outcome | None:
    """What an end is, by exit code and words alone."""
    if code == 0:
        told = re.search(r"made again|ignored|compiling|warning: .*cannot be removed|waiting up to|"
                         "That is done now", said)  # fmt: skip
        return REMADE if told else GOES_ON
    if code == -9:
        return RESUMED
    if code in (85, 130, 143) and "topped by a signal" in said:
        return STOPPED
    return REFUSED if code == 1 and "error:" in said else None
