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

import msgspec

from localchat.chats.records import ChatSettings
from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.client.stream import ChatStream
from localchat.errors import EngineFailed, Interrupted, LocalchatError, NeedsVerification, NoSuchModel
from localchat.protocol import ChatRequest, Chunk, Extras, Status
from localchat.safe_text import safe_line

Engine: TypeAlias = LocalEngine | RemoteEngine
Prepare: TypeAlias = Callable[[str, Callable[[str], None]], None]
"""A blocking call that makes sure that a model (by its name, "" for the default) is here and verified; it reports on
its way in lines of text, and what its report raises breaks it off."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """News from the preparation: how far it is."""

    note: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The preparation is over, and the engine is being asked."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more will come; `error` says why if that was too early. `unsent`: the engine took nothing of it."""

    error: LocalchatError | None = None
    unsent: bool = False


Event: TypeAlias = Chunk | Preparing | Prepared | Ended


class Exchange:
    """A request under way. `poll` and `stop` are for the screen; the rest happens on the exchange's own thread.

    Where this machine has no model yet, or has not verified it, `prepare` does that first.
    """

    def __init__(self, engine: Engine, request: ChatRequest, prepare: Prepare | None = None) -> None:
        self._engine = engine
        self._request = request
        self._prepare = prepare
        self._preparing = False
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._stream: ChatStream | None = None
        self._stopped = False
        self._lock = threading.Lock()
        # A daemon: leaving the chat must not wait for an engine that is slow to answer.
        threading.Thread(target=self._run, name="exchange", daemon=True).start()

    @property
    def is_preparing(self) -> bool:
        """Whether a model is being fetched or verified: the engine has not taken the message yet."""
        return self._preparing

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
        try:
            if self._begin():
                assert self._stream is not None
                for chunk in self._stream:
                    self._events.put(chunk)
            self._events.put(Ended())
        except LocalchatError as error:
            self._events.put(Ended(error, unsent=self._preparing))
        except Exception as error:
            # The thread's last line of defence: whatever it was, the person gets a sentence and not a silent screen.
            said = safe_line(f"{type(error).__name__}: {error}")
            failure = EngineFailed(f"something unexpected happened ({said}): ask again")
            self._events.put(Ended(failure, unsent=self._preparing))

    def _begin(self) -> bool:
        """Ask the engine; False where the person stopped before it answered."""
        if self._stopped:
            return False
        stream = self._ask()
        with self._lock:
            self._stream = stream
            stopped = self._stopped
        if stopped:
            stream.close()
        return not stopped

    def _ask(self) -> ChatStream:
        if not self._prepare:
            return self._engine.chat(self._request)
        extras = self._request.localchat or Extras()
        wary = msgspec.structs.replace(self._request, localchat=msgspec.structs.replace(extras, verified_only=True))
        try:
            return self._engine.chat(wary)
        except (NoSuchModel, NeedsVerification):
            self._preparing = True
            self._prepare(self._request.model, self._on_progress)
            self._preparing = False
            self._events.put(Prepared())
            return self._engine.chat(self._request)

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


def warm_up(engine: Engine, settings: ChatSettings, tell: Callable[[Status | LocalchatError], object]) -> None:
    """Have this machine's engine load a model, on a thread, before the first question; `tell` hears how that went.

    A file that has to be hashed first is left for the question, where the person sees how far that is.
    """

    def load() -> None:
        if isinstance(engine, RemoteEngine):
            return
        try:
            tell(engine.load(settings.model, settings.context, settings.gpu_layers, verified_only=True))
        except LocalchatError as error:
            tell(error)

    threading.Thread(target=load, name="warm-up", daemon=True).start()


def look_at_engine(engine: Engine, tell: Callable[[Status], object]) -> None:
    """Ask this machine's engine, on a thread, what it holds."""

    def ask() -> None:
        with suppress(LocalchatError):
            if isinstance(engine, LocalEngine) and (status := engine.status()):
                tell(status)

    threading.Thread(target=ask, name="engine-status", daemon=True).start()
