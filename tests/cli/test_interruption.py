"""An answer that is cut short by the person, the shell or a pipe: quiet, with the right code, nothing left running."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import run_cli, start_cli, status_of, stop_host, wait_for
from tests.fake_engine import FakeEngine, progress, say, wait
from tests.terminal import Terminal
from tests.tiny_models import LETTERS, write_model


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on talking for a long while."""
    path = tmp_path_factory.mktemp("talker") / "talker.gguf"
    return write_model(path, speaks=LETTERS, context=1 << 16, layers=4, width=256)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cut") / "home"
    yield folder
    stop_host(folder)


def answering(home: Path) -> dict[str, Any] | None:
    """The status of a host that is computing an answer."""
    status = status_of(home)
    return status if status and status.get("active") else None


def stops_computing(home: Path, before: dict[str, Any]) -> None:
    """Wait until nothing is computed, and see that no answer has come to its end since `before`."""
    after = wait_for(lambda: (status := status_of(home)) and not status.get("active") and status, seconds=60)
    assert after.get("answered") == before.get("answered")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_answer_and_the_computing(
    host: Path, talker: Path, number: signal.Signals, code: int
) -> None:
    running = start_cli("ask", "-m", str(talker), "hi", home=host)
    assert running.stdout
    begun = os.read(running.stdout.fileno(), 1 << 16)
    before = answering(host)
    assert before
    running.send_signal(number)
    rest, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (code, b"")
    assert begun.isalpha() and (begun + rest).strip().isalpha()
    stops_computing(host, before)


def test_a_signal_while_a_long_prompt_is_read(host: Path, talker: Path) -> None:
    running = start_cli("ask", "-m", str(talker), home=host, stdin=subprocess.PIPE)
    assert running.stdin
    running.stdin.write(b"a long story " * 4000)
    running.stdin.close()
    before = wait_for(lambda: answering(host))
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    stops_computing(host, before)
    assert run_cli("ask", "-m", str(talker), "--max-tokens", "2", "hi", home=host).returncode == 0


def test_ctrl_c_on_a_terminal(host: Path, talker: Path) -> None:
    terminal = Terminal("ask", "-m", str(talker), "hi", home=host)
    before = wait_for(lambda: answering(host))
    terminal.press(b"\x03")
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.output and b"localchat:" not in terminal.output
    stops_computing(host, before)


def test_ctrl_c_takes_the_progress_line_away(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        engine.script(progress("reading", 1000, 2000), wait("never"), say("x"))
        terminal = Terminal("ask", "--engine", engine.url, "hi", home=tmp_path)
        terminal.read_until("reading the prompt")
        terminal.press(b"\x03")
        assert terminal.end() == 130
        assert terminal.screen().replace("^C", "").strip() == ""
        assert engine.closed_early.wait(60)


def test_ctrl_c_while_a_prompt_is_typed(host: Path) -> None:
    running = start_cli("ask", home=host, stdin=subprocess.PIPE)
    assert running.stdin
    running.stdin.write(b"more than a pipe holds" * 20_000)
    # What was written is read, and the rest of it awaited.
    wait_for(lambda: fcntl.ioctl(running.stdin, termios.FIONREAD, b"\0" * 4) == b"\0" * 4)
    wait_for(lambda: psutil.Process(running.pid).status() == psutil.STATUS_SLEEPING)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert running.stdout and running.stderr
    assert (running.stdout.read(), running.stderr.read()) == (b"", b"")


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        engine.script(say("one\n"), wait("go"), say("two\n" * 100_000, by=4000), wait("never"))
        running = start_cli("ask", "--engine", engine.url, "hi", home=tmp_path)
        assert running.stdout and running.stderr
        assert os.read(running.stdout.fileno(), 4) == b"one\n"
        running.stdout.close()
        engine.go("go")
        assert running.wait(timeout=60) == 0
        assert running.stderr.read() == b""
        assert engine.closed_early.wait(60)


def test_head_ends_the_computing(host: Path, talker: Path) -> None:
    before = status_of(host) or {}
    script = f'"{sys.executable}" -m localchat ask -m "{talker}" hi | head -c 1; echo " ${{PIPESTATUS[*]}}"'
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "LOCALCHAT_HOME": str(host)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout[1:] == " 0 0\n" and done.stderr == ""
    stops_computing(host, before)


@pytest.mark.parametrize("flags", [["--json"], ["-x"], ["--help"], []])
def test_a_pipe_that_was_never_read_is_no_error(tmp_path: Path, flags: list[str]) -> None:
    with FakeEngine() as engine:
        engine.script(say("```\ncode\n```\n"))
        reading, writing = os.pipe()
        os.close(reading)
        running = start_cli("ask", "--engine", engine.url, "hi", *flags, home=tmp_path, stdout=writing)
        os.close(writing)
        assert running.communicate(timeout=60)[1] == b""
        assert running.returncode == 0


def redirected(redirection: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    script = f'"{sys.executable}" -m localchat "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("where", [">&-", "> /dev/full"])
@pytest.mark.parametrize("flags", [[], ["--json"], ["-x"]])
def test_a_stdout_that_cannot_be_written_is_one_sentence(tmp_path: Path, where: str, flags: list[str]) -> None:
    if "full" in where and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with FakeEngine() as engine:
        engine.script(say("```\nok\n```\n"))
        done = redirected(where, "ask", "--engine", engine.url, "hi", *flags, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("localchat: ") and done.stderr.count("\n") == 1
    assert ("No space left" if "full" in where else "standard output is closed") in done.stderr


@pytest.mark.parametrize("where", ["2>&-", "2> /dev/full", "<&-", "<&- 2>&-"])
def test_a_stdin_or_stderr_that_is_closed_costs_nothing(tmp_path: Path, where: str) -> None:
    if "full" in where and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with FakeEngine() as engine:
        engine.script(say("ok"))
        done = redirected(where, "ask", "--engine", engine.url, "hi", "--stats", "--show-thinking", home=tmp_path)
    assert (done.stdout, done.returncode) == ("ok\n", 0)


def test_a_host_can_be_started_with_every_stream_closed(tmp_path: Path, talker: Path) -> None:
    home = tmp_path / "home"
    done = redirected("<&- 2>&-", "ask", "-m", str(talker), "--max-tokens", "4", "hi", home=home)
    assert done.returncode == 0 and done.stdout.strip().isalpha()
    assert status_of(home)
    stop_host(home)


IMPATIENT = """
import os, signal, sys, threading, time
from localchat.cli import main
from localchat.errors import Interrupted

def again(): os.kill(os.getpid(), signal.SIGINT)

def run(arguments):
    if "fails" in arguments:
        raise ValueError("nobody foresaw this")
    # What is being put in order while Python waits for it.
    threading.Thread(target=lambda: (time.sleep(0.2), again(), time.sleep(float(arguments[1])), print("done"))).start()
    raise Interrupted("stopped: nothing is lost") if "says" in arguments else KeyboardInterrupt

class Pressing:
    # stderr, for somebody who presses Ctrl+C again while the sentence is being written.
    encoding = "utf-8"
    def write(self, text): again(); return stderr.write(text)
    def flush(self): again(); stderr.flush()

stderr, sys.stderr = sys.stderr, Pressing()
main._run = run
main.main()
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("silent", 130, ""), ("says", 130, "localchat: stopped: nothing is lost\n"), ("fails", 1, "nobody foresaw this")],
)
def test_more_ctrl_c_while_the_first_is_handled_changes_nothing(tmp_path: Path, how: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, how, "0.3"],
        env={**os.environ, "LOCALCHAT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code and done.stdout == ("done\n" if code == 130 else "")
    assert said in done.stderr and done.stderr.count("\n") == (how != "silent"), done.stderr


def test_a_long_clean_up_after_ctrl_c_can_be_ended(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "says", "60"],
        env={**os.environ, "LOCALCHAT_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    assert running.stderr and running.stderr.readline() == b"localchat: stopped: nothing is lost\n"
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.5)
    running.terminate()
    assert running.wait(10) == -signal.SIGTERM and running.stderr.read() == b""
