"""The model that is in memory, with its prompt builder, its context window and what that remembers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from localchat.engine import attention, ceiling
from localchat.engine.ceiling import SMALLEST_CONTEXT
from localchat.engine.context import SAFETY_BYTES, Context
from localchat.engine.devices import devices
from localchat.engine.job import ModelSpec
from localchat.engine.model import Model
from localchat.engine.offload import DeviceFull, Offload, plan
from localchat.engine.prefix_cache import PrefixCache
from localchat.engine.prefix_saver import MOST_WAITING_BYTES, PrefixSaver
from localchat.engine.prompt import PromptBuilder
from localchat.engine.saved_prefixes import SavedPrefixes
from localchat.engine.templates import TemplateRenderer
from localchat.errors import DoesNotFit, EngineFailed, LocalchatError
from localchat.hardware import available_memory
from localchat.protocol import DeviceUse, LoadedModel
from localchat.tuning import MICRO_BATCH, scores_bytes

_STARTING_CONTEXT = 4096
"""The window a model begins with, in tokens; it grows when a conversation needs more and memory allows."""

_PLANNED_CONTEXT = 2 * _STARTING_CONTEXT
"""The window for which room is left on a GPU, so that the first growth moves no layers."""

_GROW_AGAIN_S = 10.0
"""For so long no larger window is tried after memory did not allow one, although it seemed to: each try costs all."""

_SAVING_S = 1.0
"""How long what a new window would lose may be saved, while somebody waits; what was idle is saved already."""


@dataclass(frozen=True)
class Wish:
    """What a person asked for by hand: the window in tokens, how many layers go to GPUs, and the most memory that the
    engine may take, in bytes; None: what fits.
    """

    context: int | None = None
    gpu_layers: int | None = None
    max_ram: int | None = None


class Resident:
    """A loaded model at work; all but `abort` and `describe` belong to the engine's thread.

    `on_progress` is asked whenever weights are loaded, also when they move later to make room on a GPU. `saver` keeps
    what was read on disk.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        spec: ModelSpec,
        renderer: TemplateRenderer,
        threads: int,
        on_progress: Callable[[float], bool],
        wish: Wish = Wish(),
        saver: PrefixSaver | None = None,
    ) -> None:
        self.spec = spec
        self.wish = wish
        self._on_progress = on_progress
        self._renderer = renderer
        self._plan: ceiling.Plan | None = None
        self._ceiling = wish.max_ram
        self.model = self._loaded(plan(spec.weights, wish.gpu_layers, wish.context or _PLANNED_CONTEXT))
        self.crowded = ""
        """Why a GPU had no room for a computation; `make_room` answers it."""
        self._threads = threads
        self._context: Context | None = None
        self._saver = saver
        self._grow_again = 0.0
        self.cache: PrefixCache
        self.saved: SavedPrefixes
        try:
            self.prompts = PromptBuilder(self.model, renderer)
        except BaseException:
            self.model.close()
            raise
        self.loaded = time.monotonic()

    def _loaded(self, offload: Offload) -> Model:
        """The model, with fewer layers on the GPU than planned where it has less room than it said."""
        while True:
            self._make_plan(offload)
            try:
                model = Model(self.spec.path, self._on_progress, offload)
            except DeviceFull as error:
                offload = offload.fewer(self.wish.context or _PLANNED_CONTEXT, str(error))
                continue
            # What was verified was another file, and what is saved would be saved in its name.
            if not self.spec.is_current():
                model.close()
                raise EngineFailed(f"the file of {self.spec.name} was replaced meanwhile: ask again")
            return model

    def _make_plan(self, offload: Offload) -> None:
        """See that a model which lies like this stays under the ceiling. No weights may be in memory."""
        if most := self.wish.max_ram:
            others = self._renderer.memory
            self._plan = ceiling.plan(self.spec.path, self.spec.name, self.spec.tuning, offload, most, others)

    def close(self, saving_s: float = 0.0) -> None:
        """Give all memory back, after saving what was read for at most so long."""
        self._close_context(saving_s)
        self.model.close()

    def _close_context(self, saving_s: float) -> None:
        if self._context:
            if saving_s:
                self.saved.flush(self.cache.sequences, saving_s)
            self._context.close()
            self._context = None

    @property
    def context(self) -> Context:
        """The window; `resize` makes the first."""
        assert self._context
        return self._context

    @property
    def has_context(self) -> bool:
        """Whether there is a window yet."""
        return self._context is not None

    @property
    def n_ctx(self) -> int:
        """Tokens that the window holds."""
        return self.context.n_ctx

    def holds(self, n_ctx: int) -> bool:
        """Whether the window is at least `n_ctx` tokens large."""
        return self._context is not None and self._context.n_ctx >= n_ctx

    def has_layers_as(self, gpu_layers: int | None) -> bool:
        """Whether the weights lie as a request wants them; what came of a wish that could not be met counts as met."""
        return gpu_layers in (None, self.wish.gpu_layers) or not devices()

    def is_planned_for(self, most: int | None) -> bool:
        """Whether the model was loaded with a ceiling of `most` bytes in mind; without one any will do."""
        return most is None or (self._plan is not None and self._plan.most == most)

    def put_under(self, most: int | None) -> None:
        """From now on the ceiling is `most` bytes, one that is planned for."""
        self._ceiling = most
        self._limit_what_is_kept()

    @property
    def exceeds_ceiling(self) -> bool:
        """Whether the window is larger than the ceiling allows."""
        return self._context is not None and self._context.n_ctx > max(self.most_context, SMALLEST_CONTEXT)

    @property
    def most_context(self) -> int:
        """The largest window, in tokens, for which the model was trained and that the ceiling allows."""
        trained = self.model.n_ctx_train
        return min(trained, self._plan.largest) if self._ceiling and self._plan else trained

    @property
    def ceiling(self) -> int | None:
        """The most memory, in bytes, that everything may take; None: what there is."""
        return self._ceiling

    @property
    def said_ceiling(self) -> str:
        """The ceiling for people."""
        return ceiling.in_words(self._ceiling or 0)

    @property
    def spare(self) -> int:
        """Bytes that may be taken for copies, for a moment: of what is free, and of what the ceiling leaves."""
        context = self._context
        return self._spare_beside(context.processor_bytes if context else 0)

    def _spare_beside(self, window: int) -> int:
        """The same beside a window of so many bytes."""
        free = available_memory()
        if not self._ceiling or not self._plan:
            return free
        held = self.cache.checkpoints.bytes_held if self._context else 0
        return min(free, max(0, self._plan.spare(window) - held))

    def _limit_what_is_kept(self) -> None:
        """Checkpoints take half of what the ceiling leaves; of the rest, half is for copies on their way to disk."""
        if self._saver:
            self._saver.most_waiting = MOST_WAITING_BYTES
        if not self._context or not self._ceiling or not self._plan:
            return
        spare = self._plan.spare(self._context.processor_bytes)
        checkpoints = self.cache.checkpoints
        checkpoints.limit = min(checkpoints.limit, spare // 2)
        checkpoints.keep_within(checkpoints.limit)
        if self._saver:
            self._saver.most_waiting = max(1, min(MOST_WAITING_BYTES, spare // 4))

    def starting_context(self, wanted: int | None) -> int:
        """The size of the first window where nothing is known of the conversation."""
        return min(wanted or _STARTING_CONTEXT, self.most_context)

    def grown_context(self, need: int, limit: int) -> int:
        """The window for a conversation of `need` tokens: in doublings, so that it is seldom made anew."""
        size = self._context.n_ctx if self._context else self.starting_context(None)
        while size < need:
            size *= 2
        return min(size, limit)

    def resize(self, n_ctx: int, keep: Sequence[int] = ()) -> None:
        """Make the window anew with `n_ctx` tokens. Nothing may be running.

        The conversation that has most in common with `keep` moves into it, where memory allows that. Raises
        `DoesNotFit` and leaves the present window as it is where memory does not allow a larger one.
        """
        n_ctx = max(min(n_ctx, self.most_context), SMALLEST_CONTEXT)
        if not self._context:
            self._open(n_ctx)
            return
        before, offload, saved = self._context.n_ctx, self.model.offload, None
        spare = self._spare_after(n_ctx)
        kept = self.cache.closest(list(keep))
        # For a moment the copy lies beside the old window, then beside the new one.
        fits = kept and len(kept.tokens) < n_ctx and not self._means_other_numbers(n_ctx)
        if kept and fits and self._context.state_bytes(kept.id) <= spare:
            saved = (kept, self._context.save(kept.id))
        self._close_context(_SAVING_S)
        try:
            self._open(n_ctx)
        except LocalchatError:
            # What was half said can then end in the old window.
            with suppress(LocalchatError):
                self._move(offload)
                self._open(before)
            raise
        finally:
            if saved and self._context:
                self.cache.adopt(*saved)

    def grow(self, n_ctx: int) -> bool:
        """Make the window larger while requests run: all that they have read moves into it, shared as it was.

        False, and nothing happens, where memory does not allow that beside a copy of what is there.
        """
        context, cache = self.context, self.cache
        n_ctx = min(n_ctx, self.most_context)
        if n_ctx <= context.n_ctx or time.monotonic() < self._grow_again or self._means_other_numbers(n_ctx):
            return False
        before, offload = context.n_ctx, self.model.offload
        try:
            spare = self._spare_after(n_ctx)
        except DoesNotFit:
            return False
        if context.all_bytes() > spare:
            return False
        state = context.save_all()
        self._close_context(0.0)
        try:
            self._open(n_ctx)
        except LocalchatError:
            self._grow_again = time.monotonic() + _GROW_AGAIN_S
            self._move(offload)
            self._open(before)
        # What cannot be brought back is read again: each request knows all its tokens.
        self.cache.inherit(cache, holds=self.context.restore_all(state))
        return self.n_ctx > before

    def _means_other_numbers(self, n_ctx: int) -> bool:
        """Whether a window of `n_ctx` tokens keeps other numbers for the same tokens than the present one.

        Models with two sets of rope factors take the long one for windows beyond their original one, and values lie
        otherwise without flash attention.
        """
        made, new = self.context.tuning, attention.chosen(self.model, n_ctx, self.spec.tuning)
        if made.flash_attention != new.flash_attention:
            return True
        return self.model.is_long(self.n_ctx) != self.model.is_long(n_ctx)

    def compact(self) -> None:
        """All is saved and nothing runs: have only the last conversation in the window, where others would slow it."""
        context = self.context
        if context.tuning.flash_attention is False and context.all_bytes() <= self.spare:
            self.cache.compact(self.saved.has)

    def forget_recoverable(self, wanted: Iterable[list[int]]) -> None:
        """Somebody was let in: conversations that nobody asks for any more shall not slow it, where they would.

        `wanted` are the prompts that wait, as far as they are prepared.
        """
        if self.context.tuning.flash_attention is False:
            self.cache.forget_recoverable(self.saved.has, self.saved.is_cheap, wanted)

    def make_room(self) -> None:
        """Take layers from the GPU that had no room to compute. Nothing may be running.

        The conversation that was used last is kept. Raises `DoesNotFit` where the machine's memory cannot take them.
        """
        why, self.crowded = self.crowded, ""
        n_ctx, kept, saved = self.n_ctx, self.cache.closest([]), None
        if kept and self.context.state_bytes(kept.id) <= self.spare:
            saved = (kept, self.context.save(kept.id))
        self._close_context(_SAVING_S)
        offload = self.model.offload.fewer(n_ctx, why)
        self._move(offload)
        self._open(n_ctx)
        if saved:
            self.cache.adopt(*saved)

    def _open(self, n_ctx: int) -> None:
        """Make the window; where its share of a GPU finds no room there, layers leave it."""
        self._move(self.model.offload)  # where an attempt before this one left nothing loaded
        while not self._context:
            try:
                self._context = Context(self.model, n_ctx, self._threads, self.spec.tuning)
            except DeviceFull as error:
                # Only without the model can be seen how much room there is for it.
                offload, why = self.model.offload, str(error)
                self.model.close()
                self._move(offload.fewer(n_ctx, why))
        before = self.saved if hasattr(self, "saved") else None
        self.saved = SavedPrefixes(self._saver, self.spec, self.model, self._context, before)
        self.cache = PrefixCache(
            self._context,
            n_swa=self.model.n_swa,
            is_recurrent=self.model.is_recurrent,
            saved=self.saved,
        )
        self.saved.room = lambda: self.spare
        self._limit_what_is_kept()

    def _move(self, offload: Offload) -> None:
        """Have the weights where `offload` says, or with fewer layers on the GPU where that has no room."""
        while not self.model.is_loaded or self.model.offload != offload:
            self.model.close()
            self._make_plan(offload)
            try:
                self.model.load(offload, self._on_progress)
            except DeviceFull as error:
                offload = offload.fewer(self.wish.context or _PLANNED_CONTEXT, str(error))

    def _spare_after(self, n_ctx: int) -> int:
        """Bytes that stay free, now and after growing to `n_ctx`. Raises `DoesNotFit` where there are none."""
        growth = max(0, self.model.kv_bytes_estimate(n_ctx) - self.model.kv_bytes_estimate(self.n_ctx))
        more = int(growth * self.model.offload.kept_share) + SAFETY_BYTES
        more += max(0, self._scores_bytes(n_ctx) - self._scores_bytes(self.n_ctx))
        room = available_memory()
        if more > room and n_ctx > self.n_ctx:
            raise DoesNotFit(
                f"this conversation needs a context window of {n_ctx} tokens, {more / (1 << 30):.1f} GiB more, and "
                f"{room / (1 << 30):.1f} GiB are free: close other programs, or start a new chat"
            )
        # Of all that a window takes, the most by far grows with it.
        grown = self.context.processor_bytes * max(1.0, n_ctx / self.n_ctx)
        return min(room - more, self._spare_beside(int(grown)))

    def _scores_bytes(self, n_ctx: int) -> int:
        """What a window of `n_ctx` tokens takes for its table of scores, where it has one."""
        tuning = attention.chosen(self.model, n_ctx, self.spec.tuning)
        if tuning.flash_attention is not False:
            return 0
        return scores_bytes(self.model.heads, n_ctx, min(tuning.micro_batch or MICRO_BATCH, n_ctx))

    def abort(self) -> None:
        """Stop the computation that is going on; from any thread."""
        if context := self._context:
            context.abort()

    def describe(self) -> LoadedModel:
        """What is loaded, for people."""
        context = self._context
        return LoadedModel(
            name=self.spec.name,
            path=str(self.spec.path),
            architecture=self.model.architecture,
            parameters=self.model.parameters,
            file_bytes=self.model.file_bytes,
            context=context.n_ctx if context else 0,
            context_trained=self.model.n_ctx_train,
            kv_bytes=context.buffers.get("KV", 0) if context else 0,
            threads=context.threads if context else self._threads,
            prefill_threads=context.prefill_threads if context else self._threads,
            kept_bytes=self.cache.checkpoints.bytes_held if context and hasattr(self, "cache") else 0,
            layers=self.model.n_layer + 1,
            gpu_layers=self.model.offload.layers,
            devices=[
                DeviceUse(
                    device.name,
                    device.description,
                    self.model.device_bytes.get(device.name, 0)
                    + (context.device_bytes.get(device.name, 0) if context else 0),
                )
                for device in self.model.offload.devices
            ],
        )
