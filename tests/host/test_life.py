"""A host from its first client to its end: one at a time, private, replaced when it must be, gone when nobody asks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from localchat.client.connect import UnixConnection
from localchat.paths import HOST_LOG_MARK
from tests.conftest import is_alive, run_cli, start_cli, status_of, stop_host, wait_for
from tests.terminal import Terminal
from tests.tiny_models import LETTERS, write_model


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on talking for a long while."""
    path = tmp_path_factory.mktemp("talker") / "talker.gguf"
    return write_model(path, speaks=LETTERS, context=1 << 16, layers=4, width=256)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty LOCALCHAT_HOME; whatever host runs there at the end is ended."""
    folder = tmp_path / "home"
    yield folder
    stop_host(folder)


ENDLESS = 60_000
"""Tokens of an answer that goes on for minutes."""


def saves_nothing(home: Path) -> None:
    """Let the engine leave at once, as `localchat stop` does not wait for ever."""
    home.mkdir()
    (home / "settings.toml").write_text('prefix_cache = "0"\n')


def short(model: Path) -> tuple[str, ...]:
    return ("-m", str(model), "--max-tokens", "4", "hi")


def ask(model: Path, home: Path, **options: object) -> None:
    done = run_cli("ask", *short(model), home=home, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().isalpha()


def hosts_started(home: Path) -> int:
    return (home / "host.log").read_text().count(HOST_LOG_MARK)


def pid_of(home: Path) -> int:
    status = wait_for(lambda: status_of(home))
    return int(status["pid"])


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# One host


@pytest.mark.parametrize("count", [2, 6])
def test_clients_that_start_at_once_share_one_host(home: Path, talker: Path, count: int) -> None:
    clients = [start_cli("ask", *short(talker), home=home) for _ in range(count)]
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert (client.returncode, err) == (0, b"") and out.strip().isalpha()
    assert hosts_started(home) == 1
    status = status_of(home)
    assert status and status["answered"] == count


def test_a_host_stays_for_the_next_question(home: Path, talker: Path) -> None:
    ask(talker, home)
    first = pid_of(home)
    ask(talker, home)
    assert pid_of(home) == first


def test_two_questions_at_once_both_make_progress(home: Path, talker: Path) -> None:
    endless = [start_cli("ask", "-m", str(talker), f"number {number}", home=home) for number in range(2)]
    for client in endless:
        assert client.stdout and os.read(client.stdout.fileno(), 1 << 16)
    status = status_of(home)
    assert status and status["active"] == 2
    for client in endless:
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=60)


# Its end


def test_a_host_leaves_when_nobody_asks(home: Path, talker: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text("idle = 1\n")
    ask(talker, home)
    # It may have left before anybody could ask it.
    started = re.search(rf"{HOST_LOG_MARK} .*pid (\d+)", (home / "host.log").read_text())
    assert started
    wait_for(lambda: not is_alive(int(started[1])))
    assert not (home / "run" / "host.sock").exists()
    ask(talker, home)


def test_a_host_whose_socket_was_removed_makes_way(home: Path, talker: Path) -> None:
    ask(talker, home)
    pid = pid_of(home)
    (home / "run" / "host.sock").unlink()
    ask(talker, home)
    assert pid_of(home) != pid
    wait_for(lambda: not is_alive(pid))


def test_a_host_does_not_leave_in_mid_answer(home: Path, talker: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text("idle = 1\n")
    client = start_cli("ask", "-m", str(talker), "hi", home=home)
    assert client.stdout and os.read(client.stdout.fileno(), 1 << 16)
    began = status_of(home)
    assert began
    # Longer than the idle time has passed once it is two seconds older.
    wait_for(lambda: (client.stdout.read1(), time.time() - began["started"] > 2)[1])  # type: ignore[union-attr]
    assert client.poll() is None and status_of(home)["active"] == 1  # type: ignore[index]
    client.kill()
    client.communicate(timeout=60)


def test_a_client_that_goes_away_frees_the_engine(home: Path, talker: Path) -> None:
    for stream in (True, False):
        ask(talker, home)
        connection = request(home, talker, stream=stream, tokens=ENDLESS)
        if stream:
            assert connection.getresponse().readline()
        before = wait_for(lambda: (status := status_of(home)) and status.get("active") and status)
        connection.close()
        after = wait_for(lambda: (status := status_of(home)) and not status.get("active") and status)
        assert after.get("answered") == before.get("answered"), "it was not answered to its end"


def request(
    home: Path, model: Path, *, stream: bool = True, version: str | None = None, tokens: int = 600
) -> UnixConnection:
    """Ask as any client could, and do not wait for the answer."""
    connection = UnixConnection(home / "run" / "host.sock")
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": str(model), "stream": stream, "messages": messages, "max_tokens": tokens}
    headers = {"Content-Type": "application/json", **({"X-Localchat-Version": version} if version else {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


def test_a_killed_host_leaves_no_process_behind(home: Path, talker: Path) -> None:
    ask(talker, home)
    host = psutil.Process(pid_of(home))
    children = host.children(recursive=True)
    assert children, "chat templates run in a process of their own"
    host.kill()
    for child in children:
        wait_for(lambda child=child: not is_alive(child.pid))


def test_a_stopped_host_leaves_no_process_behind(home: Path, talker: Path) -> None:
    ask(talker, home)
    host = psutil.Process(pid_of(home))
    processes = [host.pid, *(child.pid for child in host.children(recursive=True))]
    stop_host(home)
    for pid in processes:
        wait_for(lambda pid=pid: not is_alive(pid))
    assert sorted(path.name for path in (home / "run").iterdir()) == ["host.lock", "start.lock"]


def test_stop_ends_a_running_answer_with_a_sentence(home: Path, talker: Path) -> None:
    saves_nothing(home)
    client = start_cli("ask", "-m", str(talker), "hi", home=home)
    assert client.stdout and os.read(client.stdout.fileno(), 1 << 16)
    assert run_cli("stop", home=home).stdout == "The engine is stopped.\n"
    _, err = client.communicate(timeout=60)
    assert client.returncode == 7 and err.startswith(b"localchat: the engine") and err.count(b"\n") == 1


# status and stop


def test_status_and_stop_without_a_host(home: Path) -> None:
    assert run_cli("status", home=home).stdout.startswith("No engine is running")
    assert run_cli("status", "--json", home=home).stdout == "null\n"
    done = run_cli("stop", home=home)
    assert (done.stdout, done.stderr, done.returncode) == ("No engine was running.\n", "", 0)
    assert not home.exists(), "asking starts and makes nothing"


def test_status_says_what_is_loaded_how_big_and_how_long(home: Path, talker: Path) -> None:
    saves_nothing(home)
    ask(talker, home)
    text = run_cli("status", home=home).stdout
    for part in (
        "process ",
        "leaves memory in ",
        "1 answered",
        "talker.gguf",
        "tokens (trained for 65,536)",
        "threads:",
    ):
        assert part in text
    status = json.loads(run_cli("status", "--json", home=home).stdout)
    assert {"version", "pid", "started", "idle_s", "leaves_in_s", "resident_bytes", "address", "log"} <= set(status)
    assert status["model"]["file_bytes"] == talker.stat().st_size
    assert status["on_demand"] is True and 0 < status["leaves_in_s"] <= 300
    assert is_alive(status["pid"])
    assert run_cli("stop", home=home).stdout == "The engine is stopped.\n"
    assert not is_alive(status["pid"]) or wait_for(lambda: not is_alive(status["pid"])) is True
    assert run_cli("status", "--json", home=home).stdout == "null\n"


# Private


def test_sockets_and_folders_are_private_whatever_the_umask(home: Path, talker: Path) -> None:
    ask(talker, home, umask=0)
    assert mode_of(home / "run" / "host.sock") == 0o600
    assert mode_of(home / "run") == mode_of(home) == 0o700
    assert {mode_of(home / name) for name in ("host.log", "run/host.lock", "run/start.lock")} == {0o600}


@pytest.mark.parametrize("login", [True, False])
def test_a_deep_home_gets_a_short_runtime_folder(tmp_path: Path, talker: Path, login: bool) -> None:
    home = tmp_path / ("d" * 120) / ("e" * 120)
    runtime = Path(tempfile.mkdtemp(prefix="lc-", dir="/tmp"))  # short, as a login's is
    env = {"XDG_RUNTIME_DIR": str(runtime) if login else "", "TMPDIR": "/tmp"}
    try:
        ask(talker, home, env=env)
        status = json.loads(run_cli("status", "--json", home=home, env=env).stdout)
        socket_path = Path(status["address"])
        assert len(os.fsencode(socket_path)) <= 107
        assert not socket_path.is_relative_to(home) and socket_path.is_relative_to(runtime) is login
        assert (mode_of(socket_path), mode_of(socket_path.parent)) == (0o600, 0o700)
        assert (home / "host.log").exists()
    finally:
        run_cli("stop", home=home, env=env)
    for file in (socket_path.parent / "host.lock", socket_path.parent / "start.lock"):
        file.unlink()
    socket_path.parent.rmdir()
    runtime.rmdir()


def test_a_runtime_folder_of_somebody_else_is_refused(tmp_path: Path, talker: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    os.chown(home / "run", 12345, 12345)
    done = run_cli("ask", *short(talker), home=home)
    assert done.returncode == 7 and "belongs to another user" in done.stderr


# Versions

OTHER = "import localchat; localchat.__version__ = '0.0.9'; from localchat.cli.main import main; main()"


@pytest.fixture
def older(home: Path, talker: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A host of an older version that runs in `home`."""
    saves_nothing(home)
    running = subprocess.Popen(
        [sys.executable, "-c", OTHER, "serve", "-m", str(talker)],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert wait_for(lambda: status_of(home))["version"] == "0.0.9"
    yield running
    running.kill()
    running.communicate()


def test_a_host_of_another_version_is_replaced(home: Path, talker: Path, older: subprocess.Popen[bytes]) -> None:
    ask(talker, home)
    assert older.wait(timeout=60) == 0
    status = status_of(home)
    assert status and status["version"] != "0.0.9" and status["pid"] != older.pid


def test_a_host_that_is_replaced_finishes_its_answers(home: Path, talker: Path, older: subprocess.Popen[bytes]) -> None:
    connection = request(home, talker, version="0.0.9")
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    ask(talker, home)
    assert status_of(home)["pid"] != older.pid  # type: ignore[index]
    rest = response.read()
    assert b'"finish_reason":"length"' in rest and rest.endswith(b"data: [DONE]\n\n")
    assert older.wait(timeout=60) == 0
    assert status_of(home), "the older host took nothing of the newer one along"


def test_stop_ends_a_host_of_another_version_at_once(home: Path, talker: Path, older: subprocess.Popen[bytes]) -> None:
    response = request(home, talker, version="0.0.9", tokens=ENDLESS).getresponse()
    assert response.readline().startswith(b"data: ")
    assert run_cli("stop", home=home).stdout == "The engine is stopped.\n"
    assert older.wait(timeout=60) == 0
    assert b'"finish_reason":"length"' not in response.read()


def test_six_clients_replace_an_older_host_once(home: Path, talker: Path, older: subprocess.Popen[bytes]) -> None:
    clients = [start_cli("ask", *short(talker), home=home) for _ in range(6)]
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert (client.returncode, err) == (0, b"") and out.strip().isalpha()
    assert older.wait(timeout=60) == 0
    assert hosts_started(home) == 2


# In the foreground


def serve(home: Path, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    running = start_cli("serve", *arguments, home=home, **options)
    wait_for(lambda: running.poll() is not None or status_of(home))
    return running


def test_serve_refuses_a_second_one(home: Path, talker: Path) -> None:
    first = serve(home, "-m", str(talker))
    done = run_cli("serve", home=home)
    assert (done.stdout, done.returncode) == ("", 7)
    assert done.stderr == (
        "localchat: an engine is already running: `localchat status` shows it, `localchat stop` ends it\n"
    )
    ask(talker, home)
    status = status_of(home)
    assert status and status["pid"] == first.pid and "leaves_in_s" not in status
    first.terminate()
    first.communicate(timeout=60)


def test_serve_takes_over_from_an_idle_host(home: Path, talker: Path) -> None:
    ask(talker, home)
    former = pid_of(home)
    running = serve(home)
    assert wait_for(lambda: pid_of(home) != former and pid_of(home)) == running.pid
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, b"") and err.count(b"listening at") == 1


def test_serve_leaves_a_host_that_answers_alone(home: Path, talker: Path) -> None:
    client = start_cli("ask", "-m", str(talker), "hi", home=home)
    assert client.stdout and os.read(client.stdout.fileno(), 1 << 16)
    assert run_cli("serve", home=home).returncode == 7
    assert client.poll() is None
    client.kill()
    client.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_serve_and_its_socket(home: Path, talker: Path, number: signal.Signals) -> None:
    running = serve(home, "-m", str(talker))
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0 and out == b"" and b"Traceback" not in err
    assert not (home / "run" / "host.sock").exists()
    assert status_of(home) is None


def test_serve_leaves_the_terminal_as_it_was(home: Path, talker: Path) -> None:
    terminal = Terminal("serve", "--port", "0", "-m", str(talker), home=home)
    before = terminal.settings()
    terminal.read_until("bearer token")
    terminal.press(b"\x03")
    after = terminal.settings()
    assert terminal.end() == 0
    assert before == after and b"\x1b" not in terminal.output
    assert not (home / "run" / "host.sock").exists()


def test_serve_prints_a_random_token_once_and_keeps_a_given_one_quiet(home: Path) -> None:
    said = []
    for env in ({}, {"LOCALCHAT_TOKEN": ""}, {"LOCALCHAT_TOKEN": "a-token-of-mine"}):
        running = serve(home, "--port", "0", env=env)
        running.terminate()
        said.append(running.communicate(timeout=60)[1].decode())
    tokens = [text.partition("bearer token is ")[2].strip() for text in said]
    assert len(tokens[0]) >= 24 and len(tokens[1]) >= 24 and tokens[0] != tokens[1] and tokens[2] == ""
    assert "a-token-of-mine" not in said[2] and "http://127.0.0.1:" in said[2]
    assert not any(token and token in (home / "host.log").read_text() for token in tokens)


def test_a_port_that_is_taken_is_a_sentence(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_cli("serve", "--port", str(taken.getsockname()[1]), home=home)
    assert done.returncode == 2 and "choose another with --port" in done.stderr and done.stderr.count("\n") == 1
    assert not (home / "run" / "host.sock").exists()


def test_only_loopback_is_listened_on(home: Path) -> None:
    running = serve(home, "--port", "0")
    addresses = {
        connection.laddr.ip
        for connection in psutil.Process(running.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    running.terminate()
    running.communicate(timeout=60)
    assert addresses == {"127.0.0.1"}
