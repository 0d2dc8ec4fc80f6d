"""The model that is in memory, with its prompt builder, its context window and what that remembers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from localchat.engine.context import SAFETY_BYTES, Context
from localchat.engine.job import ModelSpec
from localchat.engine.model import Model
from localchat.engine.prefix_cache import PrefixCache
from localchat.engine.prompt import PromptBuilder
from localchat.engine.templates import TemplateRenderer
from localchat.errors import DoesNotFit, LocalchatError
from localchat.hardware import available_memory
from localchat.protocol import LoadedModel

_STARTING_CONTEXT = 4096
"""The window a model begins with, in tokens; it grows when a conversation needs more and memory allows."""

_SMALLEST_CONTEXT = 256  # llama.cpp's own granularity


class Resident:
    """A loaded model at work; all but `abort` and `describe` belong to the engine's thread."""

    clock = staticmethod(time.perf_counter)

    def __init__(
        self, spec: ModelSpec, renderer: TemplateRenderer, threads: int, on_progress: Callable[[float], bool]
    ) -> None:
        self.spec = spec
        self.model = Model(spec.path, on_progress)
        self._threads = threads
        self._context: Context | None = None
        self.cache: PrefixCache
        try:
            self.prompts = PromptBuilder(self.model, renderer)
        except BaseException:
            self.model.close()
            raise
        self.loaded = time.monotonic()

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
        before, saved = self._context.n_ctx, None
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
                self._open(before)
            raise
        finally:
            if saved and self._context:
                self.cache.adopt(*saved)

    def _open(self, n_ctx: int) -> None:
        self._context = Context(self.model, n_ctx, self._threads)
        self.cache = PrefixCache(self._context, n_swa=self.model.n_swa, is_recurrent=self.model.is_recurrent)

    def _spare_after(self, n_ctx: int) -> int:
        """Bytes that stay free, now and after growing to `n_ctx`. Raises `DoesNotFit` where there are none."""
        more = max(0, self.model.kv_bytes_estimate(n_ctx) - self.model.kv_bytes_estimate(self.n_ctx)) + SAFETY_BYTES
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
        )
