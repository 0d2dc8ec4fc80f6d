"""The requests that are being computed: one batch a step for all of them.

A step takes one token of every answer in progress and fills the rest of the batch with prompts that are still being
read, in small bites while somebody is waiting for the next token.
"""

from __future__ import annotations

from typing import NamedTuple

from localchat.engine.context import Aborted, NoRoom
from localchat.engine.job import Job
from localchat.engine.offload import DeviceFull
from localchat.engine.resident import Resident
from localchat.engine.threads import ThreadController
from localchat.errors import EngineFailed, LocalchatError

_BITE_S, _BITE_WHILE_ANSWERING_S = 0.5, 0.12
"""How long one step may read: until progress is shown again, and until the next token of other answers."""

_FIRST_RATE = 128.0  # tokens per second, before anything was measured
_MIN_BITE = 16


class _Fed(NamedTuple):
    """What a job has in the batch; `output` is the index of its logits, None where its prompt goes on."""

    job: Job
    tokens: list[int]
    output: int | None


class Running:
    """Requests with a sequence, in the order in which they were let in. Used on the engine's thread only."""

    def __init__(self, controller: ThreadController) -> None:
        self.jobs: list[Job] = []
        self.answered = 0
        self._controller = controller
        self._read_rate = 0.0

    def tokens(self) -> int:
        """Tokens that all of them together have in the window, or soon will."""
        # What two share is counted twice: by too small a sum, who stepped aside would be let in again and again.
        return sum(len(job.tokens) for job in self.jobs)

    def forget_speed(self) -> None:
        """Another model reads at another speed."""
        self._read_rate = 0.0

    def fail_all(self, error: LocalchatError) -> None:
        """End all of them with an error."""
        for job in self.jobs:
            job.fail(error)
        self.jobs.clear()

    def step(self, resident: Resident) -> list[Job]:
        """Compute one batch. Returns those who had to step aside: what they have said is kept, they go on later."""
        context = resident.context
        # Cleared before the flags are read: an abort in between is seen in the flag, a later one in the batch.
        context.clear_abort()
        for job in [job for job in self.jobs if job.cancelled]:
            self._leave(job, resident)
            job.abandon()
        if not self.jobs:
            self._controller.rest()
            return []
        context.use_threads(*self._controller.update())
        context.begin()
        batch = self._fill_batch(resident)
        began = resident.clock()
        try:
            context.decode()
        except NoRoom:
            return self._make_room(resident)
        except (Aborted, EngineFailed) as error:
            self._undo(batch, resident, error)
            return []
        except DeviceFull as error:
            self._undo(batch, resident, error)
            return self._all_aside(resident, str(error))
        tokens, seconds = sum(len(fed.tokens) for fed in batch), resident.clock() - began
        self._controller.took(tokens, seconds)
        self._learn_rate(tokens, seconds)
        aside = []
        for fed in batch:
            assert fed.job.sequence
            fed.job.sequence.tokens += fed.tokens
            if fed.output is None:
                fed.job.reading(self._read_rate)
            elif not self._sample(fed.job, fed.output, resident):
                aside.append(fed.job)
        if not self.jobs:
            self._controller.rest()
        return aside

    def _fill_batch(self, resident: Resident) -> list[_Fed]:
        """Put everybody's next tokens into the batch."""
        decoding = [job for job in self.jobs if job.is_decoding]
        reading = [job for job in self.jobs if not job.is_decoding]
        bite = (self._read_rate or _FIRST_RATE) * (_BITE_WHILE_ANSWERING_S if decoding else _BITE_S)
        room = min(resident.context.batch_size - len(decoding), max(_MIN_BITE, int(bite)))
        share = max(1, room // max(1, len(reading)))
        batch = []
        for job in decoding + reading:
            assert job.sequence
            start = len(job.sequence.tokens)
            tokens = job.tokens[start : start + (1 if job.is_decoding else share)]
            ends = start + len(tokens) == len(job.tokens)
            index = resident.context.add(tokens, start, job.sequence.id, output=ends)
            batch.append(_Fed(job, tokens, index if ends else None))
        return batch

    def _undo(self, batch: list[_Fed], resident: Resident, error: Exception) -> None:
        """Take a batch that was not finished out of the cache; a failure, unlike an abort, ends its requests."""
        for fed in batch:
            assert fed.job.sequence
            resident.cache.cut(fed.job.sequence, len(fed.job.sequence.tokens))
            if isinstance(error, EngineFailed):
                self._leave(fed.job, resident)
                fed.job.fail(error)

    def _learn_rate(self, tokens: int, seconds: float) -> None:
        """Follow the speed of reading; batches of a few tokens say nothing about it."""
        if tokens >= _MIN_BITE and seconds > 0:
            rate = tokens / seconds
            self._read_rate = (self._read_rate + rate) / 2 if self._read_rate else rate

    def _sample(self, job: Job, index: int, resident: Resident) -> bool:
        """Choose the job's next token; False where it has to step aside for a larger window."""
        assert job.sampler
        token = job.sampler.sample(resident.context.handle, index)
        is_end = resident.model.is_end(token)
        reason = job.accept(token, is_end=is_end, piece=b"" if is_end else resident.model.piece(token))
        if reason:
            self._leave(job, resident)
            self.answered += 1
            job.finish(reason)
        elif len(job.tokens) >= resident.n_ctx:
            self._leave(job, resident)
            return False
        return True

    def _make_room(self, resident: Resident) -> list[Job]:
        """The cache is full: forget old conversations first, then let the latest request step aside for the others."""
        if resident.cache.evict():
            return []
        job = self.jobs[-1]
        self._leave(job, resident)
        if self.jobs:
            return [job]
        self.answered += 1
        job.finish("length")
        return []

    def _all_aside(self, resident: Resident, why: str) -> list[Job]:
        """A GPU has no room for the computation: all step aside until layers have left it."""
        resident.crowded = why
        # The first of them shall be the first again: each is put before those already in the queue.
        aside = self.jobs[::-1]
        for job in aside:
            self._leave(job, resident)
        return aside

    def _leave(self, job: Job, resident: Resident) -> None:
        assert job.sequence
        self.jobs.remove(job)
        resident.cache.release(job.sequence)
        job.sequence = None
