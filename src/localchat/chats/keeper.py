"""The thread that keeps conversations: whoever draws a screen or waits for an engine never waits for the disk.

Answers that are being written are saved twice a second while they change. What cannot be saved now (a full disk, a
locked file) stays in memory and is tried again, until it can or the program ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from localchat.chats.records import Outcome, State
from localchat.chats.store import Chats
from localchat.errors import ChatsError, NoSuchChat
from localchat.protocol import Message

T = TypeVar("T")

_SAVE_S = 0.5
_RETRY_S = 2.0


@dataclass(slots=True)
class _Answer:
    """The newest state of one answer; `due` is when it shall be saved (monotonic seconds), None while it is."""

    message: Message | None = None
    outcome: Outcome = field(default_factory=Outcome)
    state: State = "unfinished"
    saved_at: float = 0.0
    due: float | None = None
    over: Future[None] | None = None


class Keeper:
    """A thread of its own that owns one `Chats`, which it opens at once (or, where that fails, with the next call).

    `trouble` is "" or one sentence: why what is being written is not on disk right now. All methods may be called from
    any thread and return at once, `close` apart.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.trouble = ""
        self._file = file
        self._chats: Chats | None = None
        self._calls: deque[tuple[Callable[[Chats], Any], Future[Any]]] = deque()
        self._answers: dict[int, _Answer] = {}
        self._news = threading.Condition()
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[Chats], T]) -> Future[T]:
        """Have `work` done on the thread, in the order of the calls; its result or its error comes in the future."""
        future: Future[T] = Future()
        with self._news:
            if self._give_up_at is not None:
                future.set_exception(ChatsError("the chats are closed already: start localchat again"))
                return future
            self._calls.append((work, future))
            self._news.notify()
        return future

    def follow(self, node: int) -> None:
        """An answer is going to be written: `write` may be called with it, until `finish`."""
        with self._news:
            self._answers[node] = _Answer()

    def write(self, node: int, message: Message, outcome: Outcome) -> None:
        """The answer as it is now; saved within half a second."""
        with self._news:
            answer = self._answers.setdefault(node, _Answer())
            answer.message, answer.outcome = message, outcome
            if answer.due is None:
                answer.due = max(time.monotonic(), answer.saved_at + _SAVE_S)
                self._news.notify()

    def finish(self, node: int, message: Message, state: State, outcome: Outcome) -> Future[None]:
        """The answer as it ended; the future is done once that is on disk."""
        over: Future[None] = Future()
        with self._news:
            answer = self._answers.setdefault(node, _Answer())
            answer.message, answer.outcome, answer.state = message, outcome, state
            answer.due, answer.over = time.monotonic(), over
            self._news.notify()
        return over

    def close(self, patience_s: float) -> None:
        """Do what was asked for, save what is open, and end the thread; give up after `patience_s` seconds."""
        with self._news:
            if self._give_up_at is None:
                self._give_up_at = time.monotonic() + patience_s
            self._news.notify()
        self._thread.join(patience_s)

    # On the thread

    def _run(self) -> None:
        with suppress(ChatsError):
            self._opened()
        while True:
            with self._news:
                while not (self._calls or self._give_up_at is not None or self._wait_s() == 0):
                    self._news.wait(self._wait_s())
                call = self._calls.popleft() if self._calls else None
            self._save_due()
            if call:
                self._do(*call)
            elif self._give_up_at is not None:
                break
        self._end()

    def _opened(self) -> Chats:
        if self._chats is None:
            self._chats = Chats(self._file)
        return self._chats

    def _do(self, work: Callable[[Chats], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work(self._opened())
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _wait_s(self) -> float | None:
        """How long until an answer has to be saved; None: no answer waits."""
        due = [answer.due for answer in self._answers.values() if answer.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _save_due(self) -> None:
        now = time.monotonic()
        with self._news:
            due = [(node, answer) for node, answer in self._answers.items() if answer.due is not None and answer.due <= now]
        for node, answer in due:
            self._save(node, answer)

    def _save(self, node: int, answer: _Answer) -> None:
        with self._news:
            message, outcome, state, over = answer.message, answer.outcome, answer.state, answer.over
            answer.due = None
        assert message is not None
        try:
            self._opened().save(node, message, state, outcome)
        except NoSuchChat as error:
            self._settle(node, over, error)
        except ChatsError as error:
            self.trouble = error.message
            with self._news:
                answer.due = time.monotonic() + _RETRY_S
        except BaseException as error:
            self._settle(node, over, error)
        else:
            self.trouble = ""
            answer.saved_at = time.monotonic()
            if over:
                self._settle(node, over, None)

    def _settle(self, node: int, over: Future[None] | None, error: BaseException | None) -> None:
        """An answer is on disk as it ended, or can never be."""
        with self._news:
            self._answers.pop(node, None)
        if over and error:
            over.set_exception(error)
        elif over:
            over.set_result(None)

    def _end(self) -> None:
        assert self._give_up_at is not None
        while open_ones := [(node, one) for node, one in self._answers.items() if one.due is not None]:
            for node, answer in open_ones:
                self._save(node, answer)
            if not self.trouble:
                continue
            if time.monotonic() > self._give_up_at:
                break
            time.sleep(0.1)
        if self._chats:
            with suppress(ChatsError):
                self._chats.close()
