"""A conversation as it stands: who said what, the answer in progress, and what the next request is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from localchat.chats.records import Attachment
from localchat.chats.reply import Reply
from localchat.protocol import ChatRequest, Extras, Message, Sampling, StreamOptions


@dataclass(slots=True)
class Prompt:
    """A message of the person, as it is shown."""

    text: str
    attachments: list[Attachment] = field(default_factory=list)


@dataclass(slots=True)
class Item:
    """One message on the page: `node` is its number in the tree (None until it is kept), and it is the `place`th of
    `places` siblings.
    """

    node: int | None
    content: Prompt | Reply
    place: int = 1
    places: int = 1


@dataclass(slots=True)
class Turn:
    """A message of the person and every attempt to answer it; the last one counts, none is thrown away."""

    prompt: Message
    attempts: list[Reply]

    @property
    def reply(self) -> Reply:
        """The attempt that counts."""
        return self.attempts[-1]


@dataclass(slots=True)
class Conversation:
    """The turns so far, and what goes with each request: model, system prompt, sampling, limits (in tokens),
    stop strings, whether the model shall think, and how many of its layers lie on GPUs.
    """

    model: str = ""
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    context: int | None = None
    stop: list[str] = field(default_factory=list)
    thinking: bool | None = None
    gpu_layers: int | None = None
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, now: float) -> Turn:
        """Add a message of the person, with an answer that is only beginning."""
        turn = Turn(Message("user", text), [Reply(now)])
        self.turns.append(turn)
        return turn

    def can_retry(self) -> bool:
        """Whether the last message has no complete answer, and none is on its way."""
        return bool(self.turns) and self.turns[-1].reply.state in ("stopped", "failed")

    def retry(self, now: float) -> Turn:
        """Begin another attempt to answer the last message."""
        turn = self.turns[-1]
        turn.attempts.append(Reply(now))
        return turn

    def empty_copy(self) -> Conversation:
        """A new conversation with the same model and settings."""
        return replace(self, turns=[])

    def request(self) -> ChatRequest:
        """The request for the last turn's answer.

        A message that never got an answer is left out: many chat templates refuse two messages of one role in a row.
        Thinking is not sent back; services that speak this protocol refuse it.
        """
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.turns[:-1]:
            if turn.reply.text:
                messages += [turn.prompt, Message("assistant", turn.reply.text)]
        messages.append(self.turns[-1].prompt)
        return ChatRequest(
            messages=messages,
            model=self.model,
            stream=True,
            stream_options=StreamOptions(include_usage=True),
            max_tokens=self.max_tokens,
            stop=self.stop or None,
            localchat=Extras(thinking=self.thinking, context=self.context, gpu_layers=self.gpu_layers, progress=True),
            **msgspec.structs.asdict(self.sampling),
        )
