"""One request on its way through the engine: its tokens, its text, its clock."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from localchat.engine.drafts import Lookup
from localchat.engine.offload import Weights
from localchat.engine.prefix_cache import Sequence
from localchat.engine.prompt import Prompt
from localchat.engine.sampling import Sampler
from localchat.engine.text import AnswerText, Piece
from localchat.errors import LocalchatError
from localchat.protocol import (
    ChatRequest,
    Extras,
    FinishReason,
    Progress,
    PromptDetails,
    Report,
    Sampling,
    Stage,
    Timings,
    Usage,
)
from localchat.tuning import Tuning

_PROGRESS_EVERY_S = 0.1

Version = tuple[int, int, int]
_ANY_VERSION: Version = (0, 0, 0)


def version_of(status: os.stat_result) -> Version:
    """What tells a file from the one that it replaced: its size, time of change in nanoseconds, and inode."""
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True)
class ModelSpec:
    """Which file to load, what people call it, and how its makers would sample from it.

    `version` is that of the file which was resolved and verified; `sha256` is that of its content ("": nobody hashed
    it). `weights` reads from the file what must be known to spread it over GPUs;
    without it the model is the processor's alone.
    """

    name: str
    path: Path
    sampling: Sampling = field(default_factory=Sampling)
    version: Version = _ANY_VERSION
    weights: Callable[[], Weights] | None = field(default=None, compare=False)
    sha256: str = ""
    tuning: Tuning = field(default_factory=Tuning)

    def is_same(self, other: ModelSpec) -> bool:
        """Whether both mean the same weights, set up alike."""
        # The version is that of a split model's first part.
        is_other_content = self.sha256 and other.sha256 and self.sha256 != other.sha256
        same = (self.path, self.version, self.tuning) == (other.path, other.version, other.tuning)
        return same and not is_other_content

    def is_current(self) -> bool:
        """Whether the file is still the one that was meant (and verified)."""
        if self.version == _ANY_VERSION:
            return True
        try:
            return self.version == version_of(self.path.stat())
        except OSError:
            return False


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage
    report: Report


Event = Progress | Piece | Finished | LocalchatError


class Job:
    """A chat request. `sink` is called on the engine's thread with each event; the last is `Finished` or an error.

    `tokens` is everything known of the conversation: the prompt, then what was generated. The sequence holds a prefix
    of it; the rest is pending. One pending token after a generated one is decoding, everything else is reading, also
    where a request that had to make room is taken up again.
    """

    def __init__(self, spec: ModelSpec, request: ChatRequest, sink: Callable[[Event], None]) -> None:
        self.spec = spec
        self.request = request
        self.cancelled = False
        self.arrived = time.monotonic()
        self.loaded = self.arrived
        self.prompt: Prompt | None = None
        self.tokens: list[int] = []
        self.limit = 0
        self.sequence: Sequence | None = None
        self.sampler: Sampler | None = None
        self.sampling = Sampling()
        self.text = AnswerText()
        self._sink: Callable[[Event], None] | None = sink
        self._progress_due = 0.0
        self._cached: int | None = None
        self._is_from_disk = False
        self._saved_ms = 0.0
        self.lookup: Lookup | None = None
        self.crowded_out: tuple[int, int] | None = None
        """How many requests had ended when it had to step aside for others, and the window at that time."""
        self.drafted = self.accepted = 0
        self._generated = 0
        self._started = self._first_token = self._last_token = 0.0

    def begin(self, prompt: Prompt, sampling: Sampling, limit: int) -> None:
        """Set out with a rendered prompt; `limit` is the context window that prompt and answer share."""
        self.prompt = prompt
        self.tokens = list(prompt.tokens)
        self.sampling = sampling
        self.limit = limit
        self.text = AnswerText(
            prompt.tags, prompt.inside_thinking, self.request.stop_strings() + prompt.stops, prompt.goes_on
        )

    def seat(self, sequence: Sequence) -> None:
        """Take a sequence; its tokens are a prefix of this job's."""
        self.sequence = sequence
        sequence.keep = (self.request.localchat or Extras()).keep
        if self._cached is None:
            self._cached = len(sequence.tokens)
            self._is_from_disk = 2 * sequence.restored >= self._cached > 0
            self._saved_ms = sequence.saved_ms
            self._started = time.monotonic()

    @property
    def pending(self) -> int:
        """Tokens that are not in the sequence yet."""
        assert self.sequence
        return len(self.tokens) - len(self.sequence.tokens)

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return self._generated

    @property
    def has_answered(self) -> bool:
        """Whether a first token was generated."""
        return self._generated > 0

    @property
    def is_decoding(self) -> bool:
        """Whether the next step computes a token of the answer (and not of what must be read first)."""
        return self.pending == 1 and self.has_answered

    @property
    def is_patient(self) -> bool:
        """Whether it is one of many that nobody watches."""
        return (self.request.localchat or Extras()).patient

    def room(self, n_ctx: int) -> int:
        """How many tokens may still come after the next one, in a window of `n_ctx` that is this job's alone."""
        room = min(self.limit, n_ctx) - len(self.tokens) - 1
        allowed = self.request.token_limit()
        return room if allowed is None else min(room, allowed - self._generated - 1)

    def accept(self, token: int, *, is_end: bool, piece: bytes) -> FinishReason | None:
        """Take a sampled token; says how the answer ended, if it did."""
        now = time.monotonic()
        if not self._generated:
            self._first_token = now
        self._last_token = now
        self._generated += 1
        if is_end:
            return "stop"
        self.tokens.append(token)
        if text := self.text.feed(piece):
            text.tokens = self._generated
            self._tell(text)
        if self.text.stopped:
            return "stop"
        allowed = self.request.token_limit()
        if (allowed is not None and self._generated >= allowed) or len(self.tokens) >= self.limit:
            return "length"
        return None

    def progress(self, stage: Stage, done: float, total: float, eta_ms: float | None = None, cached: int = 0) -> None:
        """Report progress, not more than ten times a second."""
        now = time.monotonic()
        if now >= self._progress_due:
            self._progress_due = now + _PROGRESS_EVERY_S
            self._tell(Progress(stage, done, total, eta_ms, cached))

    def reading(self, tokens_per_second: float) -> None:
        """Report how far reading the prompt is."""
        assert self.sequence
        left = self.pending
        eta_ms = left / tokens_per_second * 1000 if tokens_per_second > 0 else None
        self.progress("reading", len(self.sequence.tokens), len(self.tokens), eta_ms, self._cached or 0)

    def _tell(self, event: Event) -> None:
        """Give an event to whoever listens. One that cannot take it is gone, and troubles nobody else."""
        if not self._sink:
            return
        try:
            self._sink(event)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._sink = None
            self.cancelled = True

    def fail(self, error: LocalchatError) -> None:
        """End with an error."""
        self._close()
        self._tell(error)

    def finish(self, reason: FinishReason) -> None:
        """End with the rest of the text and the figures."""
        self._close()
        assert self.prompt
        if rest := self.text.finish():
            rest.tokens = self._generated
            self._tell(rest)
        cached = self._cached or 0
        report = Report(
            cached_tokens=cached,
            restored_from=("disk" if self._is_from_disk else "memory") if cached else None,
            saved_ms=self._saved_ms,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            dropped_messages=self.prompt.dropped_messages,
            context=self.limit,
            seed=self.sampling.seed,
            timings=self._timings(cached),
            warnings=self.prompt.warnings,
        )
        prompt_tokens = len(self.prompt.tokens)
        usage = Usage(prompt_tokens, self._generated, prompt_tokens + self._generated, PromptDetails(cached))
        self._tell(Finished(reason, usage, report))

    def abandon(self) -> None:
        """End without a word: nobody listens any more."""
        self._close()

    def _close(self) -> None:
        if self.sampler:
            self.sampler.close()
            self.sampler = None

    def _timings(self, cached: int) -> Timings:
        assert self.prompt
        prefill_s = self._first_token - self._started
        decode_s = self._last_token - self._first_token
        return Timings(
            load_ms=(self.loaded - self.arrived) * 1000,
            prefill_ms=prefill_s * 1000,
            first_token_ms=(self._first_token - self.arrived) * 1000,
            tokens_per_second=(self._generated - 1) / decode_s if decode_s > 0 else 0.0,
            prompt_tokens_per_second=(len(self.prompt.tokens) - cached) / prefill_s if prefill_s > 0 else 0.0,
            total_ms=(time.monotonic() - self.arrived) * 1000,
        )
