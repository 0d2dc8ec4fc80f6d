"""The one thread that owns llama.cpp: it loads models, lets requests in as there is room, and has them computed.

Who does not fit waits, in order of arrival; `running` computes those who are in.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from localchat.engine.job import Event, Job, ModelSpec
from localchat.engine.prefix_saver import PrefixSaver
from localchat.engine.resident import Resident, Wish
from localchat.engine.running import Running
from localchat.engine.seats import Seats
from localchat.engine.shared_prefixes import SharedPrefixes
from localchat.engine.task import Task
from localchat.engine.templates import TemplateRenderer
from localchat.engine.threads import ThreadController
from localchat.errors import EngineFailed, LocalchatError
from localchat.protocol import ChatRequest, Extras, LoadedModel

_PREPARING_S = 0.1
"""For how long prompts may be prepared between two steps of running answers; the one that is begun is ended."""

_IDLE_S = 1.0
"""How long nothing was computed until what was read is saved: whoever asks again at once does not wait for that."""

_LAST_SAVING_S = 3.0
"""How long saving may take where the model leaves memory; what is not saved by then must be read again one day."""

_SETTLING_S = 0.2
"""How long to wait for the last piece to be written."""

W = TypeVar("W", Job, Task)


class _Turn(Enum):
    """What became of work that was first in the queue."""

    BEGUN = auto()
    WAITS = auto()
    """For room, and whoever is behind it waits too."""
    LETS_PASS = auto()
    """For what another request is reading; others need not wait for that."""


_NO_MODEL = ModelSpec("", Path())


class Engine:
    """The engine's face to other threads. Nothing is loaded before it is asked for.

    `threads`: how many may compute; `context`: the window in tokens, or None to let it grow as conversations do;
    `gpu_layers`: how many layers lie on GPUs, or None for as many as fit; `saver` keeps on disk what models have read,
    and ends with the engine; `max_ram` is the most memory, in bytes, that all of it may take;
    `drafts`: look up in the text so far what may come next, while that makes answers faster.
    """

    def __init__(
        self,
        threads: int,
        context: int | None = None,
        gpu_layers: int | None = None,
        saver: PrefixSaver | None = None,
        max_ram: int | None = None,
        *,
        drafts: bool = True,
    ) -> None:
        self._controller = ThreadController(threads)
        self._context = context
        self._gpu_layers = gpu_layers
        self._max_ram = max_ram
        self._saver = saver
        self._queue: deque[Job | Task] = deque()
        self._running = Running(self._controller, drafts=drafts)
        self._seats = Seats(self._running, context)
        self._shared = SharedPrefixes()
        self._wake = threading.Condition()
        self._closing = False
        self._resident: Resident | None = None
        self._load_began = 0.0
        self._at_the_door: Job | Task | None = None
        self._somebody_came = False
        self._renderer: TemplateRenderer | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, spec: ModelSpec, request: ChatRequest, sink: Callable[[Event], None]) -> Job:
        """Ask for an answer; `sink` gets its events on the engine's thread, the last is `Finished` or an error."""
        job = Job(spec, request, sink)
        self._enqueue(job)
        return job

    def cancel(self, job: Job) -> None:
        """Stop computing a request that nobody listens to any more, in the middle of a token if need be."""
        job.cancelled = True
        resident, running = self._resident, self._running.jobs
        # A recurrent memory cannot go back to before the batch: there the others would have to read all again.
        if resident and job in running and (len(running) == 1 or not resident.model.is_recurrent):
            resident.abort()
        with self._wake:
            self._wake.notify()

    def load(
        self, spec: ModelSpec, context: int | None = None, gpu_layers: int | None = None, max_ram: int | None = None
    ) -> Future[object]:
        """Have a model in memory."""
        return self._enqueue(Task(spec, context, lambda resident: None, gpu_layers, max_ram)).future

    def tokenize(self, spec: ModelSpec, text: str, max_ram: int | None = None) -> Future[object]:
        """The token ids (`list[int]`) of a text as the content of a message."""
        tokens = lambda resident: resident.prompts.plain_tokens(text)  # noqa: E731
        return self._enqueue(Task(spec, None, tokens, max_ram=max_ram)).future

    def unload(self) -> None:
        """Give the memory back once the running requests are through; the next request loads again."""
        with self._wake:
            self._queue.append(Task(_NO_MODEL, None, lambda resident: None))
            self._wake.notify()

    def close(self) -> None:
        """End the thread; requests on their way fail. What was read is saved, for a few seconds at most."""
        with self._wake:
            self._closing = True
            for job in (*self._running.jobs, *self._queue):
                job.cancelled = True
            self._wake.notify()
        if resident := self._resident:
            resident.abort()
        self._thread.join(timeout=10)

    def counts(self) -> tuple[int, int]:
        """Requests that are being computed, and requests that wait."""
        return len(self._running.jobs), len(self._queue)

    @property
    def answered(self) -> int:
        """Requests that were answered so far."""
        return self._running.answered

    def loaded(self) -> LoadedModel | None:
        """What is in memory now."""
        return resident.describe() if (resident := self._resident) else None

    @property
    def max_ram(self) -> int | None:
        """The ceiling that holds now, in bytes."""
        return resident.ceiling if (resident := self._resident) else self._max_ram

    @property
    def template_process_bytes(self) -> int:
        """Bytes of the process that renders templates."""
        return renderer.memory if (renderer := self._renderer) else 0

    def _enqueue(self, work: W) -> W:
        with self._wake:
            if self._closing:
                raise EngineFailed("the engine is leaving: ask again")
            self._insert(work)
            self._wake.notify()
        return work

    def _insert(self, work: Job | Task) -> None:
        """Put work at the end of the queue, or before those at its end that let others go first."""
        place, queue = len(self._queue), list(self._queue)
        if not _is_patient(work):
            place = len(queue)
            while place and _is_patient(queue[place - 1]):
                place -= 1
        self._queue.insert(place, work)

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            # Started before the first model is loaded, so that both are ready at the same time.
            self._renderer = TemplateRenderer()
            # Loading is a first measure of what the machine has to spare.
            self._controller.update()
            while True:
                if not (self._queue or self._running.jobs):
                    self._rest()
                if self._closing:
                    break
                self._admit()
                if self._running.jobs:
                    self._step()
        finally:
            self._closing = True
            self._end_all(EngineFailed("the engine was stopped: ask again"))
            if self._resident and self._saver:
                self._saver.idle.set()
                self._resident.saved.wait_until_known(_LAST_SAVING_S)
            self._unload()
            if self._renderer:
                self._renderer.close()
            if self._saver:
                self._saver.close(_LAST_SAVING_S)

    def _rest(self) -> None:
        """Wait for something to do. After a while, what was read is saved, a piece at a time."""
        wait_s: float | None = _IDLE_S
        is_planned = is_settled = False
        while True:
            with self._wake:
                if not (self._queue or self._closing):
                    self._wake.wait(wait_s)
                if self._queue or self._closing:
                    break
            resident = self._resident
            if not self._saver or not resident or not resident.has_context:
                wait_s = None
                continue
            if not is_planned:
                self._saver.idle.set()
                if is_planned := not resident.saved.is_waiting:
                    resident.saved.plan(resident.cache.sequences)
            elif resident.saved.wait_s == 0:
                resident.saved.step()
            elif resident.saved.wait_s is None and not is_settled and self._saver.is_empty:
                resident.compact()
                is_settled = True
            wait_s = resident.saved.wait_s if is_planned else _IDLE_S
            if wait_s is None and not is_settled:
                wait_s = _SETTLING_S  # the last piece is still being written
        if self._saver:
            self._saver.idle.clear()

    def _end_all(self, error: LocalchatError) -> None:
        self._running.fail_all(error)
        for work in list(self._queue):
            work.fail(error)
        self._queue.clear()

    def _unload(self, saving_s: float = _LAST_SAVING_S) -> None:
        if self._resident:
            resident, self._resident = self._resident, None
            resident.close(saving_s)

    def _admit(self) -> None:
        """Let in whoever is first in the queue, as long as there is room; nobody passes who would take another's."""
        at, until = 0, time.monotonic() + _PREPARING_S
        while at < len(self._queue):
            if self._running.jobs and time.monotonic() > until:
                return
            work = self._queue[at]
            if work.cancelled or (isinstance(work, Task) and work.future.cancelled()):
                self._queue.remove(work)
                self._drop(work)
                continue
            try:
                self._at_the_door = work
                turn = self._let_in(work)
            except LocalchatError as error:
                self._fail(work, error)
            except Exception as error:  # one failing request fails alone, whatever it was
                traceback.print_exc(file=sys.stderr)
                self._fail(
                    work, LocalchatError(f"the engine stumbled over this request ({type(error).__name__}: {error})")
                )
            else:
                # Others may have come in before it in the meantime.
                if turn is _Turn.BEGUN:
                    self._queue.remove(work)
                    continue
                at = self._queue.index(work) + 1
                # More could not be let in together, so that more need not be prepared yet.
                if turn is _Turn.WAITS or (self._resident and at >= self._resident.context.sequences):
                    break
        for waiting in list(self._queue):
            if isinstance(waiting, Job):
                waiting.progress("queued", 0, 0)

    def _drop(self, work: Job | Task) -> None:
        if isinstance(work, Job):
            work.abandon()
        else:
            work.future.cancel()

    def _fail(self, work: Job | Task, error: LocalchatError) -> None:
        self._queue.remove(work)
        if self._resident and not self._resident.model.is_loaded:
            self._unload()
        if isinstance(work, Job) and work.has_answered and self._resident and self._resident.has_context:
            # It stepped aside for a larger window that memory does not allow: what it said stands.
            work.finish("length")
        else:
            work.fail(error)

    def _let_in(self, work: Job | Task) -> _Turn:
        """Begin with one piece of work, unless it has to wait for others."""
        if work.spec is _NO_MODEL:
            if self._running.jobs:
                return _Turn.WAITS
            self._unload()
            return _Turn.BEGUN
        wish = work.wish if isinstance(work, Task) else _wish_of(work)
        ceiling = wish.max_ram or self._max_ram
        resident = self._resident
        if (
            not resident
            or not resident.spec.is_same(work.spec)
            or not resident.has_layers_as(wish.gpu_layers)
            or not resident.is_planned_for(ceiling)
        ):
            if self._running.jobs:
                return _Turn.WAITS
            self._load(work, wish)
        resident = self._resident
        assert resident
        resident.put_under(ceiling)
        if resident.exceeds_ceiling:
            if self._running.jobs:
                return _Turn.WAITS
            resident.resize(resident.most_context)
        if resident.crowded:  # all have stepped aside
            resident.make_room()
        if isinstance(work, Task):
            wanted = wish.context or self._context
            if wanted:
                wanted = min(wanted, resident.most_context)
            if wanted and not resident.holds(wanted):
                if self._running.jobs:
                    return _Turn.WAITS
                resident.resize(wanted)
            elif not resident.has_context:
                resident.resize(resident.starting_context(wanted))
            work.finish(work.run(resident))
            return _Turn.BEGUN
        if not work.prompt:
            self._seats.prepare(work, resident)
        if self._running.jobs and self._shared.has_to_wait(work, self._running.jobs, resident.cache):
            return _Turn.LETS_PASS
        if not self._seats.take(work, resident):
            return _Turn.WAITS
        self._somebody_came = True
        return _Turn.BEGUN

    def _load(self, work: Job | Task, wish: Wish) -> None:
        self._unload()
        assert self._renderer
        layers = self._gpu_layers if wish.gpu_layers is None else wish.gpu_layers
        wish = Wish(wish.context or self._context, layers, wish.max_ram or self._max_ram)
        self._resident = Resident(
            work.spec, self._renderer, self._controller.threads, self._watch_loading, wish, self._saver
        )
        self._running.forget_speed(work.spec.tuning)
        self._seats.forget()

    def _watch_loading(self, fraction: float) -> bool:
        """Tell all who wait for these weights; False once the one they are loaded for has gone."""
        work = self._at_the_door
        assert work
        if fraction <= 0:
            self._load_began = time.monotonic()
        passed_ms = (time.monotonic() - self._load_began) * 1000
        eta_ms = passed_ms / fraction - passed_ms if fraction > 0 else None
        for waiting in list(self._queue):
            if isinstance(waiting, Job) and waiting.spec.is_same(work.spec):
                waiting.progress("loading", fraction, 1.0, eta_ms)
        return not (work.cancelled or self._closing)

    def _step(self) -> None:
        assert self._resident
        try:
            if self._somebody_came:
                self._somebody_came = False
                self._resident.forget_recoverable([work.tokens for work in list(self._queue) if isinstance(work, Job)])
            # Those who stepped aside were let in before all who wait.
            self._queue.extendleft(self._running.step(self._resident))
            self._resident.saved.read_rate = self._running.read_rate or self._resident.saved.read_rate
        except Exception as error:  # nobody knows what state the context is in: end what runs, and load anew
            traceback.print_exc(file=sys.stderr)
            self._running.fail_all(LocalchatError(f"the engine stumbled ({type(error).__name__}: {error}): ask again"))
            self._unload(saving_s=0)


def _is_patient(work: Job | Task) -> bool:
    """Whether it lets others go first: who has begun to answer, and stepped aside, has waited long enough."""
    return isinstance(work, Job) and work.is_patient and not work.has_answered


def _wish_of(job: Job) -> Wish:
    extras = job.request.localchat or Extras()
    return Wish(extras.context, extras.gpu_layers, extras.max_ram)
