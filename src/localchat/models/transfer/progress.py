"""How a fetch tells what it does: plain values for whoever shows them, at most ten a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

STOPPED = "stopped: what was fetched so far is kept, and asking again goes on from there"
"""What a person reads who interrupted a fetch."""

_EVERY_S = 0.1
_WINDOW_S = 5.0
# A rate over less than this says nothing, and would promise hours or seconds at random.
_SETTLED_S = 1.0


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is. `done` and `total` are bytes (`total` 0 where unknown), `eta` seconds, None while unknown.

    `notice` is one sentence to keep on the screen: a source failed and another is tried, a wait, a resumed transfer.
    """

    source: str
    done: int = 0
    total: int = 0
    bytes_per_second: float = 0.0
    eta: float | None = None
    notice: str = ""


OnProgress = Callable[[FetchProgress], None]


class Meter:
    """Turns byte counts of one source into progress with a speed, measured over the last five seconds."""

    def __init__(self, source: str, total: int, on_progress: OnProgress | None) -> None:
        self._source = source
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._told = 0.0

    def start(self, done: int) -> None:
        """Begin counting at `done` bytes, which were there already and say nothing about the speed."""
        self._done = done
        self._samples.clear()
        self.at(done)

    def total(self, total: int) -> None:
        """Set how many bytes there will be, once that is known."""
        self._total = total

    def at(self, done: int) -> None:
        """Report that `done` bytes are there."""
        now = time.monotonic()
        self._done = done
        self._samples.append((now, done))
        while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        if now - self._told >= _EVERY_S or done >= self._total:
            self._told = now
            self._tell("")

    def hashed(self, done: int, total: int) -> None:
        """Report how far the hashing of a file is (`records.OnHashed`)."""
        self.total(total)
        self.at(done)

    def say(self, notice: str) -> None:
        """Pass a sentence on at once."""
        self._tell(notice)

    def _tell(self, notice: str) -> None:
        if not self._on_progress:
            return
        speed, eta = 0.0, None
        if self._samples:
            (began, first), (now, last) = self._samples[0], self._samples[-1]
            if now - began >= _SETTLED_S and last > first:
                speed = (last - first) / (now - began)
                eta = (self._total - self._done) / speed if self._total else None
        self._on_progress(FetchProgress(self._source, self._done, self._total, speed, eta, notice))
