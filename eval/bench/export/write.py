"""Files of a benchmark as a task of `inspect_ai` or of `lm-evaluation-harness`."""

from __future__ import annotations

import ast
import json
import re
import tempfile
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dpeer import __version__
from dpeer.errors import ConfigError
from dpeer.eval.bench.answers import MOST_STAGES
from dpeer.eval.bench.benchmark import BENCHMARKS, Benchmark, Item
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.export import played
from dpeer.eval.bench.export.cut import Cut
from dpeer.eval.bench.judged import rubric_of
from dpeer.eval.bench.load import load_items
from dpeer.eval.bench.run import source_words
from dpeer.eval.questions.conversations import conversation, messages_of, so_far, turns
from dpeer.eval.questions.prompting import visible
from dpeer.eval.questions.rubric import load_rubric
from dpeer.files import write_text
from dpeer.report.page import templates

Harness = Literal["inspect", "lm-eval"]
HARNESSES: Mapping[Harness, str] = {"inspect": "inspect_ai", "lm-eval": "lm-evaluation-harness"}
SCORER = ("further", "judged", "rule", "score")
WIDTH = 110
"""Of the header's lines."""


def export(cfg: BenchConfig, harness: Harness, folder: Path) -> list[Path]:
    """Writes the tasks of all benchmarks of the config with their items, all or none, and gives a path for each.

    A file that is there already and differs is not replaced. Raises ConfigError for a benchmark that the harness cannot
    express, and says why; DataError as `load_items` does.
    """
    if cfg.generation.system:
        raise ConfigError("generation.system is not written into tasks; give it to the harness, and leave it out here")
    files: dict[Path, str] = {}
    tasks = []
    for name, chosen in cfg.benchmarks.items():
        benchmark = BENCHMARKS[name]
        if reason := unfit(benchmark, harness):
            raise ConfigError(f"{name} cannot be a task of {HARNESSES[harness]}: {reason}")
        items = load_items(benchmark, chosen.data, cfg.limit_of(name), cfg.seed)
        try:
            own = files_of(benchmark, items, cfg, harness)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        files |= {folder / file: text for file, text in own.items()}
        tasks.append(folder / next(iter(own)))
    for path, text in files.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise ConfigError(f"{path} exists and differs; remove it, or give another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_text(path, text)
    return tasks


def unfit(benchmark: Benchmark, harness: Harness) -> str:
    """Why a harness cannot express a benchmark; empty where it can."""
    if benchmark.measure == "log-probabilities":
        return {
            "inspect": "it compares log-probabilities of given responses, and models there only write",
            "lm-eval": "it compares log-probabilities per token with the end of the turn, and those there are sums "
            "over a text, without the number of its tokens",
        }[harness]
    if type(benchmark).together is not Benchmark.together:
        return "it scores items together, and metrics there see them one by one"
    if harness == "lm-eval" and benchmark.rubric and not benchmark.rules:
        return "judges score it, and the harness has none; inspect has"
    if harness == "lm-eval" and type(benchmark).further is not Benchmark.further:
        return "what is asked next depends on the answers, and the harness asks all at once; inspect does not"
    return ""


def files_of(benchmark: Benchmark, items: Sequence[Item], cfg: BenchConfig, harness: Harness) -> dict[str, str]:
    """File name -> text, the one that the harness is given first. Raises ConfigError for what cannot be written."""
    if harness == "lm-eval" and any(conversation(prompt) for item in items for prompt in item.asks.values()):
        raise ConfigError("its prompts are conversations, and the harness asks single messages; inspect asks them all")
    stem = re.sub(r"\W", "_", benchmark.name)
    rule = benchmark.rules or ("" if benchmark.rubric else "rule")
    judged = bool(benchmark.rubric) and harness == "inspect"
    header = header_of(benchmark, source_words(cfg, benchmark), len(items), harness, stem)
    given: dict[str, Any] = {
        "stem": stem,
        "header": header,
        "metrics": json.dumps([m.name for m in benchmark.metrics]),
        "functions": {m.name: re.sub(r"\W", "_", f"rate_{m.name}") for m in benchmark.metrics},
        "better": {m.name: {"high": "true", "low": "false", "none": "null"}[m.good] for m in benchmark.metrics},
        "rule": rule,
        "judge": judged,
        "temperature": cfg.generation.temperature,
        "top_p": cfg.generation.top_p,
        "max_tokens": cfg.generation.max_tokens,
        "judge_tokens": cfg.judging.max_tokens,
    }
    told = templates("dpeer.eval.bench.export", autoescape=False)

    def rendered(file: str) -> str:
        return told.get_template(file).render(given).strip("\n") + "\n"

    data = {f"{stem}.jsonl": "".join(_line(item) for item in items)}
    doc = '"""' + "\n".join(header).replace("\\", "\\\\").replace('"""', "'''") + '\n"""\n\n'
    own = rendered("inspect.py.j2" if harness == "inspect" else "lm_eval.py.j2")
    module = doc + cut_of(benchmark, harness, judged, taken=_bound(own)) + "\n\n" + own
    if harness == "inspect":
        return {f"{stem}.py": module} | data
    return {f"dpeer_{stem}.yaml": rendered("lm_eval.yaml.j2"), f"dpeer_{stem}.py": module} | data


def _bound(source: str) -> set[str]:
    """Names that a module binds at its top."""
    found: set[str] = set()
    for s in ast.parse(source).body:
        if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
            found.add(s.name)
        elif isinstance(s, (ast.Import, ast.ImportFrom)):
            found |= {a.asname or a.name for a in s.names}
        elif isinstance(s, ast.Assign):
            found |= {t.id for t in s.targets if isinstance(t, ast.Name)}
    return found


def _line(item: Item) -> str:
    try:
        return json.dumps(played.as_json(item), ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"its item {item.id} cannot be written as JSON: {error}") from None


def header_of(benchmark: Benchmark, data: str, count: int, harness: Harness, stem: str) -> list[str]:
    run = {
        "inspect": f"inspect eval {stem}.py --model MODEL"
        + " --model-role grader=JUDGE" * bool(benchmark.rubric)
        + f"; with -T by=rule the {benchmark.rules.replace('_', ' ')} scores, and there is no judge"
        * bool(benchmark.rubric and benchmark.rules),
        "lm-eval": f"lm_eval run --include_path . --tasks dpeer_{stem} --apply_chat_template --model ...",
    }[harness]
    lines = (
        f"{benchmark.title}, written by dpeer {__version__} for {HARNESSES[harness]}.",
        "",
        f"Source and licence: {benchmark.source}. The licence is that of the prompts too.",
        f"Data: {data}; {count:,} items in {stem}.jsonl.",
        f"Protocol: {benchmark.protocol}",
        f"Run: {run}",
        "The code below is that of dpeer (Apache-2.0), cut out of it, so that the scores are the same.",
    )
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, break_on_hyphens=False) or [""]]


def cut_of(benchmark: Benchmark, harness: Harness, judged: bool, taken: Collection[str] = ()) -> str:
    """Protocol and scorer of the benchmark, and what a task needs of `played`, as source; `taken`: names of the task's
    own, which nothing else there may have."""
    cut = Cut(taken)
    cut.add(played.items_in, played.as_json, visible)
    if harness == "lm-eval":
        cut.add(played.rate_of)
    else:
        cut.add(turns, so_far, messages_of, played.first_prompt, played.mean_of, played.values_of)
        cut.add_value("MOST_STAGES", MOST_STAGES)
    if judged:
        cut.add(played.judge_prompts, played.scores_in)
        with tempfile.TemporaryDirectory() as folder:
            cut.add_value("RUBRIC", load_rubric(rubric_of(benchmark, Path(folder))))
    cut.add_object("BENCHMARK", benchmark, SCORER)
    return cut.source()
