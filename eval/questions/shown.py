"""What a judge reads about one response beside the rubric: a conversation, a reference answer, criteria of the item."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpeer.data.schema import Message
from dpeer.eval.questions.conversations import conversation, messages_of, so_far

OWN = "own"
"""Criterion of ratings by an item's criteria alone."""
RESPONSE = "response"
"""Role of a message that is rated."""


@dataclass(frozen=True, slots=True)
class Shown:
    """messages: a conversation, where there is more than prompt and response; what is rated has the role RESPONSE.
    whole: all of the candidate's messages are rated. criteria: of the item; `instead`: in place of the rubric's."""

    messages: tuple[Message, ...] = ()
    whole: bool = False
    reference: str = ""
    criteria: str = ""
    instead: bool = False

    @property
    def form(self) -> Shown:
        """The same without what was said: what the words of a judge prompt depend on."""
        if not self.messages:
            return self
        return replace(self, messages=(Message("user", ""), Message(RESPONSE, "")))


PLAIN = Shown()


def rated_messages(prompt: str, transcript: object, whole: bool) -> tuple[Message, ...]:
    """The transcript of a conversation with what is rated marked: the last message, or with `whole` all that the model
    under test said. None for a single prompt and response."""
    if not conversation(prompt) or not isinstance(transcript, str):  # data frames write null as they like
        return ()
    said = messages_of(transcript)
    answers = len(said) - len(messages_of(prompt))
    own = {len(so_far(prompt, [""] * k)) for k in range(0 if whole else answers - 1, answers)}
    return tuple(Message(RESPONSE, m.content) if k in own else m for k, m in enumerate(said))
