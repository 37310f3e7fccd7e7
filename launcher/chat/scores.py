"""What judges say of a reply, per dimension, when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpeer.data.schema import Message
from dpeer.eval.asking import shown_of
from dpeer.eval.backends.openai.endpoint import answers
from dpeer.eval.backends.types import Call, Job, Method
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import read
from dpeer.eval.pair_plan import read_as
from dpeer.eval.questions.conversations import written
from dpeer.eval.questions.prompting import judge_segments
from dpeer.eval.questions.rubric import Rubric, load_rubric
from dpeer.launcher.chat.talks import Talk


@dataclass(frozen=True, slots=True)
class Judges:
    """The judges of an evaluation, each behind an endpoint, and the rubric that they read."""

    config: EvalConfig
    rubric: Rubric

    @staticmethod
    def of(config: EvalConfig) -> Judges:
        return Judges(config, load_rubric(config.judging.rubric))

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.config.judging.dimensions or tuple(self.rubric.dimensions)

    def rate(self, talk: Talk, column: int) -> list[dict[str, Any]]:
        """A row per judge, dimension and criterion: score on the rubric's scale, or why there is none.

        Raises ClusterError or ConfigError where a judge's endpoint answers nothing at all.
        """
        judging = self.config.judging
        told = [Message(m["role"], m["content"]) for m in talk.messages(column)]
        single = len(talk.said) == 1
        answer = talk.replies[column][-1]
        response = {
            "prompt": talk.said[0] if single else written(told[:-1]),
            "response": answer,
            "transcript": None if single else written(told),
        }
        asked = [(d, c) for d in self.dimensions for c in self.rubric.dimensions[d].criteria]
        calls = [
            Call(
                str(k),
                talk.id,
                judge_segments(
                    self.rubric,
                    talk.said[0],
                    answer,
                    dimension,
                    criterion,
                    "up",
                    read_as(judging),
                    shown_of(judging, response, dimension),
                ),
            )
            for k, (dimension, criterion) in enumerate(asked)
        ]
        rows = []
        for judge in self.config.judges:
            most = 1 if read_as(judging) == "logprob" else judging.max_tokens
            method = Method(read_as(judging), max_tokens=most, rubric=self.rubric)
            job = Job(judge, self.config.engine_of(judge), method, count=len(calls))
            for said in sorted((a for batch in answers(job, calls) for a in batch), key=lambda a: int(a.id)):
                reading = read(said, self.config, self.rubric.scale)
                dimension, criterion = asked[int(said.id)]
                rows.append(
                    {
                        "judge": judge.name,
                        "dimension": dimension,
                        "criterion": criterion,
                        "score": reading.score,
                        "expected": reading.expected,
                        "why": reading.rationale or reading.error or "",
                        "status": reading.status,
                    }
                )
        return rows
