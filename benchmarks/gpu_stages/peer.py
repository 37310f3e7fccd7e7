"""An optimizer step beside TRL's DPOTrainer on the same card: the same token ids, pairs and objective; 1B shape, bf16.

Reference log-probabilities are known before on both sides, and a record's pairs share one forward. Each side is a
process of its own that takes one setting after the other. TRL keeps fp32 weights and computes under bf16 autocast, its
default; dpeer keeps fp32 masters beside bf16 weights. (TRL with bf16 weights alone would be smaller and faster, and at
these rates would not learn: an update is below the spacing of bf16 numbers.)

usage as a side: python peer.py dpeer|trl FOLDER RESULT
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS, WARM, PER_STEP, BETA, RATE = 5, 2, 4, 0.1, 1e-5
LOSS_GAP = 2e-2
TEMPLATE = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else ' ') }}{% endfor %}"


@dataclass(frozen=True)
class Setting:
    prompt: int
    response: int
    rejects: int
    checkpointing: bool

    @property
    def name(self) -> str:
        kept = "recompute" if self.checkpointing else "no recompute"
        return f"{self.prompt}/{self.response}, {self.rejects} rejects, {kept}"

    @property
    def folder(self) -> str:
        return f"{self.prompt}-{self.response}-{self.rejects}-{self.checkpointing}"

    @property
    def tokens(self) -> tuple[int, int]:
        """Forward tokens of a record: two sequences a pair, and the tree."""
        pairs = self.rejects * 2 * (self.prompt + self.response)
        return pairs, self.prompt + (1 + self.rejects) * (self.response - 1)


def settings(device: str) -> list[Setting]:
    if device == "cpu":
        return [Setting(30, 20, 2, False)]
    sizes = [(300, 200, 4), (300, 200, 1), (1000, 400, 4), (1000, 400, 1)]
    return [Setting(*size, False) for size in sizes] + [Setting(*sizes[2], True)]


def run(device: str, quick: bool, out: Path) -> dict[str, Any]:
    from gpu_stages.shapes import result

    if importlib.util.find_spec("trl") is None:
        return result(None, ["TRL is not installed here: nothing to compare with (benchmarks/gpu_bundle.sh brings it)"])
    folder = Path(tempfile.mkdtemp())
    write_inputs(folder, device)
    sides = {}
    for side in ("trl", "dpeer"):
        file = folder / f"{side}.json"
        environment = os.environ | {"PEER_DEVICE": device, "PYTHONPATH": f"{HERE.parent}:{os.environ['PYTHONPATH']}"}
        done = subprocess.run([sys.executable, __file__, side, str(folder), str(file)], env=environment)
        if done.returncode:
            return result(False, [f"{side} ended with exit code {done.returncode}; see {out / 'peer.log'}"])
        sides[side] = json.loads(file.read_text())
    lines, passed = [], True
    for setting in settings(device):
        theirs, ours = (sides[s][setting.name] for s in ("trl", "dpeer"))
        gap = max(abs(a - b) for a, b in zip(theirs["losses"], ours["losses"], strict=True))
        wall, memory = theirs["seconds"] / ours["seconds"], ours["peak"] / max(1, theirs["peak"])
        fewer = setting.tokens[0] / setting.tokens[1]
        fine = gap <= LOSS_GAP and wall >= (0.9 * fewer if setting.rejects > 1 else 1.0) and memory <= 0.5
        passed &= fine
        lines.append(
            f"{setting.name}: {theirs['seconds'] * 1e3:.0f} -> {ours['seconds'] * 1e3:.0f} ms, {wall:.2f}x (tokens "
            f"{fewer:.2f}x), memory {memory:.2f}x ({theirs['peak'] / 2**30:.1f} -> {ours['peak'] / 2**30:.1f} GiB), "
            f"losses {gap:.0e} apart{'' if gap <= LOSS_GAP else ': NOT THE SAME WORK'}"
        )
    lines.append(f"goals (0.9 of the token ratio, K = 1 not slower, memory 0.5x): {'met' if passed else 'not all met'}")
    return result(None, lines, sides=sides, met=passed)


def write_inputs(folder: Path, device: str) -> None:
    """Model and word tokenizer, and for each setting dpeer's records and TRL's pairs in the order of dpeer's steps."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from dpeer.data.packing import batch_indices
    from gpu_stages.shapes import LLAMA_1B, TINY, make

    vocabulary = 32768 if device == "cuda" else 512
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    fields = (LLAMA_1B if device == "cuda" else TINY) | {
        "vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    make(fields, device, torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(f"w{rng.randrange(2, vocabulary)}" for _ in range(tokens))

    for setting in settings(device):
        here = folder / setting.folder
        here.mkdir()
        mask = [f"D{i}" for i in range(setting.rejects)]
        records = [
            {
                "prompt": text(setting.prompt),
                "mask": mask,
                "responses": [
                    {"text": text(setting.response - 1), "fails": f} for f in ([], *([d] for d in mask))
                ],
            }
            for _ in range(2 * PER_STEP)
        ]  # fmt: skip
        pairs = []
        for i in batch_indices(0, STEPS * PER_STEP, len(records), 0):
            golden, *rejects = ([{"role": "assistant", "content": r["text"]}] for r in records[i]["responses"])
            prompt = [{"role": "user", "content": records[i]["prompt"]}]
            pairs += [{"prompt": prompt, "chosen": golden, "rejected": reject} for reject in rejects]
        for name, rows in (("records", records), ("pairs", pairs)):
            (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Meter:
    """Wall seconds of each step and the peak of allocated memory, from the first step after warm-up."""

    def __init__(self, device: str) -> None:
        self.device, self.losses, self.spent = device, list[float](), list[float]()
        self.start()

    def start(self) -> None:
        self._wait()
        self.since = time.perf_counter()

    def step_done(self, loss: float) -> None:
        self._wait()
        self.spent.append(time.perf_counter() - self.since)
        self.losses.append(loss)
        if len(self.spent) == WARM and self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self.start()

    def result(self) -> dict[str, Any]:
        import torch

        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return {"seconds": sorted(self.spent[WARM:])[len(self.spent[WARM:]) // 2], "peak": peak, "losses": self.losses}

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def dpeer_side(folder: Path, device: str) -> dict[str, Any]:
    from dpeer.config import Config
    from dpeer.training import world
    from dpeer.training.rank import TrainingRank
    from dpeer.training.reference import cache_path, write_cache
    from dpeer.training.scoring import merge

    here = world.alone(600, gpu=device == "cuda")
    found = {}
    for setting in settings(device):
        place = folder / setting.folder
        config = Config.model_validate(
            {
                "name": "peer", "output_dir": str(place),
                "model": {
                    "path": str(folder / "model"), "dtype": "bf16" if device == "cuda" else "fp32",
                    "gradient_checkpointing": setting.checkpointing,
                },
                "data": {"train": str(place / "records.jsonl"), "dual": "none", "heldout": "none"},
                "objective": {
                    "beta": BETA, "golden_nll": 0, "primary": "pooled", "constraint": {"tolerance": float("inf")},
                    "dual": {"evidence": "batch"},
                },
                "training": {
                    "steps": STEPS, "records_per_step": PER_STEP, "tokens_per_pack": setting.tokens[1],
                    "optimizer": {"lr": RATE, "schedule": "constant", "warmup": 0, "betas": [0.9, 0.999], "eps": 1e-8},
                },
                "cluster": {
                    "reference": "cache", "deepspeed": "zero3" if device == "cuda" else "cpu",
                    "gpus_per_worker": 1 if device == "cuda" else 0, "timeout_s": 300,
                },
            }
        )  # fmt: skip
        rank = TrainingRank(config, here)
        trees = rank.prepared.train.trees
        write_cache(cache_path(config, rank.prepared.train), merge([rank.policy.score(trees)], len(trees)))
        rank.read_cache()
        meter = Meter(device)
        for _ in range(STEPS):
            meter.step_done(rank.train_step()["objective"])
        found[setting.name] = meter.result()
        rank.close()
    world.stop()
    return found


def trl_side(folder: Path, device: str) -> dict[str, Any]:
    import gc

    import torch
    from step_workers.trl_run import trainer

    found = {}
    for setting in settings(device):
        place, meter = folder / setting.folder, Meter(device)
        made = trainer(
            folder / "model", place / "pairs.jsonl", meter, output_dir=str(place / "trl"),
            per_device_train_batch_size=setting.rejects, gradient_accumulation_steps=PER_STEP, max_steps=STEPS,
            precompute_ref_log_probs=True, precompute_ref_batch_size=setting.rejects, learning_rate=RATE, beta=BETA,
            gradient_checkpointing=setting.checkpointing, bf16=device == "cuda", use_cpu=device == "cpu",
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        made.train()
        found[setting.name] = meter.result()
        del made
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    which = {"dpeer": dpeer_side, "trl": trl_side}[sys.argv[1]]
    Path(sys.argv[3]).write_text(json.dumps(which(Path(sys.argv[2]), os.environ["PEER_DEVICE"])))
