"""Makes requests ready, and sees whether they have room beside those that run: a sequence, cells, and time.

The window grows where memory allows; where it does not, who came later waits.
"""

from __future__ import annotations

from typing import Any

from localchat.engine.job import Job
from localchat.engine.resident import Resident
from localchat.engine.running import Running
from localchat.engine.sampling import Sampler, resolve
from localchat.errors import ContextExceeded, DoesNotFit, EngineFailed, Interrupted
from localchat.protocol import Extras

ANSWER_RESERVE = 512
"""Tokens of the window that a prompt should leave for its answer; the window grows when the answer is longer."""

_JOINING_RESERVE = 256
"""Tokens that must be left beside running requests for another one's answer: it can step aside when they are used."""

_WINDOW_STEP = 256

_SURE = 4
"""How many times too long a prompt must be estimated to be before it is refused without being counted."""

_FOUR = 4
"""Kernels compute tokens in fours: the second to fourth cost next to nothing. So many run together in any case, as
nobody shall wait for the end of one long answer."""

_FLOPS_PER_BYTE = 4.0
"""What the processor computes in a table of scores while it reads one byte of weights. Measured with two AVX-512 cores:
eight answers of 90 tokens went best, four of 400; each half as fast again as sixteen."""


class Seats:
    """Lets requests in. `context`: the window in tokens that was set, or None to let it grow. Engine's thread only."""

    def __init__(self, running: Running, context: int | None) -> None:
        self._running = running
        self._context = context
        self._together = 0

    def forget(self) -> None:
        """Another model was loaded: what was wanted of the window before says nothing."""
        self._together = 0

    def prepare(self, job: Job, resident: Resident) -> None:
        """Render and tokenize the prompt, and see that it fits. Raises `ContextExceeded` with both numbers."""
        request, extras = job.request, job.request.localchat or Extras()
        job.loaded = max(job.arrived, resident.loaded)
        trained, allowed = resident.model.n_ctx_train, resident.most_context
        cap = min(extras.context or self._context or trained, allowed)

        def check(tokens: int, *, is_estimate: bool = False) -> None:
            if job.cancelled:
                raise Interrupted("nobody waits for this answer any more")
            if tokens >= (_SURE * cap if is_estimate else cap):
                advice = f"set a larger context (up to {allowed})" if cap < allowed else "shorten it"
                if cap == allowed < trained:
                    advice = f"that is all that fits under the ceiling of {resident.said_ceiling}: raise --max-ram"
                raise ContextExceeded(
                    f"the prompt has {'about ' if is_estimate else ''}{tokens} tokens and the context window holds "
                    f"{cap}: {advice}, or start a new chat"
                )

        prompts = resident.prompts
        switches: dict[str, Any] = {
            "thinking": extras.thinking,
            "effort": request.reasoning_effort,
            "go_on": extras.continue_final,
            "began": extras.began,
        }
        if extras.overflow == "slide":
            room = cap - min(request.token_limit() or ANSWER_RESERVE, cap // 4)
            prompt = prompts.build_sliding(request.messages, room, check=check, **switches)
        else:
            prompt = prompts.build(request.messages, check=check, **switches)
        check(len(prompt.tokens))
        job.begin(prompt, resolve(request.sampling(), job.spec.sampling), cap)

    def take(self, job: Job, resident: Resident) -> bool:
        """Give a prepared job a sequence, and the context a size that it fits into; False where it has to wait."""
        extras, prompt = job.request.localchat or Extras(), job.prompt
        limit = job.request.token_limit() or ANSWER_RESERVE
        reserve = max(1, min(limit, ANSWER_RESERVE, job.limit - len(job.tokens)))
        explicit = extras.context or self._context
        if not self._running.jobs:
            self._fit(job, resident, len(job.tokens) + reserve, explicit)
        elif (
            resident.cache.is_full
            or self._would_slow_all(job, resident, reserve)
            or not self._fits_beside(job, resident, reserve, explicit)
        ):
            return False
        if not job.sampler:
            # Before it has a sequence: whatever goes wrong here must not keep one.
            job.sampler = Sampler(resident.model.n_vocab, job.sampling)
            job.sampler.read(job.tokens)
        sequence = resident.cache.take(job.tokens)
        if not sequence:
            return False
        assert prompt
        resident.cache.mark_prompt(sequence, prompt.turns, len(prompt.tokens))
        job.seat(sequence)
        self._running.jobs.append(job)
        return True

    def _would_slow_all(self, job: Job, resident: Resident, reserve: int) -> bool:
        """Whether all would be answered sooner if this job came after one of the others.

        Ordinary attention computes the scores of each token with the cells of all requests, and masks those of others.
        One more token in the batch spares a reading of the weights, so many joining requests are worth it while the
        square of their number, times what each holds, stays below what could be computed in that time.
        """
        number = len(self._running.jobs) + 1
        if resident.context.tuning.flash_attention is not False or number % _FOUR != 1:
            return False
        model = resident.model
        cells = self._running.tokens(resident) + resident.cache.cells_to_add(job.tokens)
        cells += number * min(reserve, _JOINING_RESERVE) // 2  # of answers as long as this one's, half on average
        # A score, and a value weighed by it: two multiplications and two additions for each place of the embedding.
        flops = 4 * model.heads * model.head_size * model.full_layers * cells * number
        return flops > _FLOPS_PER_BYTE * model.file_bytes

    def _fits_beside(self, job: Job, resident: Resident, reserve: int, explicit: int | None) -> bool:
        """Whether there is room beside those who are running, in a larger window if need be."""
        if job.crowded_out == (self._running.ended, resident.n_ctx) and (
            explicit or not resident.grow(resident.grown_context(resident.n_ctx + 1, job.limit))
        ):
            return False
        alone = min(explicit, job.limit) if explicit else len(job.tokens) + reserve
        joining = resident.cache.cells_to_add(job.tokens) + min(reserve, _JOINING_RESERVE)
        together = self._running.tokens(resident) + joining
        if resident.holds(max(alone, together)):
            return True
        if explicit:
            return False
        if resident.grow(resident.grown_context(max(alone, together), job.limit)):
            return resident.holds(max(alone, together))
        # The window can be made anew when nothing runs any more, and shall then hold all of them: whoever asks several
        # things at once does so again.
        self._together = max(self._together, together)
        return False

    def _fit(self, job: Job, resident: Resident, need: int, explicit: int | None) -> None:
        """Make the window as large as the job wants it, or as memory allows. Raises `DoesNotFit` where it holds less
        than the prompt and one token.
        """
        if explicit:
            if not resident.holds(min(explicit, job.limit)):
                resident.resize(min(explicit, job.limit), job.tokens)
            return
        least = len(job.tokens) + 1
        sizes = [resident.grown_context(max(need, self._together), job.limit), resident.grown_context(need, job.limit)]
        sizes += [min(_rounded(size), job.limit) for size in (need, least)]
        for size in sorted(set(sizes), reverse=True):
            if resident.holds(size):
                return
            try:
                resident.resize(size, job.tokens)
                return
            except (DoesNotFit, EngineFailed):
                self._together = 0
                if size == min(sizes) and not resident.holds(least):
                    raise


def _rounded(size: int) -> int:
    return -(-size // _WINDOW_STEP) * _WINDOW_STEP
