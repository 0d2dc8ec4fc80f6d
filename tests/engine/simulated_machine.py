"""A machine whose time passes when a test says so: cores, other programs on them, and threads that spin at barriers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from localchat.engine.load import Sample
from localchat.engine.threads import ThreadController

_QUANTUM_S = 0.001
_PERIOD_S = 0.1

Others = Callable[[float], int]
"""How many other programs compute at a moment."""


def linear(threads: int) -> float:
    """How many times as fast as one thread: most of the work is shared, barriers are not."""
    return threads / (1 + 0.12 * (threads - 1))


@dataclass
class SimulatedMachine:
    """`cores` processors. A step of one token takes `step_s` with one thread.

    While a core that a thread needs is taken, only the `stalled` part of one thread's work is done. `quota`: processors
    that a cgroup pays for in each tenth of a second. `niced`: the others have low priority, and get what is left over.
    `counts`: whether processor times are counted at all.
    """

    cores: int
    others: Others = lambda at: 0
    step_s: float = 0.016
    speed_up: Callable[[int], float] = linear
    stalled: float = 0.3
    quota: float | None = None
    niced: bool = False
    counts: bool = True
    at: float = 100.0
    own: float = 0.0
    _idle: list[float] = field(default_factory=list)
    _nice: float = 0.0
    _paid: float = 0.0
    _period: int = 0

    def __post_init__(self) -> None:
        self._idle = [0.0] * self.cores
        self._random = random.Random(7)
        self.counted_from = self.at

    def clock(self) -> float:
        return self.at

    def sample(self) -> Sample | None:
        """As the kernel counts: each processor in whole hundredths of a second."""
        if not self.counts:
            return None
        return Sample(self.at, self.own, sum(int(idle * 100) / 100 for idle in self._idle), int(self._nice * 100) / 100)

    def step(self, threads: int, tokens: int = 1, reads: float = 1.0) -> float:
        """Compute one batch; `reads`: what a token of it costs, in parts of `step_s`. Returns its seconds."""
        began, work = self.at, self.step_s * tokens * reads * self._random.uniform(0.96, 1.04)
        while work > 0:
            work -= _QUANTUM_S * self._pass(threads)
        return self.at - began

    def wait(self, seconds: float) -> None:
        """Nothing of ours is computed."""
        end = self.at + seconds
        while self.at < end:
            self._pass(0)

    def controller(self, most: int | None = None) -> ThreadController:
        return ThreadController(
            most or self.cores, sample=self.sample, clock=self.clock, cpus=self.cores, cores=self.cores
        )

    def _pass(self, threads: int) -> float:
        """One quantum. Returns the work that was done, in quanta of one thread."""
        taken = min(self.others(self.at - self.counted_from), self.cores)
        period = int(self.at / _PERIOD_S)
        if period != self._period:
            self._period, self._paid = period, 0.0
        self.at += _QUANTUM_S
        is_throttled = self.quota is not None and self._paid >= self.quota * _PERIOD_S
        running = 0 if is_throttled else threads
        left = self.cores - (0 if self.niced else taken)
        got = min(float(running), max(left, self.cores * running / (running + taken) if running else 0))
        self.own += _QUANTUM_S * got
        self._paid += _QUANTUM_S * got
        theirs = min(taken, self.cores - got)
        if self.niced:
            self._nice += _QUANTUM_S * theirs
        unused, core = self.cores - got - theirs, 0
        while unused > 0.001:
            self._idle[core] += _QUANTUM_S * min(1.0, unused)
            unused, core = unused - 1, core + 1
        if not running:
            return 0.0
        return self.speed_up(running) if running <= left else self.stalled * max(1, left)


@dataclass
class Run:
    """What came of answering on a machine: when tokens came, and when the number of threads changed."""

    tokens: list[float] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, begin: float, end: float) -> float:
        """Tokens a second between two moments, seconds after the start."""
        return sum(begin <= at < end for at in self.tokens) / (end - begin)

    def changes_between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at, _ in self.changes)


def answer(machine: SimulatedMachine, seconds: float, threads: int | None = None, grows: float = 0.0) -> Run:
    """Answer for so long, with the controller or a fixed number of threads.

    `grows`: by how much each token costs more than the one before, in parts of the first.
    """
    run, began, cost = Run(), machine.at, 1.0
    controller = machine.controller() if threads is None else None
    last = 0
    while machine.at - began < seconds:
        count = controller.update()[0] if controller else threads or 1
        if count != last:
            run.changes.append((machine.at - began, count))
            last = count
        taken = machine.step(count, reads=cost)
        if controller:
            controller.took(1, taken)
        run.tokens.append(machine.at - began)
        cost += grows
    return run
