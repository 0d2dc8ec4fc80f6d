"""How many threads compute, from one moment to the next.

llama.cpp's threads wait for each other by spinning at every barrier, hundreds of times a token. On a quiet machine
that is the fastest way; but when another program takes one core, the thread that lost it stops all others, and two
threads on two cores can fall below a tenth of what one alone would do. So the number follows what the machine has to
spare.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from localchat.hardware import usable_cores
from localchat.settings import settings

_WINDOW_S = 0.25
"""Over how long the load is measured: the kernel counts in hundredths of a second."""

# A core that others use by less than this is still worth a thread: while they have it, all threads stand still, and one
# thread less would be slower by its share all the time.
_SPARE_TO_KEEP, _SPARE_TO_GAIN = 0.55, 0.75


def most_threads() -> int:
    """The person's choice, else one for each physical core that this process may use."""
    return settings().threads or usable_cores()


@dataclass(frozen=True)
class _Sample:
    """A moment, in seconds: wall clock, processor time of this process, and idle time of all processors together."""

    at: float
    own: float
    idle: float


def _sample() -> _Sample:
    import psutil

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    processors = psutil.cpu_times(percpu=True)
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for cpu, times in enumerate(processors) if cpu in allowed)
    return _Sample(time.monotonic(), time.process_time(), idle)


class ThreadController:
    """Follows the load of the machine: as many threads as there are cores that nobody else needs, 1 to `most`.

    `sample` tells the time, what this process used and what was left idle.
    """

    def __init__(self, most: int, sample: Callable[[], _Sample] = _sample) -> None:
        self._most = most
        self._sample = sample
        self._last: _Sample | None = None
        self._due = 0.0
        self.threads = most

    def update(self) -> tuple[int, int]:
        """The numbers for the next step: for batches of one token, and of more."""
        self._follow_load()
        return self.threads, self.threads

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens was computed with the numbers that `update` gave last."""

    def _follow_load(self) -> None:
        """Measured anew every quarter of a second."""
        if self._most == 1 or time.monotonic() < self._due:
            return
        now = self._sample()
        self._due = now.at + _WINDOW_S
        last, self._last = self._last, now
        if last and now.at > last.at:
            # What we could have is what we have plus what nobody has.
            cores = (now.own - last.own + now.idle - last.idle) / (now.at - last.at)
            while self.threads > 1 and cores < self.threads - 1 + _SPARE_TO_KEEP:
                self.threads -= 1
            while self.threads < self._most and cores >= self.threads + _SPARE_TO_GAIN:
                self.threads += 1

    def rest(self) -> None:
        """Nothing is being computed any more: what others use until we go on says nothing about the time after that.

        (A client that starts takes a core for a moment, and is done when we begin.)
        """
        self._last = None
        self._due = 0.0
