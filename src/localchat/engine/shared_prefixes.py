"""Who waits until another request has read what both begin with, so that it is read once."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from localchat.engine.job import Job
from localchat.engine.prefix_cache import PrefixCache, common_prefix

_WORTH_WAITING = 64
"""Tokens that are spared; fewer are as well read together with what else is in the batch."""

_STEP = 16
"""Memories that cannot be cut are copied at multiples of so many tokens: prompts that part a word earlier or later can
build on the same checkpoint."""


class SharedPrefixes:
    """Knows which request waits for which. A reader always gets on or ends, so nobody waits for ever."""

    def __init__(self) -> None:
        self._waits: WeakKeyDictionary[Job, tuple[Job, int]] = WeakKeyDictionary()

    def has_to_wait(self, job: Job, running: list[Job], cache: PrefixCache) -> bool:
        """Whether one of those who are running is about to read a good part of this prompt."""
        reader, length = self._waits.get(job, (None, 0))
        if reader not in running or not reader.sequence or len(reader.sequence.tokens) >= length:
            reader, length = self._worth_waiting_for(job, running, cache)
        if not reader:
            self._waits.pop(job, None)
            return False
        self._waits[job] = (reader, length)
        return True

    def _worth_waiting_for(self, job: Job, running: list[Job], cache: PrefixCache) -> tuple[Job | None, int]:
        """Who will have most of the prompt, and how many tokens of it."""
        length, reader = 0, None
        for other in running:
            assert other.sequence
            shared = min(common_prefix(other.tokens, job.tokens), len(job.tokens) - 1)
            shared -= shared % _STEP if cache.is_stateful else 0
            # Who is past the point has nothing more to give: a memory that cannot be cut there will not be, later on.
            if shared > max(length, len(other.sequence.tokens)) and not other.is_decoding:
                length, reader = shared, other
        if not reader or length < cache.longest(job.tokens) + _WORTH_WAITING:
            return None, 0
        assert reader.sequence
        # Where memories cannot be cut back, this is the only moment at which the prefix can be copied.
        cache.mark(reader.sequence, [length])
        return reader, length
