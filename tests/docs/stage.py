"""What the commands of the pages find: small runs, models, data and tables under the names that the pages use."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pandas as pd

from dpeer.data.order import edges
from dpeer.eval.responses import planned_responses, responses_folder
from dpeer.eval.store.parts import write_part
from dpeer.eval.store.schema import RESPONSES
from dpeer.launcher.commands.evaluation import evaluation_config
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model
from tests.docs.pages import ROOT
from tests.launcher.published import made_evaluation, made_fit, made_run

MODELS = {
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-32B": "qwen3",
    "google/gemma-3-27b-it": "gemma3",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "meta-llama/Llama-3.3-70B-Instruct": "llama",
    "mistralai/Mistral-Small-24B-Instruct-2501": "mistral",
    **{f"runs/demo/judges/{name}": "qwen3" for name in ("lenient", "neutral", "severe")},
    **{f"runs/demo/{name}/export": "qwen3" for name in ("sft", "pooled", "uniform")},
}
"""What shipped recipes and pages name -> model type of the tiny one that stands there."""
SERVED = ", ".join(
    f'{{name: {name}, backend: openai, path: judge, base_url: "http://127.0.0.1:{port}/v1", family: mistral}}'
    for name, port in (("served", 9), ("second", 10))
)
EVALUATION = f"""
name: mine
prompts: {{path: prompts.jsonl}}
base: base
models: [{{name: base, path: runs/demo/base}}, {{name: mine, path: runs/demo/base}}]
judges: [{SERVED}]
judging: {{rubric: toyworld, allow_related: true}}
"""
TRAINING = """
extends: demo
name: mine
data: {train: mine.jsonl, heldout: 10%}
"""
SWEEP = """
name: tolerance
recipe: demo
grid: {objective.constraint.tolerance: [0.25, 0.5]}
seeds: [0, 1]
"""
LOOP = """
name: rounds
recipe: demo
evaluation: demo
rounds: 2
"""
LABELS = "system,question,annotator,verdict\n" + "".join(
    f"{m},q{q},{p},{('bad', 'fair', 'good')[(q + len(m) + len(p)) % 3]}\n"
    for m in ("base", "mine")
    for q in range(6)
    for p in ("ann", "bob")
)


def build(folder: Path) -> Path:
    """Everything that several pages share; nothing is trained or sampled."""
    demo = folder / "runs" / "demo"
    world = toyworld.write_world(demo / "world", 0, n_train=60, n_heldout=30, n_prompts=8, n_pretrain=5)
    texts = [record.responses[0].text for record in world.train.records]
    tiny_model(demo / "base", "qwen3", 1, vocab=400, texts=texts)
    made_run(demo / "lagrangian")
    shutil.copytree(demo / "base", demo / "lagrangian" / "export")
    made_fit(made_evaluation(demo / "evaluation", ("base", "mine", "sft")), demo / "evaluation" / "irt")
    for copy in ("demo/strict", "mine", "my-run"):
        shutil.copytree(demo / "lagrangian", folder / "runs" / copy)
    for copy in ("mine", "pilot", "v1", "v2"):
        shutil.copytree(demo / "evaluation", folder / "runs" / "eval" / copy)
    for seed, (path, family) in enumerate(MODELS.items(), 2):
        tiny_model(folder / path, family, seed, vocab=400, texts=texts)
    shutil.copyfile(demo / "world" / "train.jsonl", folder / "mine.jsonl")
    shutil.copyfile(demo / "world" / "prompts.jsonl", folder / "prompts.jsonl")
    shutil.copyfile(demo / "base" / "config.json", folder / "config.json")
    for copy in ("qisein/PersonaKnob", "runs/build/medical/parquet"):
        shutil.copytree(ROOT / "dpeer" / "data" / "sample", folder / copy)
    seeds = folder / "databricks" / "databricks-dolly-15k" / "train.jsonl"
    seeds.parent.mkdir(parents=True)
    seeds.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in _unlike(3000)))
    shutil.copyfile(ROOT / "constraints.txt", folder / "constraints.txt")
    _pairs(world, folder / "pairs.jsonl")
    (folder / "labels.csv").write_text(LABELS)
    shutil.copyfile(demo / "evaluation" / "ratings.parquet", folder / "ratings.parquet")
    _quality_ratings(folder / "mine.jsonl", folder / "ratings.csv")
    for name, text in {"judges": EVALUATION, "audit": EVALUATION, "tolerance": SWEEP, "loop": LOOP}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def _unlike(count: int) -> list[str]:
    """Questions of which none is a near repeat of another."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abdegiklmnoprstu", k=6)) for _ in range(1000)]
    return [f"How do I {' '.join(rng.sample(words, 8))}?" for _ in range(count)]


def _pairs(world: toyworld.World, path: Path) -> None:
    rows = [
        {
            "prompt": record.prompt[0].content,
            "chosen": record.responses[edge.better].text,
            "rejected": record.responses[edge.worse].text,
            "attribute": edge.dimension,
        }
        for record in world.train.records
        for edge in edges(record)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _quality_ratings(data: Path, path: Path) -> None:
    pd.DataFrame({"record": [], "role": []}).to_csv(path, index=False)


def own_files(page: str, folder: Path) -> None:
    """What a page calls by a name that another page gives to something else."""
    if page in ("first_run.md", "cookbook.md"):
        (folder / "mine.jsonl").unlink()  # what the page makes
    recipes = {"judging.md": EVALUATION, **dict.fromkeys(("planning.md", "cluster.md", "long_context.md"), TRAINING)}
    if recipe := recipes.get(page):
        (folder / "mine.yaml").write_text(recipe)
        (folder / "my.yaml").write_text(recipe)
    if page == "first_run.md":
        (folder / "judges.yaml").write_text(first_evaluation())


def first_evaluation() -> str:
    """The recipe that the page of the first own run has its reader write."""
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "first_run.md").read_text(), re.M | re.S)
    return str(recipe)


def answers(recipe: str) -> None:
    """What `dpeer generate` would have left of a recipe, in the folder of the reader, where it is called."""
    config = evaluation_config(recipe, [])
    for model, planned in planned_responses(config).groupby("model"):
        known = planned[[name for name in planned if name in RESPONSES.names]].to_dict("records")
        said = dict.fromkeys(RESPONSES.names) | {"response": "It depends.", "tokens": 3, "status": "ok"}
        write_part(responses_folder(config) / f"model={model}", [said | row for row in known], RESPONSES)
