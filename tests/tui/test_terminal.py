"""The real terminal: given back as it was after every kind of end, and drawn without loading what is not needed."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from fake_engine import FakeEngine, say, wait

from localchat.chats.records import Draft, Node
from localchat.chats.store import Chats
from tests.conftest import wait_for

CHAT = """
import sys
from localchat.client import engine_at
from localchat.tui.app import run
run(engine_at(sys.argv[1]))
"""


def read_until(master: int, wanted: bytes, seconds: float = 60.0) -> bytes:
    """What the chat has drawn, up to `wanted`."""
    seen = b""
    deadline = time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
    assert wanted in seen, seen[-2000:]
    return seen


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "ctrl+q"])
def test_the_terminal_is_restored(end: str, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    with FakeEngine() as engine:
        engine.script(say("ANSWER"), wait("never"))
        chat = subprocess.Popen(
            [sys.executable, "-c", CHAT, engine.url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "LOCALCHAT_HOME": str(tmp_path), "TERM": "xterm-256color"},
            start_new_session=True,
        )
        try:
            read_until(master, b"will answer")
            os.write(master, b"go\r")
            read_until(master, b"ANSWER")
            if end == "ctrl+q":
                os.write(master, b"\x11")
            else:
                chat.send_signal(getattr(signal, end))
            seen = read_until(master, b"\x1b[?1049l")
            if b"\x1b[?25h" not in seen:
                seen += read_until(master, b"\x1b[?25h")
            assert chat.wait(60) == (0 if end == "ctrl+q" else 128 + getattr(signal, end))
            assert engine.closed_early.wait(60)
        finally:
            chat.kill()
            chat.wait()
    for mode in (b"\x1b[?1000l", b"\x1b[?2004l", b"\x1b[?25h"):
        assert mode in seen
    assert b"Traceback" not in seen
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@contextmanager
def chat_at(engine: FakeEngine, home: Path, typed: bytes = b"") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A chat in a terminal of its own, into which something was `typed` before: its other end, and the process."""
    (home / "settings.toml").write_text("titles = false\n")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    os.write(master, typed)
    chat = subprocess.Popen(
        [sys.executable, "-c", CHAT, engine.url],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "LOCALCHAT_HOME": str(home), "TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        read_until(master, b"will answer")
        yield master, chat
    finally:
        chat.kill()
        chat.wait()
        os.close(master)
        os.close(slave)


def last_chat(home: Path) -> tuple[list[Node], Draft]:
    """The messages of the last chat, and what was typed there, as another program sees them on disk."""
    chats = Chats(home / "chats" / "chats.db")
    try:
        last = chats.latest("chat")
        return (chats.tree(last.id).path(), chats.draft(last.id)) if last else ([], Draft())
    finally:
        chats.close()


def test_a_chat_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with FakeEngine() as engine, chat_at(engine, tmp_path) as (master, chat):
        engine.script(say("HALF AN"), wait("never"))
        os.write(master, b"my words\r")
        read_until(master, b"HALF AN")
        # What is shown reaches the disk by itself, without anything else that happens.
        wait_for(lambda: last_chat(tmp_path)[0][-1].message.text() == "HALF AN")
        os.write(master, b"unsent")
        read_until(master, b"unsent")
        wait_for(lambda: last_chat(tmp_path)[1].text == "unsent")
        chat.kill()
        chat.wait()
        (question, answer), draft = last_chat(tmp_path)
        assert question.message.text() == "my words"
        assert (answer.message.text(), answer.state) == ("HALF AN", "broken")
        assert draft.text == "unsent"


def test_what_is_typed_before_the_screen_is_there_is_not_lost(tmp_path: Path) -> None:
    with FakeEngine() as engine, chat_at(engine, tmp_path, typed=b"typed ahead") as (master, _):
        engine.script(say("ANSWER"), wait("never"))
        os.write(master, b"\r")
        read_until(master, b"ANSWER")
        assert engine.requests[0].messages[-1].text() == "typed ahead"


def test_a_chat_that_was_suspended_is_drawn_whole_again(tmp_path: Path) -> None:
    with FakeEngine() as engine, chat_at(engine, tmp_path) as (master, chat):
        engine.script(say("ANSWER"))
        os.write(master, b"go\r")
        read_until(master, b"ANSWER")
        os.write(master, b"\x1a")
        read_until(master, b"\x1b[?1049l")
        while psutil.Process(chat.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        chat.send_signal(signal.SIGCONT)
        shown = read_until(master, b"\x1b[?1049h")
        # What is drawn may have come in one piece with the switch to its screen.
        if b"ANSWER" not in shown.partition(b"\x1b[?1049h")[2]:
            read_until(master, b"ANSWER")


def test_the_first_screen_loads_nothing_heavy() -> None:
    heavy = ["markdown_it", "pygments.lexers", "huggingface_hub", "llama_cpp", "numpy", "httpx", "starlette", "psutil"]
    script = f"import sys, localchat.tui.app\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
