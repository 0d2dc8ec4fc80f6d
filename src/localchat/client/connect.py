"""Find this machine's host, or start one: detached, with its own log file, never two at once.

Knows the socket, the locks and the command line of `localchat serve`; imports nothing of the host itself.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from localchat.errors import EngineFailed, from_code
from localchat.locks import FileLock
from localchat.paths import HOST_LOG_MARK, paths, private_folder
from localchat.safe_text import safe_line
from localchat.settings import settings

if TYPE_CHECKING:
    import subprocess

_START_TIMEOUT_S = 60.0
_PAUSES_S = (0.0, 0.1, 0.5)
"""Before each look for a host that said that it listens: it may be told to make way in that very moment."""
_LOG_KEPT_BYTES = 1 << 20
_LOG_TAIL_BYTES = 1 << 15
_TELLING = ("error", "assert", "abort", "fail", "illegal", "segmentation", "no module")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, to a process of this user and to nobody else. `peer` is its pid (0: not known)."""

    def __init__(self, path: Path, patience_s: float | None = None) -> None:
        super().__init__("localhost")
        self._path = path
        self._patience_s = patience_s
        self.peer = 0

    def connect(self) -> None:
        """Connect. Raises `OSError` where nobody listens, `EngineFailed` where somebody else may be listening."""
        _check_folder(self._path.parent)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self._patience_s)
            self.sock.connect(str(self._path))
            if hasattr(socket, "SO_PEERCRED"):
                credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                self.peer, uid, _ = struct.unpack("3i", credentials)
                if uid != os.getuid():
                    raise EngineFailed(_not_ours(self._path))
        except BaseException:
            self.sock.close()
            raise


def _check_folder(folder: Path) -> None:
    """Refuse a folder that another user made, or (where sockets do not name their owner) could have written to."""
    try:
        status = folder.lstat()
    except OSError:
        return  # then there is no socket in it either
    lax = 0 if hasattr(socket, "SO_PEERCRED") else 0o077
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & lax:
        raise EngineFailed(_not_ours(folder))


def _not_ours(path: Path) -> str:
    return f"{path} belongs to another user, who could read along: remove it, or set LOCALCHAT_HOME to a short path"


def connect_if_running(patience_s: float | None = None) -> UnixConnection | None:
    """A connection to the running host, or None where none answers (no socket, or one that a crash left behind).

    `patience_s` is how long each answer may take. Raises `EngineFailed` where the socket is somebody else's.
    """
    connection = UnixConnection(paths().socket, patience_s)
    try:
        connection.connect()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except (TimeoutError, BlockingIOError) as error:
        # Without its file it could not be reached at all, and no other would start beside it.
        raise EngineFailed("the engine hangs: others wait for it already, so try again or end its process") from error
    except OSError as error:
        raise EngineFailed(
            f"cannot reach the engine at {paths().socket} ({error.strerror or error}): remove that file and try again"
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
        if connection := connect_if_running():
            return connection
        hosts = []
        for pause in _PAUSES_S:
            hosts.append(_start_host(model))
            time.sleep(pause)
            if connection := connect_if_running():
                hosts[-1].returncode = 0  # it lives on by itself: no warning about a child left running
                return connection
        for host in hosts:
            host.terminate()  # it would hold a model in memory for nobody
        raise EngineFailed(
            f"the engine starts but cannot be reached at {paths().socket}: `localchat doctor` looks the machine over, "
            f"and {paths().host_log} is its log"
        )
    finally:
        lock.release()


def _start_host(model: str) -> subprocess.Popen[bytes]:
    """Start a detached host and wait until it listens, or says why it cannot; the process that was started.

    It answers through a pipe: "ok" once it listens, else an error's code and message. A host that finds another one
    alive waits until that is gone or listens (which is "ok" too), so an empty answer means that it died.
    """
    import subprocess

    private_folder(paths().state)
    log = paths().host_log
    environment = _environment()
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
                env=environment,
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
        return process
    process.wait()
    code, _, message = answer.partition("\n")
    if message:
        raise from_code(code, message)
    raise EngineFailed(f"the engine did not start: {last_words()} (log: {log})")


def _environment() -> dict[str, str]:
    """The environment for the host, which runs in another folder: what is meant from here is spelled out.

    Else it would keep to another home, look for its socket's folder elsewhere, or be another localchat.
    """
    environment = dict(os.environ)
    if environment.get("LOCALCHAT_HOME"):
        environment["LOCALCHAT_HOME"] = str(paths().data)
    if environment.get("TMPDIR"):
        environment["TMPDIR"] = str(Path(environment["TMPDIR"]).absolute())
    if environment.get("PYTHONPATH"):
        places = [Path(place).absolute() for place in environment["PYTHONPATH"].split(os.pathsep) if place]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, places))
    return environment


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
