"""One question to an engine and its answer, on a thread of its own: the only module of the screen that asks an engine.

Nothing here knows Textual. The screen looks in with `poll` a few dozen times a second, which is what gathers tokens:
however fast they come, the screen is drawn at its own pace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.client.stream import ChatStream
from localchat.errors import EngineFailed, Interrupted, LocalchatError
from localchat.protocol import ChatRequest, Chunk
from localchat.safe_text import safe_line

Engine: TypeAlias = LocalEngine | RemoteEngine
Prepare: TypeAlias = Callable[[Callable[[str], None]], None]
"""A blocking call that makes sure there is a model; it reports on its way in safe lines of text."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """News from the preparation: how far it is."""

    note: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The preparation is over, and the engine is being asked."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more will come; `error` says why if that was too early. `unsent`: the engine was never asked."""

    error: LocalchatError | None = None
    unsent: bool = False


Event: TypeAlias = Chunk | Preparing | Prepared | Ended


class Preparation:
    """What has to be done once before the first question: runs until it has succeeded, never twice at a time."""

    def __init__(self, prepare: Prepare | None) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()

    def run(self, on_progress: Callable[[str], None]) -> None:
        """Do it, unless it is done. Raises what it raises; an `on_progress` that raises breaks it off."""
        with self._lock:
            if self._prepare:
                self._prepare(on_progress)
                self._prepare = None

    @property
    def needed(self) -> bool:
        """Whether it still has to run."""
        return self._prepare is not None


class Exchange:
    """A request under way. `poll` and `stop` are for the screen; the rest happens on the exchange's own thread."""

    def __init__(self, engine: Engine, request: ChatRequest, preparation: Preparation) -> None:
        self._engine = engine
        self._request = request
        self._preparation = preparation
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._stream: ChatStream | None = None
        self._stopped = False
        self._lock = threading.Lock()
        # A daemon: leaving the chat must not wait for an engine that is slow to answer.
        threading.Thread(target=self._run, name="exchange", daemon=True).start()

    def poll(self) -> list[Event]:
        """What has come since the last look; `Ended` is the last event of all."""
        events: list[Event] = []
        with suppress(Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def stop(self) -> None:
        """Stop the engine's work; what it still says is not wanted."""
        with self._lock:
            self._stopped = True
            stream = self._stream
        if stream:
            stream.close()

    def _run(self) -> None:
        prepared = False
        try:
            if self._preparation.needed:
                self._preparation.run(self._on_progress)
                self._events.put(Prepared())
            prepared = True
            if self._begin():
                assert self._stream is not None
                for chunk in self._stream:
                    self._events.put(chunk)
            self._events.put(Ended())
        except LocalchatError as error:
            self._events.put(Ended(error, unsent=not prepared))
        except Exception as error:
            # The thread's last line of defence: whatever it was, the person gets a sentence and not a silent screen.
            said = safe_line(f"{type(error).__name__}: {error}")
            self._events.put(Ended(EngineFailed(f"something unexpected happened ({said}): ask again"), not prepared))

    def _begin(self) -> bool:
        """Ask the engine; False where the person stopped before it answered."""
        if self._stopped:
            return False
        stream = self._engine.chat(self._request)
        with self._lock:
            self._stream = stream
            stopped = self._stopped
        if stopped:
            stream.close()
        return not stopped

    def _on_progress(self, note: str) -> None:
        if self._stopped:
            raise Interrupted("stopped")
        self._events.put(Preparing(note))


def ask_who_answers(engine: Engine, tell: Callable[[str], object]) -> None:
    """Find out, on a thread, which model answers where none was named; `tell` is called (there) if one is known."""

    def find_out() -> None:
        with suppress(LocalchatError):
            if isinstance(engine, RemoteEngine):
                names = engine.models()
                name = names[0] if names else ""
            else:
                status = engine.status()
                name = status.model.name if status and status.model else ""
            if name:
                tell(name)

    threading.Thread(target=find_out, name="who-answers", daemon=True).start()
