"""The sockets that the host listens on, and the server behind them, until its life ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from localchat import __version__
from localchat.engine.scheduler import Engine
from localchat.errors import EngineFailed, UsageError
from localchat.host.app import make_app
from localchat.host.guard import Guard
from localchat.host.life import Life
from localchat.locks import FileLock
from localchat.paths import paths

if TYPE_CHECKING:
    from localchat.host.main import HostOptions

_GRACE_S = 2
"""Seconds that connections get to end after the engine has."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would raise the signal again before the host has cleaned up."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(engine: Engine, options: HostOptions, lock: FileLock) -> None:
    """Answer requests until the host is idle for too long or told to stop; `lock` is given up early to make way."""
    asyncio.run(_serve(engine, options, lock))


async def _serve(engine: Engine, options: HostOptions, lock: FileLock) -> None:
    token = os.environ.get("LOCALCHAT_TOKEN") or secrets.token_urlsafe(24)
    socket_path = paths().socket
    sockets: list[socket.socket] = []
    address, port = str(socket_path), None
    if options.port is not None:
        # First, because it can be taken, and the other one would leave its file behind.
        sockets.append(_listen_tcp(options.port))
        port = int(sockets[0].getsockname()[1])
        address += f" and http://127.0.0.1:{port}"
    sockets.append(_listen_unix(socket_path))
    life = Life(address, options.idle_s, options.on_demand)
    app = Guard(make_app(engine, life), token, port, str(socket_path), life.make_way)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[("Server", f"localchat/{__version__}")],
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)

    def stop_listening() -> None:
        for listener in server.servers:
            listener.close()
        socket_path.unlink(missing_ok=True)

    def make_way() -> None:
        # The next host binds the same path: it must find the path free and the lock with nobody.
        stop_listening()
        lock.release()

    life.on_make_way = make_way
    bound = _inode(socket_path)
    life.is_reachable = lambda: _inode(socket_path) == bound
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, life.stop)
    serving = asyncio.create_task(server.serve(sockets))
    ending = asyncio.create_task(life.wait())
    while not server.started and not serving.done():
        await asyncio.sleep(0)
    options.on_ready(address, token if port else None)
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    if lock.held:
        # Before the engine ends, which takes a moment: whoever asks in that moment must start the next host.
        stop_listening()
    await asyncio.to_thread(engine.close)
    server.should_exit = True
    await serving


def _inode(path: Path) -> int:
    """That of a file; 0 where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _listen_unix(path: Path) -> socket.socket:
    """A listening socket at `path` for this user only; one that a crash left there is replaced (we hold the lock)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        raise EngineFailed(
            f"cannot listen at {path} ({error.strerror or error}): remove it, or set LOCALCHAT_HOME"
        ) from error
    return listener


def _listen_tcp(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        raise UsageError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
    return listener
