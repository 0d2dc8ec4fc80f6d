"""How many threads compute, from one step to the next.

llama.cpp's threads wait for each other at every barrier, hundreds of times a token, and do so by spinning. On a quiet
machine that is the fastest way; but when another program takes one core, the thread that lost it stops all others, and
two threads on two cores can fall below a tenth of what one alone would do. So the number follows two signals:

- what other programs leave (`load`) says at once that somebody wants a core, or does not any more;
- what our own steps take says whether a number of threads pays, where the load does not tell: hardware threads that
  share a core, a memory that is no faster with more threads, a container that is throttled.

docs/threads.md explains it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from localchat.engine.load import LATELY_S, Load, LoadMeter, Sample, read_sample
from localchat.hardware import physical_cores, usable_cpus

_MORE_PAY, _FEWER_PAY = 0.97, 1.01
"""More threads pay when steps take at most this share of the time before; fewer, when they take hardly more."""

_ENOUGH_STEPS, _ENOUGH_S, _MANY_STEPS = 4, 0.1, 16
"""A trial is judged after so many steps and seconds, or after many steps."""

_HOPELESS_MORE, _HOPELESS_FEWER = 1.5, 1.15
"""A trial ends after two steps that took so many times as long as before."""

_KEPT_STEPS, _COMPARED_STEPS = 48, 8
_STALE_S = 2.0
"""Steps are compared with those just before them only: a step takes longer as its conversation grows."""

_FLEETING_S, _QUIET = 0.3, 0.15
"""Threads that were added and lost again within this time; and what others may use on a quiet machine, in cores."""

_FIRST_LOOK, _LOOKS_GROW = 64, 8
"""Fewer threads are tried without an occasion after so many steps; where it did not pay, after so many times more."""


def _loss(threads: int) -> float:
    """How much of a core others may use before the last of so many threads costs more than it brings.

    While they have it all threads stand still; one thread less would be slower by its share all the time.
    """
    return max(0.2, 0.9 / threads)


class _Patience:
    """When to try again what did not pay: after a while, then after twice as long."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._wait = first
        self._until = 0.0

    def is_over(self, now: float) -> bool:
        return now >= self._until

    def lengthen(self, now: float, least: float = 0.0) -> None:
        wait = max(self._wait, least)
        self._until = now + wait
        self._wait = min(2 * wait, self._longest)

    def reset(self) -> None:
        self._wait, self._until = self._first, 0.0


@dataclass
class _Trial:
    """Another number of threads, until it is judged: `pace` is what a token took before, in seconds.

    The first step does not count: a thread is woken, and comes to a core that had other things to do.
    """

    before: int
    pace: float
    size: int
    patience: _Patience
    taken: list[float] = field(default_factory=list)
    seconds: float = 0.0
    has_begun: bool = False
    unlike: int = 0


class _Count:
    """The number of threads for one kind of step, 1 to `most`, on a machine of so many physical cores."""

    def __init__(self, most: int, cores: int) -> None:
        self.most = self.threads = most
        self._cores = cores
        self._trial: _Trial | None = None
        self._rise = _Patience(0.5, 30.0)
        self._doubt = _Patience(1.0, 30.0)
        self._calm = _Patience(0.25, 8.0)
        self._rose_at = -math.inf
        self._recent: deque[float] = deque(maxlen=_KEPT_STEPS)
        self._size = 0
        self._last_at = -math.inf
        self._steps = 0
        self._look = self._next_look = _FIRST_LOOK

    def follow(self, load: Load, now: float) -> None:
        """Give up what others took, take what they left; what is not clear is tried, and judged by its steps."""
        lately = load.lately if load.lately is not None and now - self._rose_at > LATELY_S else load.now
        # (What the kernel's coarse counts add by chance grows with the number of processors.)
        tolerable = min(self._holding(load.now, 1.25, 0.03 * math.sqrt(self.most)), self._holding(lately, 1.0))
        if tolerable < self.threads:
            self._give_up(tolerable, now)
            return
        if self._trial:
            return
        if self.threads < self.most and lately < self.threads + 1 - 1.5 * _loss(self.threads + 1):
            self._rise.reset()  # others take what did not pay before, so that says nothing any more
        free, perhaps = self._holding(load.now, 0.5), self._holding(load.now + load.niced, 1.0)
        if free > self.threads and self._rise.is_over(now) and (self._calm.is_over(now) or lately > free - _QUIET):
            self._try(free, self._rise, now)
        elif perhaps > max(free, self.threads) and self._doubt.is_over(now):
            self._try(perhaps, self._doubt, now)
        elif self.threads > 1 and self._may_be_too_many(load, now):
            self._try(self.threads - max(1, self.threads // 4), self._doubt, now)

    def took(self, tokens: int, seconds: float, now: float) -> None:
        """A step of so many tokens was computed with `threads`."""
        self._steps += 1
        # Per token, and only among batches of about the same size: larger ones are cheaper.
        size, taken = round(4 * math.log2(tokens)), seconds / tokens
        trial = self._trial
        if trial is None:
            if size != self._size or now - self._last_at > seconds + _STALE_S:
                self._recent.clear()
            self._size, self._last_at = size, now
            self._recent.append(taken)
        elif size == trial.size:
            if trial.has_begun:
                trial.taken.append(taken)
                trial.seconds += seconds
                self._judge(trial, now)
            trial.has_begun = True
        else:
            trial.unlike += 1
            if trial.unlike > _MANY_STEPS:
                self._end_trial()

    def rest(self) -> None:
        """Nothing is computed any more; the next steps will be of another conversation."""
        self._end_trial()
        self._recent.clear()

    def _holding(self, free: float, tolerance: float, error: float = 0.0) -> int:
        """The most threads that so many free cores can hold, where so many times the bearable loss is borne."""
        threads = self.most
        while threads > 1 and free + error < threads - tolerance * _loss(threads):
            threads -= 1
        return threads

    def _may_be_too_many(self, load: Load, now: float) -> bool:
        """Whether there is an occasion to try fewer threads, or it was not done for long."""
        if self._steps >= self._next_look:
            return True
        if not self._doubt.is_over(now):
            return False
        # (Where hardware threads share cores, there are more processors than cores, and others' load weighs more.)
        crowded = self._cores - load.others < self.threads - _loss(self.threads) / 2
        return crowded or self._has_slowed_down()

    def _has_slowed_down(self) -> bool:
        """Whether steps take much longer than a moment ago, for whatever reason."""
        recent = list(self._recent)
        return len(recent) >= 24 and statistics.fmean(recent[-8:]) > 1.5 * statistics.median(recent[:-8])

    def _give_up(self, threads: int, now: float) -> None:
        trial, self._trial = self._trial, None
        if trial and trial.before < self.threads and trial.patience is self._doubt:
            self._doubt.lengthen(now)
        else:
            self._rise.reset()
        # Who comes and goes several times a second is waited for until it has been quiet for a moment.
        if now - self._rose_at < _FLEETING_S:
            self._calm.lengthen(now)
        else:
            self._calm.reset()
        self.threads = threads
        self._recent.clear()

    def _try(self, threads: int, patience: _Patience, now: float) -> None:
        """Compute with another number from now on; judged where there are steps to compare with."""
        if len(self._recent) >= _ENOUGH_STEPS:
            self._trial = _Trial(self.threads, self._pace(), self._size, patience)
        elif threads < self.threads:
            return
        if threads > self.threads:
            self._rose_at = now
        self.threads = threads

    def _pace(self) -> float:
        """What a token took in the last steps, in seconds; a step that was interrupted counts as a slow one."""
        taken = list(self._recent)[-_COMPARED_STEPS:]
        limit = 3 * statistics.median(taken)
        return statistics.fmean(min(each, limit) for each in taken)

    def _judge(self, trial: _Trial, now: float) -> None:
        steps, pace, is_rise = len(trial.taken), statistics.fmean(trial.taken), trial.before < self.threads
        if steps >= 2 and pace > trial.pace * (_HOPELESS_MORE if is_rise else _HOPELESS_FEWER):
            pays = False
        elif (steps >= _ENOUGH_STEPS and trial.seconds >= _ENOUGH_S) or steps >= _MANY_STEPS:
            pays = pace <= trial.pace * (_MORE_PAY if is_rise else _FEWER_PAY)
        else:
            return
        self._trial = None
        if not is_rise:
            self._look = _FIRST_LOOK if pays else self._look * _LOOKS_GROW
            self._next_look = self._steps + self._look
        if pays:
            self._recent.clear()
            self._recent.extend(trial.taken)
            # What is doubtful is settled for a while, and for longer each time that it turns out otherwise.
            self._doubt.lengthen(now, least=4.0)
            if not is_rise:
                self._rise.lengthen(now, least=1.5)
            return
        self.threads = trial.before
        trial.patience.lengthen(now)

    def _end_trial(self) -> None:
        """End a trial without a verdict: who tried more keeps it, who tried fewer goes back."""
        trial, self._trial = self._trial, None
        if trial:
            self.threads = max(self.threads, trial.before)
            self._recent.clear()


class ThreadController:
    """Gives the numbers of threads for each next step, from 1 to `most`.

    `sample` tells the processor times, `clock` is monotonic, in seconds; `cpus` and `cores` are the processors and the
    physical cores that this process may use.
    """

    def __init__(
        self,
        most: int,
        *,
        sample: Callable[[], Sample | None] = read_sample,
        clock: Callable[[], float] = time.monotonic,
        cpus: int | None = None,
        cores: int | None = None,
    ) -> None:
        self._default = most
        self._clock = clock
        self._cores = cores or physical_cores(usable_cpus())
        self._meter = LoadMeter(cpus or len(usable_cpus()), sample)
        self._decode, self._prefill = _Count(most, self._cores), _Count(most, self._cores)

    @property
    def threads(self) -> int:
        """The number for batches of one token."""
        return self._decode.threads

    def most(self, decode: int | None, prefill: int | None) -> None:
        """The most threads for another model, as it was tuned; None: as many as this controller was made for.

        Where these are the same as before, what is known of the load is kept.
        """
        decode, prefill = decode or self._default, prefill or self._default
        if (decode, prefill) != (self._decode.most, self._prefill.most):
            self._decode, self._prefill = _Count(decode, self._cores), _Count(prefill, self._cores)

    def update(self) -> tuple[int, int]:
        """The numbers for the next step: for batches of one token, and of more."""
        if self._decode.most > 1 or self._prefill.most > 1:
            now = self._clock()
            if load := self._meter.measure(now):
                self._decode.follow(load, now)
                self._prefill.follow(load, now)
        return self._decode.threads, self._prefill.threads

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens was computed with the numbers that `update` gave last."""
        count = self._decode if tokens == 1 else self._prefill
        if count.most > 1 and tokens > 0:
            count.took(tokens, seconds, self._clock())

    def rest(self) -> None:
        """Nothing is being computed any more: what others use until we go on says nothing about the time after that.

        (A client that starts takes a core for a moment, and is done when we begin.)
        """
        self._meter.forget()
        self._decode.rest()
        self._prefill.rest()
