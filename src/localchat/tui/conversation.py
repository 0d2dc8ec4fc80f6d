"""A conversation as it stands: who said what, the answer in progress, and what the next request is.

Plain values with no screen and no socket in them; time comes in as an argument (seconds, from any one clock).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from localchat.errors import LocalchatError
from localchat.protocol import (
    ChatRequest,
    Chunk,
    Extras,
    Message,
    Progress,
    Sampling,
    StreamOptions,
    Timings,
    Usage,
)

State = Literal[
    "waiting",  # nothing heard yet
    "preparing",  # a model is being fetched
    "queued",
    "loading",
    "reading",
    "thinking",
    "answering",
    "done",
    "stopped",
    "failed",
]
_OVER: tuple[State, ...] = ("done", "stopped", "failed")


@dataclass(slots=True)
class Reply:
    """One attempt of a model to answer, from the moment it was asked (`asked_at`) to its end.

    Where the engine does not tell how many tokens there are so far, chunks are counted as tokens. `unsent`: it ended
    before any engine was asked.
    """

    asked_at: float
    state: State = "waiting"
    text: str = ""
    reasoning: str = ""
    model: str = ""
    note: str = ""
    progress: Progress | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    context: int | None = None
    cached_tokens: int | None = None
    dropped_messages: int = 0
    warnings: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: LocalchatError | None = None
    unsent: bool = False
    reasoning_tokens: int = 0
    text_tokens: int = 0
    _first_tokens: int = 0
    _thinking_from: float | None = None
    _thinking_until: float | None = None
    _answering_from: float | None = None
    _over_at: float | None = None

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return self.state not in _OVER

    def prepare(self, note: str) -> None:
        """A model is being fetched first; `note` says how far that is."""
        if self.running:
            self.state, self.note = "preparing", note

    def take(self, chunk: Chunk, now: float) -> None:
        """Take in the next piece of the answer, or of news about it."""
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        if report := chunk.localchat:
            self.timings = report.timings or self.timings
            self.context = report.context or self.context
            self.dropped_messages = report.dropped_messages or self.dropped_messages
            self.warnings += report.warnings
            if report.cached_tokens is not None:
                self.cached_tokens = report.cached_tokens
            if report.progress:
                self.state, self.progress = report.progress.stage, report.progress
        told = chunk.localchat.completion_tokens if chunk.localchat else None
        for choice in chunk.choices:
            came = 1 if told is None else max(0, told - self._tokens)
            if thought := choice.delta.reasoning_content:
                self._begin_thinking(now)
                self.reasoning += thought
                self.reasoning_tokens += came
            if text := choice.delta.content:
                self._begin_answer(now)
                self.text += text
                # Tokens told of a chunk with both kinds of text were all counted as thinking.
                self.text_tokens += 0 if thought and told is not None else came
            self._first_tokens = self._first_tokens or self._tokens
            self.finish_reason = choice.finish_reason or self.finish_reason

    def finish(self, now: float) -> None:
        """The answer is complete."""
        self._end("done", now)

    def stop(self, now: float) -> None:
        """The person has stopped it: what came stays."""
        self._end("stopped", now)

    def fail(self, error: LocalchatError, now: float) -> None:
        """It broke off: what came stays."""
        self.error = error
        self._end("failed", now)

    def thinking_seconds(self, now: float) -> float | None:
        """How long the model has thought, or None if it has not."""
        if self._thinking_from is None:
            return None
        return (self._thinking_until or self._over_at or now) - self._thinking_from

    def tokens_per_second(self, now: float) -> float | None:
        """The engine's own figure where it gave one, else what was seen; None until that says something."""
        if self.timings and self.timings.tokens_per_second:
            return self.timings.tokens_per_second
        began = self._thinking_from if self._thinking_from is not None else self._answering_from
        if began is None:
            return None
        seconds = (self._over_at or now) - began
        tokens = self._tokens - self._first_tokens
        return tokens / seconds if seconds >= 0.5 and tokens > 0 else None

    def completion_tokens(self) -> int:
        """Tokens made so far, thinking included."""
        return self.usage.completion_tokens if self.usage else self._tokens

    @property
    def _tokens(self) -> int:
        return self.reasoning_tokens + self.text_tokens

    def message(self) -> Message:
        """What the model said, as a message."""
        return Message("assistant", self.text, self.reasoning or None)

    def _begin_thinking(self, now: float) -> None:
        if self._thinking_from is None:
            self._thinking_from = now
        self.state = "thinking"

    def _begin_answer(self, now: float) -> None:
        if self._answering_from is None:
            self._answering_from = now
            self._thinking_until = now if self._thinking_from is not None else None
        self.state = "answering"

    def _end(self, state: State, now: float) -> None:
        if self.running:
            self.state, self._over_at = state, now


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
