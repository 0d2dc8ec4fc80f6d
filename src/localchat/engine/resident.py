"""The model that is in memory, with its prompt builder, its context window and what that remembers."""

from __future__ import annotations

import time
from collections.abc import Callable

from localchat.engine.context import Context
from localchat.engine.job import ModelSpec
from localchat.engine.model import Model
from localchat.engine.prefix_cache import PrefixCache
from localchat.engine.prompt import PromptBuilder
from localchat.engine.templates import TemplateRenderer
from localchat.errors import DoesNotFit
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

    def resize(self, n_ctx: int) -> None:
        """Make the window anew with `n_ctx` tokens; the latest conversation moves into it. Nothing may be running.

        Raises `DoesNotFit` and leaves the present window as it is where memory does not allow a larger one.
        """
        saved = None
        if self._context:
            self._check_growth(n_ctx)
            latest = self.cache.latest()
            if latest and len(latest.tokens) < n_ctx:
                saved = (latest.tokens, self._context.save(latest.id))
            self._context.close()
            self._context = None
        self._context = Context(self.model, max(n_ctx, _SMALLEST_CONTEXT), self._threads)
        self.cache = PrefixCache(self._context, n_swa=self.model.n_swa, is_recurrent=self.model.is_recurrent)
        if saved:
            self.cache.adopt(*saved)

    def _check_growth(self, n_ctx: int) -> None:
        from localchat.hardware import available_memory

        more = self.model.kv_bytes_estimate(n_ctx) - self.model.kv_bytes_estimate(self.n_ctx)
        room = available_memory()
        if more > room:
            raise DoesNotFit(
                f"this conversation needs a context window of {n_ctx} tokens, {more / (1 << 30):.1f} GiB more, and "
                f"{room / (1 << 30):.1f} GiB are free: close other programs, or start a new chat"
            )

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
