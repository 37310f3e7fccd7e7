"""What many records cost: tokenising per core beside `datasets.map`, then, in a fresh process, opening until the first
pack is ready, and that process's memory.

    python benchmarks/data_scale.py                 # 10,000 and 100,000 records, about 10 minutes on one core
    python benchmarks/data_scale.py --records 10000 1000000

The records are made (seeded, about 130 words each) and so is the tokenizer, a byte-level BPE of 8,000 tokens. The peer
does per pair what TRL's DPO trainer maps over a data set: the chat template, with token ids, for prompt, prompt +
chosen and prompt + rejected. Seconds are CPU seconds, those of helpers included
(DPEER_TOKENIZE_CPUS; here 1 unless it is set).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import psutil
from common import Figure, Recorder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpeer.config import Config
from dpeer.data.bins import plan_packs
from dpeer.data.packing import all_forward_tokens, batch_indices, build_pack
from dpeer.data.pool import CPUS
from dpeer.training.tokens import tokens

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MASKS = (("A", "E"), ("A", "T"), ("C", "E"), ("A", "C", "T"))
PEER = 2_000
"""Records that the peer maps: its cost per record does not depend on how many there are."""
MIB = 2**20


def words() -> list[str]:
    rng = random.Random(1)
    parts = [
        "an",
        "be",
        "cor",
        "di",
        "el",
        "fu",
        "gra",
        "hi",
        "in",
        "ju",
        "ka",
        "lo",
        "mer",
        "no",
        "pre",
        "sti",
        "tion",
    ]
    return ["".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(4000)]


def records(count: int) -> Iterator[dict[str, Any]]:
    rng, known = random.Random(2), words()

    def text(number: int) -> str:
        return " ".join(rng.choices(known, k=number)) + "."

    for i in range(count):
        mask = MASKS[i % len(MASKS)]
        answers = [{"text": text(25), "fails": []}, *({"text": text(25), "fails": [d]} for d in mask)]
        yield {"prompt": f"{i}: {text(45)}", "mask": list(mask), "responses": answers}


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    control = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    corpus = (json.dumps(record) for record in records(2000))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=8000, special_tokens=control, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def recipe(folder: Path, count: int) -> Config:
    return Config.model_validate(
        {
            "name": "scale",
            "output_dir": folder / f"runs-{count}",
            "model": {"path": "unused"},
            "data": {"train": str(folder / f"{count}.jsonl")},
            "training": {"epochs": 1},
        }
    )


def peer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> float | None:
    """CPU seconds per record of mapping its pairs; None without `datasets`."""
    try:
        import datasets
    except ModuleNotFoundError:
        return None
    some = [record for record, _ in zip(records(PEER), range(PEER), strict=False)]
    pairs = [
        {"prompt": r["prompt"], "chosen": r["responses"][0]["text"], "rejected": answer["text"]}
        for r in some
        for answer in r["responses"][1:]
    ]

    def tokenise(row: dict[str, str]) -> dict[str, Any]:
        prompt = [{"role": "user", "content": row["prompt"]}]
        begun = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
        found = {"prompt_ids": begun}
        for name in ("chosen", "rejected"):
            whole = [*prompt, {"role": "assistant", "content": row[name]}]
            ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
            found[f"{name}_ids"] = ids[len(begun) :]
        return found

    data = datasets.Dataset.from_list(pairs)
    began = time.process_time()
    data.map(tokenise, cache_file_name=str(folder / "peer.arrow"))
    return (time.process_time() - began) / len(some)


def first_step(folder: Path, count: int) -> dict[str, float]:
    """In a process of its own: from opening to the first pack, as a rank of two does it."""
    config, tokenizer = recipe(folder, count), PreTrainedTokenizerFast.from_pretrained(folder)
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    data = tokens(config, tokenizer).split("train")
    size = config.training.records_per_step
    trees = [data.trees[i] for i in batch_indices(0, size, len(data.trees), config.seed)]
    plan = plan_packs(all_forward_tokens(trees).tolist(), 2, config.training.tokens_per_pack)
    build_pack([trees[i] for i in plan[0][0]], plan[0][0])
    seconds = time.perf_counter() - began
    list(map(all_forward_tokens, (data.trees,)))  # what the start-up check and the export look at
    for step in range(1, 50):
        for i in batch_indices(step * size, size, len(data.trees), config.seed):
            data.trees[i]
    now = psutil.Process().memory_info().rss
    return {"first_pack_s": seconds, "rss": now, "grown": now - before, "peak": peak()}


def peak() -> int:
    """The most memory that this process has had, in bytes; getrusage would count what its parent held."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def held_out_plan(count: int) -> float:
    """Seconds to plan the packs of a held-out split of 10 % of so many records."""
    rng = random.Random(3)
    costs = [rng.randint(100, 400) for _ in range(count // 10)]
    began = time.process_time()
    plan_packs(costs, 8, 8192)
    return time.process_time() - began


def measure(folder: Path, count: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    source = folder / f"{count}.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(count))
    began, wall = sum(os.times()[:4]), time.perf_counter()
    store = tokens(recipe(folder, count), tokenizer)
    spent, maker = sum(os.times()[:4]) - began, peak()
    own = subprocess.run(
        [sys.executable, __file__, "--open", str(folder), str(count)], check=True, capture_output=True, text=True
    )
    return {
        "records": count,
        "source": source.stat().st_size,
        "seconds": time.perf_counter() - wall,
        "per_record": spent / count,
        "maker": maker,
        "stored": sum(p.stat().st_size for p in store.folder.iterdir()),
        "plan_s": held_out_plan(count),
        **json.loads(own.stdout.splitlines()[-1]),
    }


def figures_of(found: list[dict[str, float]]) -> Iterator[Figure]:
    """Of what grows with the records, ratios per record: 1 where many cost as much each as few do."""
    first, last = found[0], found[-1]
    for name, key in (("tokenising, per record", "per_record"), ("first pack of a fresh rank", "first_pack_s")):
        title = f"{last['records']:,} over {first['records']:,} records: {name}"
        yield Figure(title, last[key] / first[key], "x", "lower")
    for row in found:
        records = f"{row['records']:,} records"
        yield Figure(f"{records}: bytes stored over bytes of the source", row["stored"] / row["source"], "x", "lower")
        yield Figure(f"{records}: tokenising, per record", 1e6 * row["per_record"], "CPU us", "lower")
        yield Figure(f"{records}: first pack of a fresh rank", row["first_pack_s"], "s", "lower")
        yield Figure(f"{records}: memory added to a rank", row["grown"] / MIB, "MiB", "lower")
        yield Figure(f"{records}: most memory of the process that tokenises", row["maker"] / MIB, "MiB", "lower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the files lie; default: a temporary folder")
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    recorder = Recorder(parser)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(first_step(Path(given.open[0]), int(given.open[1]))))
        return
    os.environ.setdefault(CPUS, "1")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        tokenizer = make_tokenizer(folder)
        found = []
        for count in given.records:
            row = measure(folder, count, tokenizer)
            found.append(row)
            mib = {
                name: f"{row[name] / MIB:,.0f} MiB" for name in ("source", "stored", "maker", "rss", "grown", "peak")
            }
            print(
                f"{count:>9,} records, {mib['source']}: tokenised at {1e6 * row['per_record']:,.0f} us each, the "
                f"process that began it at most {mib['maker']}; {mib['stored']} on disk; first pack after "
                f"{row['first_pack_s']:.2f} s; rank {mib['rss']} (+{mib['grown']}), peak {mib['peak']}; held-out packs "
                f"planned in {row['plan_s']:.2f} s",
                flush=True,
            )
        theirs = peer(folder, tokenizer)
        figures = list(figures_of(found))
        if theirs:
            ours = found[0]["per_record"]
            print(f"datasets.map: {1e6 * theirs:,.0f} us for each record's pairs, {theirs / ours:.1f} times as long")
            title = "datasets.map over tokenising, per record"
            figures.insert(0, Figure(title, theirs / ours, "x", "higher"))
        grown = (found[-1]["rss"] - found[0]["rss"]) / MIB
        print(f"a rank's memory from {given.records[0]:,} to {given.records[-1]:,} records: {grown:+,.0f} MiB")
        recorder.write(given, figures)


if __name__ == "__main__":
    main()
