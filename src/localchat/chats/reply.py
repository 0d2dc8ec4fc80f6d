"""One attempt of a model to answer, from the moment it is asked to its end: takes in chunks, gives figures.

Plain values with no screen and no socket in them; time comes in as an argument (seconds, from any one clock).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from localchat.chats import records
from localchat.chats.records import Node, Outcome
from localchat.errors import LocalchatError, from_code
from localchat.protocol import Chunk, Message, Progress, Timings, Usage

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
    "broken",  # the program that wrote it died; what had come by then was kept
]
ELSEWHERE = "another window is still writing this answer"
"""The note of an answer that was found unfinished while its writer lives."""

WORTH_A_WORD_S = 1.0
"""From so many seconds on, what the cache saved is told without being asked for."""

_OVER: tuple[State, ...] = ("done", "stopped", "failed", "broken")


@dataclass(slots=True)
class Reply:
    """One attempt of a model to answer, from the moment it was asked (`asked_at`) to its end.

    Where the engine does not tell how many tokens there are so far, chunks are counted as tokens. `unsent`: it ended
    before any engine was asked. `node` is its message's number in the tree, once it has one.
    """

    asked_at: float
    node: int | None = None
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
    restored_from: Literal["memory", "disk"] | None = None
    saved_ms: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    dropped_messages: int = 0
    warnings: list[str] = field(default_factory=list)
    seed: int | None = None
    finish_reason: str | None = None
    error: LocalchatError | None = None
    unsent: bool = False
    reasoning_tokens: int = 0
    text_tokens: int = 0
    _first_tokens: int = 0
    _before: int = 0
    _thinking_from: float | None = None
    _thinking_until: float | None = None
    _answering_from: float | None = None
    _over_at: float | None = None

    @classmethod
    def of(cls, node: Node) -> Reply:
        """An answer as it was kept."""
        told, message = node.outcome, node.message
        return cls(
            0.0,
            node.id,
            "broken" if node.state == "unfinished" else node.state,
            message.text(),
            message.reasoning_content or "",
            told.model,
            ELSEWHERE if node.state == "unfinished" else "",
            usage=told.usage,
            timings=told.timings,
            context=told.context,
            cached_tokens=told.cached_tokens,
            restored_from=told.restored_from,
            saved_ms=told.saved_ms,
            drafted_tokens=told.drafted_tokens,
            accepted_tokens=told.accepted_tokens,
            dropped_messages=told.dropped_messages,
            warnings=list(told.warnings),
            seed=told.seed,
            finish_reason=told.finish_reason,
            error=from_code(told.error_code, told.error) if told.error else None,
            reasoning_tokens=told.reasoning_tokens,
            _thinking_from=None if told.thinking_ms is None else 0.0,
            _thinking_until=None if told.thinking_ms is None else told.thinking_ms / 1000,
        )

    def resume(self, now: float) -> None:
        """It is being gone on with: what came stays, how it ended is forgotten."""
        self.asked_at, self.state, self.error, self.finish_reason, self.warnings = now, "waiting", None, None, []
        self.usage = self.timings = self.progress = self.restored_from = None
        self.saved_ms, self.drafted_tokens, self.accepted_tokens = 0.0, 0, 0
        self._before = self._tokens
        self._answering_from = self._over_at = None
        self._first_tokens = 0

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
            self.seed = report.seed if report.seed is not None else self.seed
            if report.cached_tokens is not None:
                self.cached_tokens = report.cached_tokens
            self.restored_from = report.restored_from or self.restored_from
            self.saved_ms = report.saved_ms or self.saved_ms
            self.drafted_tokens = report.drafted_tokens or self.drafted_tokens
            self.accepted_tokens = report.accepted_tokens or self.accepted_tokens
            if report.progress:
                self.state, self.progress = report.progress.stage, report.progress
                self.cached_tokens = report.progress.cached or self.cached_tokens
        told = chunk.localchat.completion_tokens if chunk.localchat else None
        for choice in chunk.choices:
            came = 1 if told is None else max(0, told + self._before - self._tokens)
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

    @property
    def saved_seconds(self) -> float | None:
        """What the cache saved a person of waiting; None where that is not worth a word."""
        seconds = self.saved_ms / 1000
        return seconds if self.cached_tokens and seconds >= WORTH_A_WORD_S else None

    def completion_tokens(self) -> int:
        """Tokens made so far, thinking included."""
        return self.usage.completion_tokens if self.usage else self._tokens

    @property
    def _tokens(self) -> int:
        return self.reasoning_tokens + self.text_tokens

    def message(self) -> Message:
        """What the model said so far, as a message."""
        return Message("assistant", self.text, self.reasoning or None)

    def kept_state(self) -> records.State:
        """The state as it is kept."""
        return self.state if self.state in _OVER else "unfinished"  # type: ignore[return-value]

    def outcome(self, now: float) -> Outcome:
        """How it came about, to be kept."""
        seconds = self.thinking_seconds(now)
        return Outcome(
            model=self.model,
            finish_reason=self.finish_reason,
            error=self.error.message if self.error else None,
            error_code=self.error.code if self.error else None,
            usage=self.usage,
            timings=self.timings,
            context=self.context,
            cached_tokens=self.cached_tokens,
            restored_from=self.restored_from,
            saved_ms=self.saved_ms,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            dropped_messages=self.dropped_messages,
            seed=self.seed,
            warnings=list(self.warnings),
            thinking_ms=None if seconds is None else seconds * 1000,
            reasoning_tokens=self.reasoning_tokens,
        )

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
