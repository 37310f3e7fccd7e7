"""Runs in an environment of lm-evaluation-harness: FOLDER of tasks, JSON of (task, model) -> JSON of their scores."""

import json
import sys
from pathlib import Path

import stub
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager


class Stub(LM):
    tokenizer_name = "stub"

    def __init__(self, name, words):
        super().__init__()
        self.name, self.words = name, words

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return json.dumps(chat_history)

    def generate_until(self, requests, disable_tqdm=False):
        for request in requests:
            assert request.args[1]["until"] == [] and request.args[1]["do_sample"] is False, request.args[1]
        return [stub.answer(self.name, json.loads(r.args[0]), self.words) for r in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


folder = Path(sys.argv[1])
tasks = TaskManager(include_path=str(folder))
found = []
for task, name in json.loads(Path(sys.argv[2]).read_text()):
    data = folder / f"{task.removeprefix('dpeer_')}.jsonl"
    words = stub.words_in([json.loads(line) for line in data.open()])
    result = simple_evaluate(model=Stub(name, words), tasks=[task], task_manager=tasks, apply_chat_template=True)
    scores = {k.removesuffix(",none"): v for k, v in result["results"][task].items() if k.endswith(",none")}
    found.append([task, name, {k: v for k, v in scores.items() if not k.endswith("_stderr")}])
Path(sys.argv[3]).write_text(json.dumps(found))
