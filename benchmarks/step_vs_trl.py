"""One optimizer step of dpeer against TRL's DPOTrainer: CPU seconds, peak memory, forward tokens, on the same work.
Settings are tokens of prompt and response, and rejects. Ratios are TRL's CPU seconds over dpeer's; peak memory is
dpeer's as a share of TRL's.

usage: python benchmarks/step_vs_trl.py [--quick] [--json FILE]

Both sides train the same model on the same token ids with the same objective (all pairs weigh the same); a run whose
ids or losses differ is refused. See benchmarks/README.md for what is set on each side.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from common import CACHE, BenchmarkError, Figure, Recorder, machine, measure, peer_environment, print_table, spread

WORKERS = Path(__file__).resolve().parent / "step_workers"
WORK = CACHE / "step-vs-trl"
SMALL, LARGE = 8192, 131_072
RECORDS, STEPS = 2, 4  # each record comes twice, so that the second pass shows what the first has learnt
LR, BETA, SEED = 1e-4, 0.1, 0
LOSS_TOLERANCE, LATER = 1e-5, 1e-4
"""In the first step, and in later ones: Adam gives weights whose gradient is almost zero a whole step in the direction
that rounding decides."""
PAD, EOS = "<pad>", "<eos>"
TEMPLATE = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else ' ') }}{% endfor %}"


@dataclass(frozen=True)
class Setting:
    """One optimizer step over one record: a prompt, a golden response and `rejects` others, lengths in tokens."""

    prompt: int
    response: int  # end-of-turn token included
    rejects: int
    reference: str  # colocated: computed in the step; cache: computed before
    vocab: int = SMALL

    @property
    def name(self) -> str:
        source = {"colocated": "live", "cache": "cached"}[self.reference]
        words = "" if self.vocab == SMALL else f", vocabulary {self.vocab:,}"
        return f"{self.prompt}/{self.response}/{self.rejects}{words}, {source} reference"

    @property
    def model(self) -> Path:
        return WORK / f"model-{self.vocab}"

    @property
    def folder(self) -> Path:
        return WORK / f"{self.prompt}-{self.response}-{self.rejects}-{self.vocab}"


SETTINGS = [
    Setting(*lengths, reference, vocab)
    for *lengths, vocab in ((300, 100, 4, SMALL), (300, 100, 1, SMALL), (1000, 400, 4, SMALL), (100, 50, 4, LARGE))
    for reference in ("colocated", "cache")
]
GOALS = {
    (SETTINGS[0].name, "whole step"): 6.0,
    (SETTINGS[0].name, "TRL's head on completions only"): 4.0,
    (SETTINGS[6].name, "whole step"): 8.0,
}
MEMORY = {(SETTINGS[0].name, "whole step"): 0.4}
COMPARISONS = (  # label, TRL's side, dpeer's side
    ("whole step", "trl", "dpeer"),
    ("TRL one pair per forward", "trl_single", "dpeer"),
    ("TRL's head on completions only", "trl_completions", "dpeer"),
    ("dpeer without ZeRO-3", "trl", "dpeer_bare"),
)


def write_model(folder: Path, vocab: int) -> None:
    """A random model, and a tokenizer of as many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    words = {PAD: 0, EOS: 1} | {f"w{i}": i for i in range(2, vocab)}
    core = Tokenizer(models.WordLevel(words, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS, chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(SEED)
    shape = Qwen3Config(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(shape).save_pretrained(folder)


def write_inputs(settings: list[Setting]) -> None:
    """Models, records, TRL's pairs in dpeer's order, and recipes; all afresh, so never out of date."""
    shutil.rmtree(WORK, ignore_errors=True)
    for folder, vocab in {s.model: s.vocab for s in settings}.items():
        write_model(folder, vocab)
    zero3 = json.loads((Path(__file__).parents[1] / "ds_configs" / "zero3.json").read_text())
    zero3["zero_optimization"]["overlap_comm"] = False  # needs CUDA streams; all else as on a GPU
    (WORK / "zero3.json").write_text(json.dumps(zero3))
    rng = random.Random(SEED)
    for setting in {s.folder: s for s in settings}.values():
        setting.folder.mkdir()
        records = [_record(setting, rng) for _ in range(RECORDS)]
        _write_lines(setting.folder / "records.jsonl", records)
        _write_lines(setting.folder / "pairs.jsonl", list(_pairs(records)))
        (setting.folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(setting)))


def _record(setting: Setting, rng: random.Random) -> dict[str, Any]:
    mask = [f"D{i}" for i in range(setting.rejects)]

    def text(tokens: int) -> str:
        return " ".join(f"w{rng.randrange(2, setting.vocab)}" for _ in range(tokens))

    fails: list[list[str]] = [[], *([d] for d in mask)]
    responses = [{"text": text(setting.response - 1), "fails": f} for f in fails]
    return {"prompt": text(setting.prompt), "mask": mask, "responses": responses}


def _pairs(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """TRL's conversational rows for all steps, in the order in which dpeer takes the records."""
    from dpeer.data.packing import batch_indices

    for i in batch_indices(0, STEPS, RECORDS, SEED):
        golden, *rejects = ([{"role": "assistant", "content": r["text"]}] for r in records[i]["responses"])
        prompt = [{"role": "user", "content": records[i]["prompt"]}]
        yield from ({"prompt": prompt, "chosen": golden, "rejected": reject} for reject in rejects)


def _recipe(setting: Setting) -> dict[str, Any]:
    """Plain DPO over all pairs: no tolerance, no anchor; optimizer settings are TRL's defaults."""
    optimizer: dict[str, Any] = {"lr": LR, "schedule": "constant", "warmup": 0, "grad_clip": 1.0}
    optimizer |= {"betas": [0.9, 0.999], "eps": 1e-8}
    return {
        "name": "step",
        "output_dir": str(setting.folder),
        "seed": SEED,
        "model": {"path": str(setting.model), "dtype": "fp32"},
        "data": {"train": str(setting.folder / "records.jsonl"), "dual": "none", "heldout": "none"},
        "objective": {
            "beta": BETA,
            "golden_nll": 0,
            "primary": "pooled",
            "constraint": {"tolerance": float("inf")},
            "dual": {"evidence": "batch"},
        },
        "training": {"steps": STEPS, "records_per_step": 1, "optimizer": optimizer},
        "cluster": {"engine": "deepspeed", "deepspeed": str(WORK / "zero3.json"), "timeout_s": 60},
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def comparisons(setting: Setting) -> list[tuple[str, str, str]]:
    """Those that differ: with one pair per step there is nothing to split."""
    return [c for c in COMPARISONS if setting.rejects > 1 or c[1] != "trl_single"]


def sides(setting: Setting) -> list[str]:
    """The processes of one round, TRL's and dpeer's in turn."""
    return list(dict.fromkeys(side for _, peer, ours in comparisons(setting) for side in (peer, ours)))


def run(side: str, setting: Setting, trl_python: Path) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    common: dict[str, Any] = {"reference": setting.reference}
    if side.startswith("dpeer"):
        step = "bare" if side == "dpeer_bare" else "product"
        job = common | {"recipe": str(setting.folder / "recipe.yaml"), "step": step}
        return measure(sys.executable, WORKERS / "dpeer_side.py", job)
    job = common | {
        "model": str(setting.model),
        "pairs": str(setting.folder / "pairs.jsonl"),
        "scratch": str(setting.folder / "trl"),
        "pairs_per_step": setting.rejects,
        "pairs_per_forward": 1 if side == "trl_single" else setting.rejects,
        "steps": STEPS,
        "lr": LR,
        "beta": BETA,
        "completions_head": side == "trl_completions",
    }
    return measure(trl_python, WORKERS / "trl_side.py", job)


def check_same_work(setting: Setting, results: dict[str, dict[str, Any]]) -> float:
    """Refuse a round whose sides saw other ids or computed other losses; returns the largest difference of losses."""
    if len({r["ids"] for r in results.values()}) > 1:
        raise BenchmarkError(f"{setting.name}: the sides saw different token ids, so their times cannot be compared")
    expected = results["trl"]["losses"]
    gaps = {side: [abs(a - b) for a, b in zip(r["losses"], expected, strict=True)] for side, r in results.items()}
    for side, (first, *later) in gaps.items():
        if not (first <= LOSS_TOLERANCE and max(later) <= LATER):
            raise BenchmarkError(
                f"{setting.name}: losses of {side} differ from TRL's by {first:.1e} in the first step and "
                f"{max(later):.1e} later (allowed {LOSS_TOLERANCE:.0e}, {LATER:.0e}): {results[side]['losses']} "
                f"against {expected}"
            )
    return max(map(max, gaps.values()))


def compare(setting: Setting, rounds: list[dict[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row per comparison: medians over rounds; a round's ratio divides its own two medians over steps."""
    cpu = {side: [statistics.median(r[side]["cpu_s"]) for r in rounds] for side in rounds[0]}
    peak = {side: statistics.median(r[side]["peak_mb"] for r in rounds) for side in rounds[0]}
    for label, peer, ours in comparisons(setting):
        yield {
            "setting": setting.name,
            "comparison": label,
            "cpu_s": {"trl": cpu[peer], "dpeer": cpu[ours]},
            "ratio": [a / b for a, b in zip(cpu[peer], cpu[ours], strict=True)],
            "peak_mb": {"trl": peak[peer], "dpeer": peak[ours]},
            "tokens": {"trl": rounds[0][peer]["tokens"], "dpeer": rounds[0][ours]["tokens"]},
        }


def table_row(row: dict[str, Any]) -> list[str]:
    tokens = {side: "+".join(str(n) for n in counts.values()) for side, counts in row["tokens"].items()}
    return [
        f"{row['setting']}: {row['comparison']}",
        f"{statistics.median(row['cpu_s']['trl']):.3f}",
        f"{statistics.median(row['cpu_s']['dpeer']):.3f}",
        spread(row["ratio"]),
        f"{row['peak_mb']['trl']:.0f} -> {row['peak_mb']['dpeer']:.0f}",
        f"{tokens['trl']} -> {tokens['dpeer']}",
    ]


def figures_of(row: dict[str, Any]) -> Iterator[Figure]:
    key, peak = (row["setting"], row["comparison"]), row["peak_mb"]
    name = ": ".join(key).replace(", live reference", "")
    yield Figure.median(name, row["ratio"], "x", "higher", GOALS.get(key))
    yield Figure(f"{name}, peak memory", peak["dpeer"] / peak["trl"], "share", "lower", MEMORY.get(key))
    yield from (Figure.median(f"{name}, {side}", seconds, "CPU s") for side, seconds in row["cpu_s"].items())


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory per optimizer step, dpeer against TRL.")
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 5")
    parser.add_argument("--only", type=int, nargs="+", choices=range(len(SETTINGS)), help="settings, counted from 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    recorder = Recorder(parser)
    options = parser.parse_args()
    count = 2 if options.quick else 5
    chosen = [SETTINGS[i] for i in options.only or range(len(SETTINGS))]
    about = machine()
    try:
        same = f"transformers=={about['transformers']}"
        trl_python = peer_environment("trl-1.16", ["torch==2.13.0"], ["trl==1.16.*", same])
        write_inputs(chosen)
        for setting in chosen:
            if setting.reference == "cache":
                fill = {"recipe": str(setting.folder / "recipe.yaml"), "reference": "cache", "step": "fill_cache"}
                measure(sys.executable, WORKERS / "dpeer_side.py", fill)
        found: dict[Setting, list[dict[str, dict[str, Any]]]] = {s: [] for s in chosen}
        gap = 0.0
        for number in range(count):
            for setting in chosen:
                print(f"round {number + 1}/{count}: {setting.name}", file=sys.stderr, flush=True)
                results = {side: run(side, setting, trl_python) for side in sides(setting)}
                gap = max(gap, check_same_work(setting, results))
                found[setting].append(results)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [row for setting, rounds in found.items() for row in compare(setting, rounds)]
    print_table(
        "Optimizer step, prompt/response/rejects in tokens: TRL 1.16 -> dpeer",
        ["setting", "TRL CPU s", "dpeer CPU s", "ratio [range]", "peak RSS, MB", "forward tokens (policy+reference)"],
        [table_row(row) for row in rows],
        f"{count} alternating rounds, medians; one thread; fp32; losses agree to {gap:.1e}; {about['cpu']}",
    )
    figures = [figure for row in rows for figure in figures_of(row)]
    recorder.write(options, figures, f"Losses of both sides agree to {gap:.1e}.", {"trl": "1.16"})
    if options.json:
        settings = [asdict(s) for s in chosen]
        report = {"machine": about, "rounds": count, "loss_gap": gap, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
