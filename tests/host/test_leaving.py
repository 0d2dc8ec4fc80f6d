"""The moments in which a host is just starting, or just leaving: no question gets lost in them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from starlette.requests import Request
from starlette.responses import Response

from localchat.errors import EngineFailed, EngineLeaving
from localchat.host.app import _Routes
from localchat.host.guard import Guard
from localchat.host.life import Life
from localchat.host.main import HostOptions, run_host
from localchat.host.spec import spec_of
from localchat.locks import FileLock
from localchat.paths import private_folder
from tests.client.test_local import ignores, listening
from tests.conftest import is_alive, run_cli, start_cli, status_of, stop_host, wait_for
from tests.tiny_models import LETTERS, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", speaks=LETTERS)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    stop_host(folder)


def test_a_client_that_meets_a_foreground_host_in_its_start_uses_it(home: Path, model: Path) -> None:
    serving = start_cli("serve", home=home)
    done = run_cli("ask", "-m", str(model), "--max-tokens", "4", "hi", home=home)
    status = wait_for(lambda: status_of(home))
    assert (done.returncode, done.stderr) == (0, "") and status["answered"] == 1
    if serving.poll() is None:  # the client's own may have been first, and then this one says so
        assert status["pid"] == serving.pid
        serving.terminate()
    serving.communicate(timeout=60)


def test_a_detached_host_waits_for_one_that_starts_and_is_ready_once_that_listens(empty_home: Path) -> None:
    private_folder(empty_home / "run")
    reading, writing = os.pipe()
    options = json.dumps({"idle": 9, "model": "", "ready": writing})
    with FileLock(empty_home / "run" / "host.lock"):
        command = [sys.executable, "-m", "localchat", "serve", "--detached", options]
        host = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.PIPE)
        os.close(writing)
        assert host.stderr and b"localchat host" in host.stderr.readline()
        with listening(ignores), os.fdopen(reading) as pipe:
            assert pipe.read() == "ok"
            assert host.communicate(timeout=60) == (None, b"") and host.returncode == 0


def test_a_foreground_host_refuses_where_another_listens(empty_home: Path) -> None:
    private_folder(empty_home / "run")
    with (
        FileLock(empty_home / "run" / "host.lock"),
        listening(ignores),
        pytest.raises(EngineFailed, match="already running"),
    ):
        run_host(HostOptions())


async def test_whoever_comes_after_the_end_of_an_idle_time_is_told_to_ask_again() -> None:
    life = Life("", 0.0, True)
    life.enter()()
    await life.wait()
    with pytest.raises(EngineLeaving):
        life.enter()
    assert EngineLeaving.status == 409, "which clients ask again for"


async def test_whoever_is_overtaken_by_the_end_is_told_to_ask_again() -> None:
    life = Life("", None, True)

    async def endpoint(request: Request) -> Response:
        life.stop()
        raise EngineFailed("the engine is leaving")

    with pytest.raises(EngineLeaving):
        await _Routes(Mock(), life).busy(endpoint)(Mock())


BROKEN = """
from localchat.engine.scheduler import Engine
def break_down(self): raise RuntimeError("nobody foresaw this")
Engine._admit = break_down
from localchat.cli.main import main
main()
"""


def test_a_host_whose_engine_has_died_ends(home: Path, model: Path) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", BROKEN, "serve"],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: status_of(home))
    done = run_cli("ask", "-m", str(model), "--max-tokens", "4", "hi", home=home)
    assert done.returncode == 7 and done.stderr.startswith("localchat: the engine")
    host.communicate(timeout=60)
    assert "nobody foresaw this" in (home / "host.log").read_text()
    again = run_cli("ask", "-m", str(model), "--max-tokens", "4", "hi", home=home)
    assert (again.returncode, again.stderr) == (0, "")
    assert not is_alive(host.pid)


def test_serve_says_at_once_that_there_is_no_such_model(home: Path) -> None:
    done = run_cli("serve", "-m", "smolm2-135m", home=home)
    assert done.returncode == 3 and "did you mean smollm2-135m" in done.stderr
    assert status_of(home) is None


def test_a_model_that_was_replaced_is_another_version(tmp_path: Path) -> None:
    path = write_model(tmp_path / "one.gguf", speaks=LETTERS)
    first = spec_of(str(path))
    assert spec_of(str(path)) == first
    write_model(tmp_path / "two.gguf", speaks=LETTERS[:5]).replace(path)
    assert spec_of(str(path)).version != first.version


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (("/run/host.sock", None), 200),
        (("/run/other.sock", None), 403),
        (("/run/host.sock", 80), 403),
        (("127.0.0.1", 80), 403),
        (None, 403),
    ],
)
async def test_only_what_is_surely_our_socket_needs_no_token(server: object, status: int) -> None:
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message.get("status"))

    guard = Guard(Response(), "token", 80, "/run/host.sock", lambda: None)
    await guard({"type": "http", "method": "GET", "path": "/", "headers": [], "server": server}, Mock(), send)
    assert sent[0] == status


def test_a_mailbox_loses_nothing_and_may_be_empty() -> None:
    from localchat.host.mailbox import Mailbox

    async def use() -> list[int]:
        mailbox: Mailbox[int] = Mailbox()
        mailbox.put(1)
        first = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        mailbox.put(2)
        taken = await first
        mailbox.put(3)
        while len(taken) < 3:
            taken += await mailbox.take()
        return taken

    assert asyncio.run(use()) == [1, 2, 3]
