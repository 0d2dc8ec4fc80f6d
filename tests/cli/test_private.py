"""What is said stays in memory and in the chats: not in logs, other files or process lists; no network is used."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import STARTER, install, run_cli, status_of, stop_host
from tests.terminal import Terminal

SECRET = "zanzibar-quetzal-71"


@pytest.fixture(scope="module")
def after_a_session(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> tuple[Path, str, list[str]]:
    """A home after questions of every kind under a careless umask; what was answered; the command lines of the host."""
    folder = tmp_path_factory.mktemp("private")
    home = folder / "home"
    before = os.umask(0)
    try:
        note = folder / "note.txt"
        note.write_text(f"The word is {SECRET}.\n")
        common = ("-m", str(starter), "--max-tokens", "40", "--temperature", "0")
        answers = [
            run_cli("ask", *common, "-s", f"Your word is {SECRET}.", f"Repeat: {SECRET}", home=home).stdout,
            run_cli("ask", *common, "-f", str(note), "What is the word?", home=home).stdout,
            run_cli("ask", *common, home=home, input=f"Say {SECRET} twice.").stdout,
        ]
        too_long = run_cli("ask", *common, "-o", "context", "256", home=home, input=f"{SECRET} " * 500)
        assert too_long.returncode == 6 and SECRET not in too_long.stderr
        status = status_of(home)
        assert status
        host = psutil.Process(status["pid"])
        lines = [" ".join(process.cmdline()) for process in (host, *host.children())]
        answers.append(run_cli("ask", *common, "-x", f"Say {SECRET}", home=home).stderr)
    finally:
        os.umask(before)
        stop_host(home)
    return home, "\n".join(answers), lines


def everything_in(home: Path) -> dict[str, bytes]:
    return {str(file.relative_to(home)): file.read_bytes() for file in home.rglob("*") if file.is_file()}


def test_no_other_file_has_a_word_of_the_conversation(after_a_session: tuple[Path, str, list[str]]) -> None:
    home, answers, _ = after_a_session
    files = everything_in(home)
    assert "host.log" in files
    assert SECRET.encode() in files["chats/chats.db"], "there it is kept, and in its daily copy"
    files = {name: content for name, content in files.items() if not name.startswith("chats/")}
    words = [word.encode() for word in re.findall(r"\w+ \w+ \w+ \w+", answers)]
    assert len(words) > 3
    for name, content in files.items():
        assert SECRET.encode() not in content, name
        assert not [word for word in words if word in content], name


def test_no_command_line_of_the_engine_has_it(after_a_session: tuple[Path, str, list[str]]) -> None:
    lines = after_a_session[2]
    assert lines and not [line for line in lines if SECRET in line]


def test_every_file_and_folder_is_private_whatever_the_umask(after_a_session: tuple[Path, str, list[str]]) -> None:
    home = after_a_session[0]
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


def inet_sockets(trace: str) -> list[str]:
    return [line for line in trace.splitlines() if re.search(r"socket\(AF_(INET|INET6|PACKET|NETLINK)", line)]


def test_no_internet_socket_is_opened(tmp_path: Path, starter: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    home = tmp_path / "home"
    install(starter, home)
    (home / "settings.toml").write_text("idle = 1\n")
    trace = tmp_path / "trace"
    tracer = ["strace", "-f", "-qq", "-e", "trace=socket", "-o", str(trace)]
    done = subprocess.run(
        [*tracer, sys.executable, "-m", "localchat", "ask", "-m", STARTER, "--max-tokens", "4", "hi"],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "ptrace" in done.stderr:
        pytest.skip("this user may not trace processes")
    assert done.returncode == 0 and done.stdout.strip()
    text = trace.read_text()
    assert "socket(AF_UNIX" in text, "the trace saw the client and the host"
    assert len(set(re.findall(r"^\d+", text, re.MULTILINE))) >= 2
    assert inet_sockets(text) == []


def test_it_answers_where_there_is_no_network_at_all(tmp_path: Path, starter: Path) -> None:
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("this user may not make a network namespace")
    home = tmp_path / "home"
    install(starter, home)
    terminal = Terminal(
        home=home,
        command=["unshare", "-n", sys.executable, "-m", "localchat", "ask", "--max-tokens", "4", "hi"],
    )
    assert terminal.end() == 0
    assert terminal.screen().strip()
    assert terminal.output.count(b"localchat:") == 0
    stop_host(home)
