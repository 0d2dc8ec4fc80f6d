"""Many questions side by side: lines are read as they are needed, some are with the engine, answers leave in order.

One thread reads lines, as many as questions may be with the engine ask them, and the main thread does the rest. Memory
does not grow with the number of lines: no more are read while too many wait for an earlier one's answer.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import msgspec

from localchat.cli.batch_journal import Journal
from localchat.cli.batch_lines import Answer, Form, Line, answer_of, answered, failed
from localchat.cli.batch_output import Output, count_lines, failed_to_write, read_lines
from localchat.cli.progress import ProgressLine, seconds
from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.errors import EngineFailed, EngineLeaving, LocalchatError

_AHEAD = 2
"""Lines that are read ahead, for each that is asked at a time: an engine never waits for the next one."""
_WAITING_LINES, _WAITING_BYTES = 10_000, 32 << 20
"""How much may wait for an earlier line's answer before no further lines are read."""

_TOGETHER = 64
"""Answers that are kept and written at once where they come faster than a disk takes them one by one."""

_ATTEMPTS = 3
_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Before each further attempt at a server elsewhere: it may be starting, or have too much to do."""
_PASSING = (408, 409, 425, 429)

_LOOK_EVERY_S = 0.5
_PLAIN_FIRST_S, _PLAIN_EVERY_S = 10.0, 60.0
_RECENT = 256


class _Read(NamedTuple):
    number: int
    raw: bytes


class _Total(NamedTuple):
    lines: int


class _End(NamedTuple):
    """No more lines; `error` where they could not be read."""

    error: Exception | None


class _Asked(NamedTuple):
    """What came back for a line; `before`: how many answers there were when it was asked."""

    line: Line
    result: Answer | LocalchatError
    before: int


_Event = _Read | _Total | _End | _Asked


@dataclass
class Tally:
    """How far a run is: lines `done` of `total` (None: not known yet), of which some were `kept` from earlier runs."""

    total: int | None = None
    done: int = 0
    kept: int = 0
    failed: int = 0
    tokens: int = 0

    @property
    def of(self) -> str:
        """Such as "1,204 of 100,000"; without the total where lines come as they come."""
        return f"{self.done:,} of {self.total:,}" if self.total is not None else f"{self.done:,}"


class Run:
    """One batch: `follow` it to its end. `prepare` is called once, before the first question, and may raise.

    `parallel`: questions that are with the engine at a time. `ordered`: answers leave in the order of their lines.
    """

    def __init__(
        self,
        engine: LocalEngine | RemoteEngine,
        form: Form,
        journal: Journal,
        output: Output,
        progress: ProgressLine,
        prepare: Callable[[], None],
        *,
        parallel: int,
        ordered: bool,
    ) -> None:
        self.tally = Tally()
        self._engine = engine
        self._form = form
        self._journal = journal
        self._output = output
        self._progress = progress
        self._prepare = prepare
        self._parallel = parallel
        self._ordered = ordered
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(parallel * _AHEAD)
        self._workers = 0
        self._places = 0
        self._unfinished = 0
        self._asked = 0
        self._ready: deque[Line] = deque()
        self._suspects: deque[Line] = deque()
        self._is_alone = False
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0
        self._printed: list[bytes] = []
        self._next = 0
        self._owed = 0
        self._answers = 0
        self._began = time.monotonic()
        self._plain_due = self._began + _PLAIN_FIRST_S
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def follow(self, lines: BinaryIO) -> None:
        """Answer all lines. Raises `UsageError` and `OSError` of reading them, `LocalchatError` where answers cannot be
        written or no engine is to be had, and `BrokenPipeError` where whoever reads the answers has enough.
        """
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        try:
            self._follow()
        finally:
            self._flush()
            for _ in range(self._workers):
                self._questions.put(None)

    def _follow(self) -> None:
        ended, together = False, 0
        while not (ended and not self._unfinished):
            try:
                event = self._events.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                self._show()
                continue
            if isinstance(event, _Read):
                self._begin(event)
            elif isinstance(event, _Asked):
                self._take(event)
            elif isinstance(event, _Total):
                self.tally.total = event.lines
            else:
                if event.error:
                    raise event.error
                ended = True
            self._ask_more()
            together += 1
            if self._events.empty() or together >= _TOGETHER:
                self._flush()
                together = 0
            self._show()

    # On the reading thread.

    def _read(self, lines: BinaryIO) -> None:
        try:
            if (count := count_lines(lines)) is not None:
                self._events.put(_Total(count))
            self._room.acquire()
            for number, raw in read_lines(lines):
                self._events.put(_Read(number, raw))
                self._room.acquire()
            self._events.put(_End(None))
        except Exception as error:  # the main thread raises it
            self._events.put(_End(error))

    # On a thread for each question that is with the engine.

    def _work(self) -> None:
        while line := self._questions.get():
            before = self._answers
            self._events.put(_Asked(line, self._answer(line), before))

    def _answer(self, line: Line) -> Answer | LocalchatError:
        assert line.request
        waits = iter(() if self._engine.is_local else _WAITS_S)
        while True:
            began = time.monotonic()
            try:
                completion = self._engine.answer(line.request)
                return answer_of(completion, line.request.model, (time.monotonic() - began) * 1000)
            except LocalchatError as error:
                wait = next(waits, None)
                if wait is None or not _is_passing(error):
                    return error
                time.sleep(wait)
            except Exception as error:  # one failing line fails alone, whatever it was
                return LocalchatError(f"something unexpected happened ({type(error).__name__}: {error}): report it")

    # On the main thread.

    def _begin(self, read: _Read) -> None:
        line = self._form.line(read.raw, read.number, self._places)
        self._places += 1
        self._unfinished += 1
        if self._output.has(line):
            self.tally.kept += 1
            self._leave(line, b"")
        elif line.error:
            self._fail(line, line.error)
        elif kept := self._journal.take(line.key, line.number):
            self.tally.kept += 1
            self._leave(line, answered(line, kept, with_key=self._output.with_keys))
        else:
            self._ready.append(line)

    def _ask_more(self) -> None:
        """Give the engine what it has room for. Of what it died over, one question at a time and nothing beside it."""
        if self._is_alone and self._asked:
            return
        self._is_alone = bool(self._suspects)
        if self._suspects:
            if not self._asked:
                self._ask(self._suspects.popleft())
            return
        while self._ready and self._asked < self._parallel:
            self._ask(self._ready.popleft())

    def _ask(self, line: Line) -> None:
        if not self._workers:
            self._prepare()
        self._asked += 1
        if self._workers < min(self._asked, self._parallel):
            self._workers += 1
            threading.Thread(target=self._work, daemon=True).start()
        self._questions.put(line)

    def _take(self, asked: _Asked) -> None:
        """Take what came back: an answer, a refusal, or the news that the engine died."""
        line, result, before = asked
        self._asked -= 1
        if isinstance(result, Answer):
            self._answers += 1
            self._recent.append((time.monotonic(), result.usage.completion_tokens))
            self.tally.tokens += result.usage.completion_tokens
            encoded = msgspec.json.encode(result)
            self._journal.keep(line.key, line.number, encoded)
            self._leave(line, answered(line, encoded, with_key=self._output.with_keys))
        elif not _is_passing(result):
            self._fail(line, result)
        elif self._engine.is_local:
            self._suspect(line, result)
        elif result.http_status is None and self._answers == before:
            raise result  # nobody is there to answer, this or anything else
        else:
            self._fail(line, result)

    def _suspect(self, line: Line, error: LocalchatError) -> None:
        """The engine died over this line, or over one beside it: it is asked again, alone, a few times."""
        line.attempts += 1
        if line.attempts < _ATTEMPTS:
            self._suspects.append(line)
            return
        self._prepare()  # no engine at all is nothing that the line did
        self._fail(line, error)

    def _fail(self, line: Line, error: LocalchatError) -> None:
        self.tally.failed += 1
        self._leave(line, failed(line, error))

    def _leave(self, line: Line, printed: bytes) -> None:
        """A line is through: print it, or have it wait for those before it. Nothing to print: it is there already."""
        self._unfinished -= 1
        if not self._ordered:
            self._write(printed)
            self._room.release()
            return
        self._waiting[line.place] = printed
        self._waiting_bytes += len(printed)
        self._owed += 1
        while self._next in self._waiting:
            printed = self._waiting.pop(self._next)
            self._waiting_bytes -= len(printed)
            self._next += 1
            self._write(printed)
        if len(self._waiting) < _WAITING_LINES and self._waiting_bytes < _WAITING_BYTES:
            self._room.release(self._owed)
            self._owed = 0

    def _write(self, printed: bytes) -> None:
        self.tally.done += 1
        if printed:
            self._printed.append(printed)

    def _flush(self) -> None:
        """Write what is to leave, once it is kept. Where much comes at once, one write to the disk is for all of it."""
        self._journal.save()
        if not self._printed:
            return
        printed, self._printed = b"".join(self._printed), []
        if self._output.shares_screen:
            self._progress.clear()
        try:
            self._output.write(printed)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:
                raise  # a closed standard output: room on the disk would not help
            raise failed_to_write(error, self._journal.keeps) from error

    def _show(self) -> None:
        now = time.monotonic()
        is_due = now >= self._plain_due
        if is_due:
            self._plain_due = now + _PLAIN_EVERY_S
        self._progress.show(self._describe(), also_plain=is_due)

    def _describe(self) -> str:
        parts = [self.tally.of]
        if self.tally.failed:
            parts.append(f"{self.tally.failed:,} failed")
        if len(self._recent) > 1 and (passed := time.monotonic() - self._recent[0][0]) > 0:
            parts.append(f"{sum(tokens for _, tokens in self._recent) / passed:,.0f} tokens/s")
            if self.tally.total is not None and (left := self.tally.total - self.tally.done) > 0:
                parts.append(f"{seconds(left * passed / len(self._recent))} left")
        return ", ".join(parts)

    def summary(self) -> str:
        """What a finished run says of itself."""
        tally = self.tally
        parts = [f"{tally.done - tally.failed:,} answered"]
        if tally.kept:
            parts[0] += f" ({tally.kept:,} of them before)"
        if tally.failed:
            parts.append(f"{tally.failed:,} failed")
        passed = time.monotonic() - self._began
        if tally.tokens:
            parts.append(f"{tally.tokens:,} tokens in {seconds(passed)}, {tally.tokens / passed:,.0f} tokens/s")
        return ", ".join(parts)


def _is_passing(error: LocalchatError) -> bool:
    """Whether the same question may be answered when it is asked again."""
    if type(error) not in (LocalchatError, EngineFailed, EngineLeaving):
        return False
    return error.http_status is None or error.http_status >= 500 or error.http_status in _PASSING
