"""A host from start to end: its lock, its engine, its server.

The order matters to whoever waits for a first answer: the engine begins to load before the HTTP stack is imported.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localchat import __version__
from localchat.engine import llama
from localchat.engine.prefix_saver import PrefixSaver
from localchat.engine.scheduler import Engine
from localchat.errors import EngineFailed, LocalchatError, NeedsVerification
from localchat.locks import FileLock
from localchat.machine import compute_threads
from localchat.paths import HOST_LOG_MARK, paths, private_folder
from localchat.settings import max_ram, settings, size_bytes

_OTHER_HOST_S = 30.0
"""How long to wait for a host that is just leaving, or just starting."""


@dataclass(frozen=True)
class HostOptions:
    """How a host runs. `idle_s` None: it stays until it is told to leave.

    `on_ready` gets the address it listens at and, where it listens on TCP, the token that opens it. `on_demand`: for a
    client to which any host will do, also one that somebody else has started in the meantime.
    """

    idle_s: float | None = None
    port: int | None = None
    preload: str | None = None
    context: int | None = None
    gpu_layers: int | None = None
    on_demand: bool = False
    on_ready: Callable[[str, str | None], None] = lambda address, token: None


def run_host(options: HostOptions) -> None:
    """Serve until idle or stopped. Raises `EngineFailed` where another host is alive or the address is taken.

    An on-demand host that finds another one listening is ready at once: the client has what it wants.
    """
    faulthandler.enable()
    threading.excepthook = _end_with_the_engine
    os.umask(0o077)
    with suppress(OSError):  # a full disk costs the log, not the answer
        print(
            f"{HOST_LOG_MARK} {__version__}, pid {os.getpid()}, {time.strftime('%F %T')}", file=sys.stderr, flush=True
        )
    private_folder(paths().runtime, shared_parent=True)
    lock = FileLock(paths().host_lock)
    deadline = time.monotonic() + _OTHER_HOST_S
    while not lock.acquire(blocking=False):
        somebody_listens = _somebody_listens(paths().socket)
        if somebody_listens and options.on_demand:
            options.on_ready(str(paths().socket), None)
            return
        if somebody_listens or time.monotonic() > deadline:
            raise EngineFailed("an engine is already running: `localchat status` shows it, `localchat stop` ends it")
        time.sleep(0.02)
    try:
        # On this thread, before another one competes with it for the interpreter: loading needs no interpreter.
        llama.api()
        gpu_layers = settings().gpu_layers if options.gpu_layers is None else options.gpu_layers
        saver = PrefixSaver(paths().prefixes, size_bytes(settings().prefix_cache))
        engine = Engine(
            compute_threads(),
            options.context or settings().context,
            gpu_layers,
            saver,
            # Who started this one says with each request what holds for it, and others may want something else.
            None if options.on_demand else max_ram(),
            drafts=settings().drafts,
        )
        try:
            if options.preload is not None:
                _preload(engine, options)
            from localchat.host.server import serve

            serve(engine, options, lock)
        finally:
            engine.close()
    finally:
        lock.release()


def _somebody_listens(socket_path: Path) -> bool:
    """Whether the host that holds the lock listens: one that is leaving does no more, one that starts not yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(socket_path)) == 0


def _end_with_the_engine(failure: threading.ExceptHookArgs) -> None:
    """A thread died of something nobody foresaw. A host without its engine's thread would only refuse: it ends."""
    sys.__excepthook__(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    if failure.thread and failure.thread.name == "engine":
        os.kill(os.getpid(), signal.SIGTERM)


def _preload(engine: Engine, options: HostOptions) -> None:
    """Begin to load. To a client, what is wrong with the model is said with its request; to a person, at once."""
    from localchat.host.spec import spec_of

    # Hashing a large file takes minutes, in which nobody would know what the host is doing.
    with suppress(LocalchatError if options.on_demand else NeedsVerification):
        engine.load(spec_of(options.preload or "", may_hash=False), options.context, max_ram=max_ram())
