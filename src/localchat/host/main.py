"""A host from start to end: its lock, its engine, its server.

The order matters to whoever waits for a first answer: the engine begins to load before the HTTP stack is imported.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localchat import __version__
from localchat.engine import llama
from localchat.engine.scheduler import Engine
from localchat.engine.threads import most_threads
from localchat.errors import EngineFailed, LocalchatError
from localchat.locks import FileLock
from localchat.paths import HOST_LOG_MARK, paths, private_folder
from localchat.settings import settings

_PREDECESSOR_S = 10.0
"""How long to wait for a host that is just leaving."""


@dataclass(frozen=True)
class HostOptions:
    """How a host runs. `idle_s` None: it stays until it is told to leave.

    `on_ready` gets the address it listens at and, where it listens on TCP, the token that opens it.
    """

    idle_s: float | None = None
    port: int | None = None
    preload: str | None = None
    context: int | None = None
    on_demand: bool = False
    on_ready: Callable[[str, str | None], None] = lambda address, token: None


def run_host(options: HostOptions) -> None:
    """Serve until idle or stopped. Raises `EngineFailed` where another host is alive or the address is taken."""
    faulthandler.enable()
    os.umask(0o077)
    with suppress(OSError):  # a full disk costs the log, not the answer
        print(
            f"{HOST_LOG_MARK} {__version__}, pid {os.getpid()}, {time.strftime('%F %T')}", file=sys.stderr, flush=True
        )
    private_folder(paths().runtime, shared_parent=True)
    lock = FileLock(paths().host_lock)
    deadline = time.monotonic() + _PREDECESSOR_S
    while not lock.acquire(blocking=False):
        if time.monotonic() > deadline or not (options.on_demand or _is_leaving(paths().socket)):
            raise EngineFailed("an engine is already running: `localchat status` shows it, `localchat stop` ends it")
        time.sleep(0.02)
    try:
        # On this thread, before another one competes with it for the interpreter: loading needs no interpreter.
        llama.api()
        engine = Engine(most_threads(), options.context or settings().context)
        try:
            if options.preload is not None:
                _preload(engine, options)
            from localchat.host.server import serve

            serve(engine, options, lock)
        finally:
            engine.close()
    finally:
        lock.release()


def _is_leaving(socket_path: Path) -> bool:
    """Whether the host that holds the lock listens no more, or not yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(socket_path)) != 0


def _preload(engine: Engine, options: HostOptions) -> None:
    from localchat.engine.job import ModelSpec
    from localchat.models import store

    # What is wrong with the model is said to the request that needs it.
    with suppress(LocalchatError):
        file = store.resolve(options.preload or None)
        engine.load(ModelSpec(file.name, file.path, file.sampling), options.context)
