"""Find this machine's host, or start one: detached, with its own log file, never two at once.

Knows the socket, the locks and the command line of `localchat serve`; imports nothing of the host itself.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import BinaryIO

from localchat.errors import EngineFailed, from_code
from localchat.locks import FileLock
from localchat.paths import HOST_LOG_MARK, paths, private_folder
from localchat.safe_text import safe_line
from localchat.settings import settings

_START_TIMEOUT_S = 60.0
_LOG_KEPT_BYTES = 1 << 20
_LOG_TAIL_BYTES = 1 << 15
_TELLING = ("error", "assert", "abort", "fail", "illegal", "segmentation")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect; raises `OSError` where nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def connect_if_running() -> UnixConnection | None:
    """A connection to the running host, or None where none answers (no socket, or one that a crash left behind)."""
    connection = UnixConnection(paths().socket)
    try:
        connection.connect()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise EngineFailed(
            f"cannot reach the engine at {paths().socket} ({error.strerror}): remove that file and try again"
        ) from error
    return connection


def connect_or_start(model: str = "") -> UnixConnection:
    """A connection to the host; where none runs, start one that begins to load `model` at once.

    Of several clients that find no host, one starts it while the others wait for its lock. Raises `EngineFailed` with
    the host's own last words where it cannot start.
    """
    connection = connect_if_running()
    if connection:
        return connection
    private_folder(paths().runtime, shared_parent=True)
    deadline = time.monotonic() + _START_TIMEOUT_S
    lock = FileLock(paths().start_lock)
    while not lock.acquire(blocking=False):
        if time.monotonic() > deadline:
            raise EngineFailed(f"another start of the engine hangs: end it, or see {paths().host_log}")
        time.sleep(0.02)
    try:
        connection = connect_if_running()
        while not connection:
            _start_host(model)
            connection = connect_if_running()
            if time.monotonic() > deadline:
                raise EngineFailed(f"the engine starts but cannot be reached: see {paths().host_log}")
        return connection
    finally:
        lock.release()


def _start_host(model: str) -> None:
    """Start a detached host and wait until it listens, or says why it cannot.

    It answers through a pipe: "ok" once it listens, else an error's code and message. A host that finds another one
    alive (it may be leaving) waits for it, so an empty answer means that it died.
    """
    import subprocess

    private_folder(paths().state)
    log = paths().host_log
    reading, writing = os.pipe()
    options = {"idle": settings().idle, "model": model, "ready": writing}
    command = [sys.executable, "-m", "localchat", "serve", "--detached", json.dumps(options)]
    try:
        with _open_log(log) as log_file, Path(os.devnull).open("rb") as nothing:
            process = subprocess.Popen(
                command,
                stdin=nothing,
                stdout=log_file,
                stderr=log_file,
                pass_fds=[writing],
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        os.close(reading)
        raise EngineFailed(
            f"cannot start the engine ({error.strerror}: {error.filename}): see that this file can be written and run"
        ) from error
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    if answer == "ok":
        process.returncode = 0  # it lives on by itself; this silences the warning about a child left running
        return
    process.wait()
    code, _, message = answer.partition("\n")
    if message:
        raise from_code(code, message)
    raise EngineFailed(f"the engine did not start: {last_words()} (log: {log})")


def _open_log(log: Path) -> BinaryIO:
    """The log, opened to append, private, and begun anew when it has grown large."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    if log.exists() and log.stat().st_size > _LOG_KEPT_BYTES:
        flags |= os.O_TRUNC
    return os.fdopen(os.open(log, flags, 0o600), "ab")


def last_words() -> str:
    """What the last host's log says about its end: its last line with an error in it, or that there is none."""
    try:
        with paths().host_log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            tail = file.read().decode(errors="replace")
    except OSError:
        return "it left no log"
    own = tail.rpartition(HOST_LOG_MARK)[2]
    if "Illegal instruction" in own:
        return (
            "its library uses instructions that this processor does not have: reinstall it with "
            f"`{sys.executable} -m pip install --force-reinstall --no-cache-dir llama-cpp-python`"
        )
    telling = [line for line in own.splitlines() if any(word in line.lower() for word in _TELLING)]
    return safe_line(telling[-1])[:300] if telling else "it left no word: it was killed, perhaps for lack of memory"
