"""Which bytes are still to be asked for, and which connection brings which: the work of a download in ranges.

Connections that have nothing left to ask for help the others out, so that a slow or silent one holds up nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from localchat.models.transfer.spans import Span
from localchat.models.transfer.transport import STALL_BYTES

_WORTH_SPLITTING = 2 << 20
"""Bytes of a range whose second half another connection may take."""
_QUIET_S = 5.0
"""Seconds without `STALL_BYTES` after which another connection may take all that is left of a range."""
_POLL_S = 0.25


class Task:
    """A range that a connection brings: from byte `at`, which moves on, to before `end`, which may come closer."""

    def __init__(self, start: int, end: int) -> None:
        self.at = start
        self.end = end
        self._quiet_since = time.monotonic()
        self._since_then = 0

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self.end - self.at

    @property
    def is_quiet(self) -> bool:
        """Whether hardly anything came for some time."""
        return time.monotonic() - self._quiet_since > _QUIET_S

    def move(self, count: int) -> None:
        """Note that the next `count` bytes came."""
        self.at += count
        self._since_then += count
        if self._since_then >= STALL_BYTES:
            self._quiet_since, self._since_then = time.monotonic(), 0


class Tasks:
    """The work that is left, shared by the threads of all connections. `chunk` is the most that one task asks for."""

    def __init__(self, missing: list[Span], chunk: int) -> None:
        self.accepted = 0
        """Bytes that came so far."""
        self._free = missing
        self._chunk = chunk
        self._taken: list[Task] = []
        self._changed = threading.Condition()

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        with self._changed:
            return sum(end - start for start, end in self._free) + sum(task.left for task in self._taken)

    def take(self, stopped: Callable[[], bool]) -> Task | None:
        """The next range to ask for, waited for while others may give theirs back; None once all is there."""
        with self._changed:
            while not stopped():
                if self._free:
                    start, end = self._free.pop(0)
                    if end - start > self._chunk:
                        self._free.insert(0, (start + self._chunk, end))
                        end = start + self._chunk
                    return self._begin(start, end)
                if not self._taken:
                    return None
                if task := self._split():
                    return task
                self._changed.wait(_POLL_S)
        return None

    def take_all(self, task: Task) -> None:
        """Let one task bring all that is left, which must be what comes after it."""
        with self._changed:
            task.end = max([task.end, *(end for _, end in self._free)])
            self._free.clear()

    def accept(self, task: Task, count: int) -> int:
        """How many of the next `count` bytes of a task are wanted; they count as there."""
        with self._changed:
            count = min(count, task.left)
            task.move(count)
            self.accepted += count
            return count

    def give_back(self, task: Task) -> None:
        """End a task; what it did not bring is for whoever comes next."""
        with self._changed:
            if task in self._taken:
                self._taken.remove(task)
                if task.left:
                    self._free = sorted([*self._free, (task.at, task.end)])
            self._changed.notify_all()

    def _begin(self, start: int, end: int) -> Task:
        task = Task(start, end)
        self._taken.append(task)
        return task

    def _split(self) -> Task | None:
        """The second half of the largest range on its way, or all that is left of one that fell silent."""
        for task in self._taken:
            if task.is_quiet and task.left:
                end, task.end = task.end, task.at
                return self._begin(task.at, end)
        task = max(self._taken, key=lambda task: task.left)
        if task.left < _WORTH_SPLITTING:
            return None
        end, task.end = task.end, task.at + task.left // 2
        return self._begin(task.end, end)
