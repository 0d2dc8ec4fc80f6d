"""The model that is in memory, with its prompt builder, its context window and what that remembers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from localchat.engine.context import SAFETY_BYTES, Context
from localchat.engine.devices import devices
from localchat.engine.job import ModelSpec
from localchat.engine.model import Model
from localchat.engine.offload import DeviceFull, Offload, plan
from localchat.engine.prefix_cache import PrefixCache
from localchat.engine.prompt import PromptBuilder
from localchat.engine.templates import TemplateRenderer
from localchat.errors import DoesNotFit, LocalchatError
from localchat.hardware import available_memory
from localchat.protocol import DeviceUse, LoadedModel

_STARTING_CONTEXT = 4096
"""The window a model begins with, in tokens; it grows when a conversation needs more and memory allows."""

_PLANNED_CONTEXT = 2 * _STARTING_CONTEXT
"""The window for which room is left on a GPU, so that the first growth moves no layers."""

_SMALLEST_CONTEXT = 256  # llama.cpp's own granularity


@dataclass(frozen=True)
class Wish:
    """What a person asked for by hand: the window in tokens, and how many layers go to GPUs; None: what fits."""

    context: int | None = None
    gpu_layers: int | None = None


class Resident:
    """A loaded model at work; all but `abort` and `describe` belong to the engine's thread.

    `on_progress` is asked whenever weights are loaded, also when they move later to make room on a GPU.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        spec: ModelSpec,
        renderer: TemplateRenderer,
        threads: int,
        on_progress: Callable[[float], bool],
        wish: Wish = Wish(),
    ) -> None:
        self.spec = spec
        self.wish = wish
        self._on_progress = on_progress
        self.model = self._loaded(plan(spec.weights, wish.gpu_layers, wish.context or _PLANNED_CONTEXT))
        self.crowded = ""
        """Why a GPU had no room for a computation; `make_room` answers it."""
        self._threads = threads
        self._context: Context | None = None
        self.cache: PrefixCache
        try:
            self.prompts = PromptBuilder(self.model, renderer)
        except BaseException:
            self.model.close()
            raise
        self.loaded = time.monotonic()

    def _loaded(self, offload: Offload) -> Model:
        """The model, with fewer layers on the GPU than planned where it has less room than it said."""
        while True:
            try:
                return Model(self.spec.path, self._on_progress, offload)
            except DeviceFull as error:
                offload = offload.fewer(self.wish.context or _PLANNED_CONTEXT, str(error))

    def close(self) -> None:
        """Give all memory back."""
        if self._context:
            self._context.close()
            self._context = None
        self.model.close()

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

    def lies_as(self, gpu_layers: int | None) -> bool:
        """Whether the weights lie as a request wants them; what came of a wish that could not be met counts as met."""
        return gpu_layers in (None, self.wish.gpu_layers) or not devices()

    def starting_context(self, wanted: int | None) -> int:
        """The size of the first window where nothing is known of the conversation."""
        return min(wanted or _STARTING_CONTEXT, self.model.n_ctx_train)

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
        n_ctx = max(n_ctx, _SMALLEST_CONTEXT)
        if not self._context:
            self._open(n_ctx)
            return
        before, offload, saved = self._context.n_ctx, self.model.offload, None
        spare = self._spare_after(n_ctx)
        kept = self.cache.closest(list(keep))
        # For a moment the copy lies beside the old window, then beside the new one.
        if kept and len(kept.tokens) < n_ctx and self._context.state_bytes(kept.id) <= spare:
            saved = (kept.tokens, self._context.save(kept.id))
        self._context.close()
        self._context = None
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

    def make_room(self) -> None:
        """Take layers from the GPU that had no room to compute. Nothing may be running.

        The conversation that was used last is kept. Raises `DoesNotFit` where the machine's memory cannot take them.
        """
        why, self.crowded = self.crowded, ""
        n_ctx, kept, saved = self.n_ctx, self.cache.closest([]), None
        if kept and self.context.state_bytes(kept.id) <= available_memory():
            saved = (kept.tokens, self.context.save(kept.id))
        self.context.close()
        self._context = None
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
        self.cache = PrefixCache(self._context, n_swa=self.model.n_swa, is_recurrent=self.model.is_recurrent)

    def _move(self, offload: Offload) -> None:
        """Have the weights where `offload` says, or with fewer layers on the GPU where that has no room."""
        while not self.model.is_loaded or self.model.offload != offload:
            try:
                self.model.load(offload, self._on_progress)
            except DeviceFull as error:
                offload = offload.fewer(self.wish.context or _PLANNED_CONTEXT, str(error))

    def _spare_after(self, n_ctx: int) -> int:
        """Bytes that stay free, now and after growing to `n_ctx`. Raises `DoesNotFit` where there are none."""
        growth = max(0, self.model.kv_bytes_estimate(n_ctx) - self.model.kv_bytes_estimate(self.n_ctx))
        more = int(growth * self.model.offload.kept_share) + SAFETY_BYTES
        room = available_memory()
        if more > room and n_ctx > self.n_ctx:
            raise DoesNotFit(
                f"this conversation needs a context window of {n_ctx} tokens, {more / (1 << 30):.1f} GiB more, and "
                f"{room / (1 << 30):.1f} GiB are free: close other programs, or start a new chat"
            )
        return room - more

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
