"""The requests that are being computed: one batch a step for all of them.

A step takes one token of every answer in progress and fills the rest of the batch with prompts that are still being
read: in small bites while somebody is waiting for the next token, which the lines of a batch are not. While nobody
reads, drafts of what the answers may say next go with their tokens, where that pays.
"""

from __future__ import annotations

import sys
import traceback
from typing import NamedTuple

from localchat.engine.context import Aborted, NoRoom
from localchat.engine.drafts import LONGEST, DraftPolicy, Lookup
from localchat.engine.job import Job
from localchat.engine.offload import DeviceFull
from localchat.engine.prefix_cache import Sequence
from localchat.engine.resident import Resident
from localchat.engine.threads import ThreadController
from localchat.errors import EngineFailed, LocalchatError
from localchat.protocol import FinishReason
from localchat.tuning import Tuning

_BITE_S, _BITE_WHILE_ANSWERING_S = 0.5, 0.12
"""How long one step may read: until progress is shown again, and until the next token of other answers."""

_REMEMBERED_S = 60.0
"""Seconds of reading after which those before count half."""

_FIRST_RATE = 128.0  # tokens per second, before anything was measured
_MIN_BITE, _MIN_BITE_WHILE_ANSWERING = 64, 16
"""Tokens that a step reads however long that takes: the kernels need so many to be fast, and a few to be of use."""

_NO_DRAFTS_FOR = 64
"""Steps without drafts after the window had no room for them."""


class _Fed(NamedTuple):
    """What a job has in the batch: pending tokens, then `draft`; `outputs` are the indices of their logits.

    There are none where its prompt goes on, else one after the pending tokens and one after each of the draft.
    """

    job: Job
    tokens: list[int]
    draft: list[int]
    outputs: list[int]


class Running:
    """Requests with a sequence, in the order in which they were let in. Used on the engine's thread only."""

    def __init__(self, controller: ThreadController, *, drafts: bool = True) -> None:
        self.jobs: list[Job] = []
        self.answered = 0
        self.ended = 0
        """How many have gone for good, whatever became of them."""
        self._controller = controller
        self._read_rate = self._read_tokens = self._read_seconds = 0.0
        self._drafts = drafts
        self._can_cut = True
        self._no_drafts_for = 0
        self._policy = DraftPolicy()

    def tokens(self, resident: Resident) -> int:
        """Cells of the window that all of them together hold, or soon will; what they share counts once."""
        return resident.cache.cells() + sum(job.pending for job in self.jobs)

    @property
    def read_rate(self) -> float:
        """Tokens a second that prompts were read at, over the last half minute of reading or more; 0: none was."""
        return self._read_tokens / self._read_seconds if self._read_seconds else 0.0

    def forget_speed(self, tuning: Tuning) -> None:
        """Another model reads and answers at another speed, and may have numbers of threads of its own."""
        self._controller.most(tuning.decode_threads, tuning.prefill_threads)
        self._read_rate = self._read_tokens = self._read_seconds = 0.0
        self._can_cut = True
        self._policy = DraftPolicy()

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
            self.ended += 1
            job.abandon()
        if not self.jobs:
            self._controller.rest()
            return []
        context.use_threads(*self._controller.update())
        context.begin()
        answers = sum(job.is_decoding for job in self.jobs)
        batch = self._fill_batch(answers, resident)
        began = resident.clock()
        try:
            context.decode()
        except NoRoom:
            return self._make_room(batch, resident)
        except (Aborted, EngineFailed) as error:
            self._undo(batch, resident, error)
            return []
        except DeviceFull as error:
            self._undo(batch, resident, error)
            return self._all_aside(resident, str(error))
        tokens, seconds = sum(len(fed.tokens) + len(fed.draft) for fed in batch), resident.clock() - began
        self._controller.took(tokens, seconds)
        if answers < len(batch):
            self._learn_rate(tokens, seconds)
        aside, said = [], 0
        for fed in batch:
            assert fed.job.sequence
            fed.job.sequence.tokens += fed.tokens
            resident.cache.reached(fed.job.sequence, len(fed.tokens) + len(fed.draft))
            if not fed.outputs:
                fed.job.reading(self._read_rate)
                continue
            said -= fed.job.generated
            if not self._sample(fed, resident):
                aside.append(fed.job)
            said += fed.job.generated
        if answers == len(batch):
            self._policy.took(answers, tokens, said, seconds)
        if not self.jobs:
            self._controller.rest()
        return aside

    def _fill_batch(self, answers: int, resident: Resident) -> list[_Fed]:
        """Put everybody's next tokens into the batch; `answers` of them want one more token, the others read."""
        context, batch = resident.context, []
        jobs, room, drafts = self.jobs, 0, {}
        if answers == len(jobs):
            drafts = self._look_up(resident)
        else:
            # Who has the least left to read comes first: what it does not take is for the others.
            jobs = sorted(jobs, key=lambda job: (not job.is_decoding, job.pending))
            is_watched = any(job.is_decoding and not job.is_patient for job in jobs)
            room = min(context.batch_size - answers, self._bite(is_watched=is_watched))
        for number, job in enumerate(jobs):
            assert job.sequence
            start, share = len(job.sequence.tokens), 1
            if number >= answers:
                share = max(1, room // (len(jobs) - number))
            tokens = job.tokens[start : job.sequence.batch_end(start + share)]
            if number >= answers:
                room -= len(tokens)
            ends = start + len(tokens) == len(job.tokens)
            outputs = [context.add(tokens, start, job.sequence.id, output=ends)]
            draft = drafts.get(job, [])
            for place, token in enumerate(draft, len(job.tokens)):
                outputs.append(context.add([token], place, job.sequence.id, output=True))
            batch.append(_Fed(job, tokens, draft, outputs if ends else []))
        return batch

    def _bite(self, *, is_watched: bool) -> int:
        """How many tokens may be read in one step; `is_watched`: somebody waits for the next token of an answer."""
        least, seconds = (_MIN_BITE_WHILE_ANSWERING, _BITE_WHILE_ANSWERING_S) if is_watched else (_MIN_BITE, _BITE_S)
        return max(least, int((self._read_rate or _FIRST_RATE) * seconds))

    def _look_up(self, resident: Resident) -> dict[Job, list[int]]:
        """What to draft for whom, where all are answering."""
        if self._no_drafts_for:
            self._no_drafts_for -= 1
            return {}
        context, model = resident.context, resident.model
        free = context.outputs - len(self.jobs)
        # A recurrent state cannot go back to before a wrong token. A sliding window can: of a cell that the first token
        # of a batch still sees, llama.cpp makes no use for its last.
        if not self._drafts or not self._can_cut or free <= 0 or model.is_recurrent:
            return {}
        wishes = []
        for job in self.jobs:
            job.lookup = job.lookup or Lookup(job.tokens)
            most = min(LONGEST, free, job.room(context.n_ctx))
            if job.lookup.follow() and most > 0:
                wishes.append((job, job.lookup, most))
        lengths = self._policy.lengths(
            [(lookup, most) for _, lookup, most in wishes],
            len(self.jobs),
            free,
            (context.threads, context.prefill_threads),
            1 / self._read_rate if self._read_rate else 0.0,
        )
        drafts = {}
        for (job, lookup, _), length in zip(wishes, lengths, strict=True):
            draft = lookup.draft(length) if length else []
            # No token follows on one that ends the answer.
            ends = [place for place, token in enumerate(draft) if model.is_end(token)]
            drafts[job] = draft[: ends[0]] if ends else draft
        return drafts

    def _undo(self, batch: list[_Fed], resident: Resident, error: Exception) -> None:
        """Take a batch that was not finished out of the cache; a failure, unlike an abort, ends its requests."""
        for fed in batch:
            assert fed.job.sequence
            resident.cache.cut(fed.job.sequence, len(fed.job.sequence.tokens))
            if isinstance(error, EngineFailed):
                self._leave(fed.job, resident)
                self.ended += 1
                fed.job.fail(error)

    def _learn_rate(self, tokens: int, seconds: float) -> None:
        """Follow the speed of reading; batches of a few tokens say nothing about it."""
        if tokens >= _MIN_BITE_WHILE_ANSWERING and seconds > 0:
            rate = tokens / seconds
            self._read_rate = (self._read_rate + rate) / 2 if self._read_rate else rate
            if self._read_seconds > _REMEMBERED_S:
                self._read_tokens, self._read_seconds = self._read_tokens / 2, self._read_seconds / 2
            self._read_tokens, self._read_seconds = self._read_tokens + tokens, self._read_seconds + seconds

    def _sample(self, fed: _Fed, resident: Resident) -> bool:
        """Choose the job's next token, and those after it for as long as the draft foresaw them.

        Each is drawn by the request's own sampler from the logits after all that was said before it, so that the
        answer is what it would be without drafts. False where the job has to step aside for a larger window.
        """
        job, model, right = fed.job, resident.model, 0
        assert job.sequence and job.sampler
        reason: FinishReason | None = None
        failure: LocalchatError | None = None
        try:
            for index in fed.outputs:
                token = job.sampler.sample(resident.context.handle, index)
                is_end = model.is_end(token)
                reason = job.accept(token, is_end=is_end, piece=b"" if is_end else model.piece(token))
                is_foreseen = right < len(fed.draft) and token == fed.draft[right]
                job.accepted += is_foreseen
                if reason or not is_foreseen:
                    break
                right += 1
        except Exception as error:  # one failing request fails alone, whatever it was
            traceback.print_exc(file=sys.stderr)
            failure = LocalchatError(f"the engine stumbled over this answer ({type(error).__name__}: {error})")
        if fed.draft:
            job.drafted += len(fed.draft)
            job.sequence.tokens += fed.draft[:right]
            self._cut_back(job.sequence, resident)
        if failure:
            self._leave(job, resident)
            self.ended += 1
            job.fail(failure)
        elif reason:
            self._leave(job, resident)
            self.ended += 1
            self.answered += 1
            job.finish(reason)
        elif len(job.tokens) >= resident.n_ctx:
            self._leave(job, resident)
            return False
        return True

    def _cut_back(self, sequence: Sequence, resident: Resident) -> None:
        """Take what was drafted in vain out of the cache."""
        length = len(sequence.tokens)
        resident.cache.cut(sequence, length)
        if len(sequence.tokens) < length:
            # It will be read again, and need not happen twice.
            self._can_cut = False

    def _make_room(self, batch: list[_Fed], resident: Resident) -> list[Job]:
        """The cache is full: do without drafts, then forget old conversations, then let the latest request step aside
        for the others.
        """
        if any(fed.draft for fed in batch):
            self._no_drafts_for = _NO_DRAFTS_FOR
            return []
        if resident.cache.evict():
            return []
        job = self.jobs[-1]
        self._leave(job, resident)
        if self.jobs:
            # It had been let in because it fits, says a sum: whatever that says next, it waits until another has ended.
            job.crowded_out = (self.ended, resident.n_ctx)
            return [job]
        self.ended += 1
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
