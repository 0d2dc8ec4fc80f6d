"""The way to this machine's host: who may be at its other end, and what is said when it is not well."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import localchat
from localchat import protocol
from localchat.client import connect, local
from localchat.client.local import LocalEngine
from localchat.errors import EngineFailed
from localchat.locks import FileLock
from localchat.paths import HOST_LOG_MARK, paths, private_folder
from tests.conftest import run_cli
from tests.tiny_models import LETTERS, write_model

QUESTION = protocol.ChatRequest(messages=[protocol.Message("user", "the secret")], stream=True)


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """Something at the host's socket; the list is what it got to read."""
    private_folder(paths().runtime)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(paths().socket))
    listener.listen()
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                heard.append(connection.recv(1 << 16))
                answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        paths().socket.unlink()


def ignores(connection: socket.socket) -> None:
    connection.recv(1)  # until the other end has had enough


def test_nothing_is_said_to_a_socket_of_another_user(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("only Linux names who listens")
    us = os.getuid()
    with listening(ignores) as heard:
        monkeypatch.setattr(connect, "_check_folder", lambda folder: None)
        monkeypatch.setattr(os, "getuid", lambda: us + 1)
        for ask in (lambda: LocalEngine().chat(QUESTION), LocalEngine().status, LocalEngine().stop):
            with pytest.raises(EngineFailed, match=r"host\.sock belongs to another user.*LOCALCHAT_HOME"):
                ask()
        monkeypatch.undo()
    assert not any(heard)


def test_a_runtime_folder_of_another_user_is_not_even_looked_into(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    us = os.getuid()
    with listening(ignores) as heard:
        monkeypatch.setattr(os, "getuid", lambda: us + 1)
        with pytest.raises(EngineFailed, match=r"run belongs to another user"):
            LocalEngine().status()
        monkeypatch.undo()
    assert heard == []


def test_a_link_is_no_runtime_folder(empty_home: Path, tmp_path: Path) -> None:
    empty_home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (empty_home / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineFailed, match="belongs to another user"):
        LocalEngine().status()
    (empty_home / "run").unlink()


def test_status_of_a_host_that_hangs_is_a_sentence(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STATUS_TIMEOUT_S", 0.2)
    with listening(ignores), pytest.raises(EngineFailed, match=r"does not answer \(timed out\): .*localchat stop"):
        LocalEngine().status()


def test_a_host_that_does_not_stop_is_named(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STATUS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(local, "_STOP_TIMEOUT_S", 0.2)
    with listening(ignores), FileLock(paths().host_lock), pytest.raises(EngineFailed, match=f"kill -9 {os.getpid()}"):
        LocalEngine().stop()


def test_a_connection_that_breaks_in_an_error_is_an_engine_failure(empty_home: Path) -> None:
    def breaks(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nhalf a")

    with listening(breaks), pytest.raises(EngineFailed, match="closed the connection"):
        LocalEngine().chat(QUESTION)


def test_a_home_and_places_that_are_meant_from_here_are_the_hosts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALCHAT_OFFLINE", raising=False)
    with tempfile.TemporaryDirectory(prefix="lc-", dir="/tmp") as here:  # short, so that a socket fits below it
        write_model(Path(here) / "tiny.gguf", speaks=LETTERS)
        (Path(here) / "short").mkdir()
        source = os.path.relpath(Path(localchat.__file__).parents[1], here)
        elsewhere = {"TMPDIR": "short", "XDG_RUNTIME_DIR": "short", "PYTHONPATH": f"{source}:"}
        for home in ("stick", "deep" * 30):  # the deep one's socket is among the temporary files
            try:
                question = ("ask", "-n", "-m", "tiny.gguf", "--max-tokens", "2", "hi")
                done = run_cli(*question, home=Path(home), cwd=here, env=elsewhere)
                assert (done.returncode, done.stderr) == (0, "")
                assert (Path(here) / home / "host.log").read_text().count(HOST_LOG_MARK) == 1
            finally:
                stopped = run_cli("stop", home=Path(home), cwd=here, env=elsewhere)
            assert stopped.stdout == "The engine is stopped.\n"


def test_a_host_that_listens_elsewhere_is_ended_and_not_started_for_ever(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_environment", lambda: {**os.environ, "LOCALCHAT_HOME": str(empty_home / "other")})
    began = time.monotonic()
    with pytest.raises(EngineFailed, match=r"starts but cannot be reached at .*host\.sock: .*doctor.*host\.log"):
        connect.connect_or_start()
    assert time.monotonic() - began < 30
    assert (empty_home / "host.log").read_text().count(HOST_LOG_MARK) == 3
    with FileLock(empty_home / "other" / "run" / "host.lock"):  # free once the engine is gone
        pass


def test_an_engine_that_hangs_is_not_cut_off(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_folder(paths().runtime)
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(paths().socket))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while len(waiting) < 100:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(paths().socket))
        monkeypatch.setattr(local, "_STATUS_TIMEOUT_S", 0.2)
        with pytest.raises(EngineFailed, match=r"the engine hangs: .*try again"):
            LocalEngine().status()
    for one in waiting:
        one.close()
    paths().socket.unlink()


def test_a_host_that_python_does_not_find_is_named(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "python: No module named localchat" >&2\nexit 1\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineFailed, match="did not start: python: No module named localchat"):
        connect.connect_or_start()
