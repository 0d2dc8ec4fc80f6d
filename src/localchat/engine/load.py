"""What other programs leave of the processors, seen several times a second while the engine computes."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from localchat.hardware import usable_cpus

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

_EVERY_S = 0.05
_NOW_S, LATELY_S = 0.09, 0.29
"""The kernel counts idle time in hundredths of a second, so shorter windows would say little."""

_GAP_S, _GAP_OWN = 1.0, 0.01
"""So long without a sample, and we computed in less than this share of it: we were stopped, not slow.

(A machine with far too much to do may leave us a tenth of a core, and a step then takes seconds.)
"""


class Sample(NamedTuple):
    """A moment. Seconds: a monotonic clock, processor time of this process, idle time of the processors that it may
    use, and time that these spent on programs of low priority.
    """

    at: float
    own: float
    idle: float
    niced: float


class Load(NamedTuple):
    """What there is for us, in processors: what we use and what nobody does, over the last 0.1 and 0.3 seconds.

    `lately` is None where nothing is known of so long. `niced`: what programs of low priority used, which may give way.
    `others`: what all others used lately.
    """

    now: float
    lately: float | None
    niced: float
    others: float


NOTHING_KNOWN = Load(math.inf, None, 0.0, math.inf)
"""On a machine that counts no processor times (some sandboxes): anything may be, and only our own steps tell."""


def read_sample() -> Sample | None:
    """The processor times now; None where this machine does not count them."""
    allowed = usable_cpus()
    # /proc/stat itself: psutil reads the same in more than twice the time, and is slow to import.
    idle, niced, busy = _linux_times(allowed) if sys.platform == "linux" else _other_times(allowed)
    if idle + niced + busy == 0:
        return None
    return Sample(time.monotonic(), time.process_time(), idle, niced)


def others_since(before: Sample | None) -> float:
    """The share of the processors' time that other programs have had since, from 0 to 1; 0 where nobody counts it."""
    now = read_sample()
    if not before or not now or now.at <= before.at:
        return 0.0
    return min(1.0, max(0.0, 1 - _free(before, now) / len(usable_cpus())))


def _linux_times(allowed: frozenset[int]) -> tuple[float, float, float]:
    """Idle, niced and other seconds of these processors."""
    idle = niced = busy = found = 0
    try:
        lines = _STAT.read_bytes().split(b"\n")
    except OSError:
        return 0.0, 0.0, 0.0
    for line in lines[1:]:
        if not line.startswith(b"cpu"):
            break
        name, user, nice, system, idling, waiting, *_ = line.split()
        if int(name[3:]) in allowed:
            idle += int(idling) + int(waiting)
            niced += int(nice)
            busy += int(user) + int(system)
            found += 1
    if found < len(allowed):
        # A container that shows its processors under numbers of its own: which are ours, nobody knows.
        return 0.0, 0.0, 0.0
    return idle / _TICKS, niced / _TICKS, busy / _TICKS


def _other_times(allowed: frozenset[int]) -> tuple[float, float, float]:
    import psutil

    times = [times for cpu, times in enumerate(psutil.cpu_times(percpu=True)) if cpu in allowed]
    niced = sum(getattr(each, "nice", 0.0) for each in times)
    return sum(each.idle for each in times), niced, sum(each.user + each.system for each in times)


class LoadMeter:
    """Tells the load anew every 50 ms at most; a sample costs some 12 µs on two processors."""

    def __init__(self, cpus: int, sample: Callable[[], Sample | None] = read_sample) -> None:
        self._cpus = cpus
        self._read = sample
        self._samples: deque[Sample] = deque()
        self._due = 0.0

    def measure(self, at: float) -> Load | None:
        """The load, or None where there is nothing new to say. `at` is the monotonic clock."""
        if at < self._due:
            return None
        self._due = at + _EVERY_S
        now = self._read()
        if now is None:
            return NOTHING_KNOWN
        samples = self._samples
        if samples and self._was_stopped(samples[-1], now):
            samples.clear()
        load = self._since(now) if samples else None
        samples.append(now)
        # One that is old enough is kept.
        while len(samples) > 1 and now.at - samples[1].at >= LATELY_S:
            samples.popleft()
        return load

    def forget(self) -> None:
        """What others used until now says nothing about what comes."""
        self._samples.clear()
        self._due = 0.0

    def _was_stopped(self, last: Sample, now: Sample) -> bool:
        """Whether this process was stopped, or the clocks jumped."""
        passed = now.at - last.at
        return passed <= 0 or (passed > _GAP_S and now.own - last.own < _GAP_OWN * passed)

    def _since(self, now: Sample) -> Load | None:
        """What happened since the newest sample that is old enough, and since the oldest."""
        recent = next((old for old in reversed(self._samples) if now.at - old.at >= _NOW_S), None)
        if recent is None:
            return None
        oldest = self._samples[0]
        lately = _free(oldest, now) if now.at - oldest.at >= LATELY_S else None
        free = _free(recent, now)
        niced = max(0.0, (now.niced - recent.niced) / (now.at - recent.at))
        return Load(free, lately, niced, max(0.0, self._cpus - (free if lately is None else lately)))


def _free(old: Sample, now: Sample) -> float:
    """What we could have had: what we had, and what nobody had."""
    return (now.own - old.own + now.idle - old.idle) / (now.at - old.at)
