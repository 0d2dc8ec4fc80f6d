"""What else than answering the engine's thread is asked to do with a model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from localchat.engine.job import ModelSpec
from localchat.engine.resident import Resident, Wish
from localchat.errors import LocalchatError


class Task:
    """Something to do with a loaded model on the engine's thread: count tokens, or only have it loaded."""

    def __init__(
        self,
        spec: ModelSpec,
        context: int | None,
        run: Callable[[Resident], object],
        gpu_layers: int | None = None,
        max_ram: int | None = None,
    ) -> None:
        self.spec = spec
        self.wish = Wish(context, gpu_layers, max_ram)
        self.run = run
        self.future: Future[object] = Future()
        self.cancelled = False

    def finish(self, result: object) -> None:
        """End with a result, unless whoever waited has cancelled the future in the meantime."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: LocalchatError) -> None:
        """End with an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
