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
from typing import TYPE_CHECKING, TypeVar

from localchat.chats.records import Outcome, State
from localchat.chats.store import Chats
from localchat.errors import ChatsDamaged, ChatsError, NoSuchChat
from localchat.paths import paths
from localchat.protocol import Message

if TYPE_CHECKING:
    from localchat.chats.backup import Backup, Restored

T = TypeVar("T")

_SAVE_S = 0.5
_RETRY_S = 2.0
_LAST_RETRY_S = 0.1
_QUIET_S = 1.0
"""Seconds in which nobody wanted anything before the daily backup begins."""
_LOOK_AGAIN_S = 3600.0
"""A chat may stay open for weeks: how often it is seen whether a day has gone by since the last backup."""


@dataclass(slots=True)
class _Answer:
    """The newest state of one answer; `due` is when it shall be saved next (monotonic seconds), None: it is."""

    message: Message | None = None
    outcome: Outcome = field(default_factory=Outcome)
    state: State = "unfinished"
    saved_at: float = 0.0
    due: float | None = None
    over: Future[None] | None = None


class Keeper:
    """A thread of its own that owns one `Chats`, which it opens at once (or, where that fails, with the next call).

    `trouble` is "" or one sentence: why what is being written is not on disk right now. `damage` is "" or says that the
    daily backup found the file damaged. All methods may be called from any thread; all but `close` return at once.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.trouble = ""
        self.damage = ""
        self._file = file or paths().chats
        self._chats: Chats | None = None
        self._work: deque[Callable[[], None]] = deque()
        self._answers: dict[int, _Answer] = {}
        self._ended: set[int] = set()
        self._news = threading.Condition()
        self._give_up_at: float | None = None
        self._backup_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[Chats], T]) -> Future[T]:
        """Have `work` done on the thread, in the order of the calls; its result or its error comes in the future."""
        return self._enqueue(lambda: work(self._opened()))

    def restore(self, backup: Backup | None) -> Future[Restored]:
        """Put a backup in the place of a damaged file; see `backup.restore`."""
        return self._enqueue(lambda: self._restore(backup))

    def follow(self, node: int) -> None:
        """An answer is going to be written, for the first time or again."""
        with self._news:
            self._ended.discard(node)
            before = self._overtake(node)
            self._answers[node] = _Answer(before.message, before.outcome, due=before.due) if before else _Answer()

    def write(self, node: int, message: Message, outcome: Outcome) -> None:
        """The answer as it is now; saved within half a second. One that is over stays as it is, until `follow`."""
        with self._news:
            if node in self._ended:
                return
            answer = self._answers.setdefault(node, _Answer())
            if answer.over:
                return
            answer.message, answer.outcome = message, outcome
            if answer.due is None:
                answer.due = max(time.monotonic(), answer.saved_at + _SAVE_S)
                self._news.notify()

    def finish(self, node: int, message: Message, state: State, outcome: Outcome) -> Future[None]:
        """The answer as it ended; the future is done once that is on disk."""
        over: Future[None] = Future()
        answer = _Answer(message, outcome, state, over=over)
        with self._news:
            self._overtake(node)
            self._answers[node] = answer
            # In its place among the calls: one before it may be what makes the answer unfinished again.
            self._work.append(lambda: self._save(node, answer))
            self._news.notify()
        return over

    def close(self, patience_s: float) -> None:
        """Do what was asked for, save what is open, and end the thread; give up after `patience_s` seconds."""
        with self._news:
            if self._give_up_at is None:
                self._give_up_at = time.monotonic() + patience_s
            self._news.notify()
        self._thread.join(patience_s)

    def _overtake(self, node: int) -> _Answer | None:
        """The state of an answer so far, which gets another. An end that waits for room on the disk is not saved."""
        before = self._answers.get(node)
        if before and before.over and before.due is not None:
            before.over.cancel()
        return before

    def _enqueue(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._news:
            if self._give_up_at is None:
                self._work.append(do)
                self._news.notify()
                return future
        future.set_exception(ChatsError("the chats are closed already: start localchat again"))
        return future

    # On the thread

    def _run(self) -> None:
        with suppress(ChatsError):
            self._opened()
        self._backup_at = time.monotonic() + _QUIET_S
        while work := self._next():
            work()
        self._end()

    def _next(self) -> Callable[[], None] | None:
        """What is to be done next, once there is something; None: the end."""
        with self._news:
            while True:
                now = time.monotonic()
                if self._work:
                    if self._backup_at is not None:
                        self._backup_at = now + _QUIET_S
                    return self._work.popleft()
                if self._give_up_at is not None:
                    return None
                due = {answer.due: node for node, answer in self._answers.items() if answer.due is not None}
                if due and min(due) <= now:
                    node = due[min(due)]
                    answer = self._answers[node]
                    return lambda: self._save(node, answer)
                if self._backup_at is not None and self._backup_at <= now:
                    return self._back_up
                alarms = [*due, *(() if self._backup_at is None else (self._backup_at,))]
                self._news.wait(min(alarms) - now if alarms else None)

    def _opened(self) -> Chats:
        if self._chats is None:
            try:
                self._chats = Chats(self._file)
            except ChatsError as error:
                self.trouble = error.message
                raise
            self.trouble = ""
        return self._chats

    def _save(self, node: int, answer: _Answer) -> None:
        with self._news:
            message, outcome, state, over = answer.message, answer.outcome, answer.state, answer.over
            answer.due = None
        if message is None or (over and over.done()):
            return
        try:
            self._opened().save(node, message, state, outcome)
        except NoSuchChat as error:
            self._settle(node, answer, error)
        except ChatsError as error:
            self.trouble = error.message
            with self._news:
                answer.due = time.monotonic() + _RETRY_S
        except BaseException as error:
            self._settle(node, answer, error)
        else:
            self.trouble = ""
            answer.saved_at = time.monotonic()
            if over:
                self._settle(node, answer, None)

    def _settle(self, node: int, answer: _Answer, error: BaseException | None) -> None:
        """An answer is on disk as it ended, or can never be."""
        with self._news:
            if self._answers.get(node) is answer:
                del self._answers[node]
                self._ended.add(node)
        over = answer.over
        if over and over.set_running_or_notify_cancel():
            if error:
                over.set_exception(error)
            else:
                over.set_result(None)

    def _back_up(self) -> None:
        from localchat.chats.backup import keep_daily

        again_s: float | None = _LOOK_AGAIN_S
        try:
            if self._chats and not keep_daily(self._file, self._is_wanted):
                again_s = _QUIET_S
        except ChatsDamaged as error:
            self.damage = error.message
            again_s = None
        except ChatsError:
            again_s = None  # no room for a copy: those that there are stay
        self._backup_at = None if again_s is None else time.monotonic() + again_s

    def _is_wanted(self) -> bool:
        now = time.monotonic()
        with self._news:
            due = (answer.due for answer in self._answers.values())
            return bool(self._work or self._give_up_at is not None or any(at is not None and at <= now for at in due))

    def _restore(self, backup: Backup | None) -> Restored:
        from localchat.chats.backup import restore

        if self._chats:
            self._chats.close()
            self._chats = None
        restored = restore(backup, self._file)
        self.damage = ""
        self._opened()
        return restored

    def _end(self) -> None:
        """Save what is not saved, until there is no time left; then close."""
        assert self._give_up_at is not None
        while left := [(node, one) for node, one in self._answers.items() if one.due is not None]:
            for node, answer in left:
                self._save(node, answer)
            if any(one.due is not None for one in self._answers.values()):
                if time.monotonic() + _LAST_RETRY_S > self._give_up_at:
                    break
                time.sleep(_LAST_RETRY_S)
        if self._chats:
            self._chats.close()
