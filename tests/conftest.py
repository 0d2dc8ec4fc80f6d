"""What all tests share: a home of their own, the real starter model, and hosts that end with the test.

The starter is fetched once, by localchat itself, into a folder that later runs find again.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from localchat.client.connect import UnixConnection
from localchat.paths import paths
from localchat.settings import settings

STARTER = "smollm2-135m"
T = TypeVar("T")


def pytest_configure() -> None:
    """Let Ctrl+C work in the commands that are tested: a job in the background of a script inherits it as ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def forget_home() -> None:
    """Let this process look at the environment again."""
    paths.cache_clear()
    settings.cache_clear()


@pytest.fixture(scope="session")
def starter() -> Path:
    """The real starter model in a models folder of its own, verified."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localchat-tests"
    script = "from localchat.models.fetch import ensure; print(ensure('smollm2-135m').path)"
    environment = {**os.environ, "LOCALCHAT_HOME": str(cache)}
    environment.pop("LOCALCHAT_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty LOCALCHAT_HOME; a host that a test leaves running there is ended."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LOCALCHAT_HOME", str(folder))
    for name in ("LOCALCHAT_TOKEN", "LOCALCHAT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    forget_home()
    yield folder
    stop_host(folder)
    forget_home()


@pytest.fixture
def home(empty_home: Path, starter: Path) -> Path:
    """A LOCALCHAT_HOME in which the starter is installed."""
    install(starter, empty_home)
    return empty_home


def install(model: Path, home: Path) -> Path:
    """Put a store's model with its record into another home, linked where the file system allows."""
    relative = model.relative_to(model.parents[2])
    target = home / "models" / relative
    target.parent.mkdir(parents=True)
    try:
        os.link(model, target)
    except OSError:
        shutil.copy2(model, target)
    record = json.loads(Path(f"{model}.json").read_text())
    Path(f"{target}.json").write_text(json.dumps({**record, "inode": target.stat().st_ino}))
    return target


def run_cli(*arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the `localchat` command in a process of its own, with nothing piped in unless `input` says so."""
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    return subprocess.run(
        [sys.executable, "-m", "localchat", *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home), **options.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def stop_host(home: Path) -> None:
    """End the host of a home, if one runs."""
    run_cli("stop", home=home)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Path]:
    """A LOCALCHAT_HOME with the starter, whose host stays for all tests of a module."""
    folder = tmp_path_factory.mktemp("warm") / "home"
    install(starter, folder)
    yield folder
    stop_host(folder)


def start_cli(*arguments: str, home: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start the `localchat` command and leave it running; its output comes as bytes."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "localchat", *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home), **options.pop("env", {})},
        **options,
    )


def status_of(home: Path) -> dict[str, Any] | None:
    """What the host of a home says of itself; None where none listens."""
    connection = UnixConnection(home / "run" / "host.sock")
    try:
        connection.connect()
        connection.request("GET", "/localchat/status")
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def wait_for(condition: Callable[[], T], seconds: float = 30.0) -> T:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
