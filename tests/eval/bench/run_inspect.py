"""Runs in an environment of inspect_ai: TASKS (JSON: task file, model, rule or judge) -> JSON of their scores."""

import json
import sys
from pathlib import Path

import stub
from inspect_ai import eval as run
from inspect_ai.model import ModelOutput, ModelUsage, get_model

USAGE = ModelUsage()
"""Counted tokens would need a download."""


def output(name, text):
    said = ModelOutput.from_content(name, text)
    said.usage = USAGE
    return said


def model(name, words):
    def reply(messages, tools, tool_choice, config):
        assert config.temperature == 0, config
        shown = [{"role": m.role, "content": m.text} for m in messages]
        return output(name, stub.answer(name, shown, words))

    return get_model("mockllm/model", custom_outputs=reply, memoize=False)


def judge(messages, tools, tool_choice, config):
    (message,) = messages
    return output("judge", stub.verdict(message.text))


found = []
for file, name, by, choice in json.loads(Path(sys.argv[1]).read_text()):
    words = stub.words_in([json.loads(line) for line in Path(file).with_suffix(".jsonl").open()])
    roles = {} if by == "rule" else {"grader": get_model("mockllm/model", custom_outputs=judge, memoize=False)}
    (log,) = run(
        f"{file}@{Path(file).stem}",
        model=model(name, words),
        model_roles=roles,
        task_args={"by": by} if choice else {},
        display="none",
        log_dir=sys.argv[3],
        score_display=False,
    )
    assert log.status == "success", log.error
    scores = {s.name: [s.metrics["rate"].value, s.scored_samples] for s in log.results.scores}
    found.append([file, name, by, scores, str(log.eval.task)])
Path(sys.argv[2]).write_text(json.dumps(found))
