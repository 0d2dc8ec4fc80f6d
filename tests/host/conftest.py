"""A host that listens on TCP, for all tests of a module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import install, start_cli


@dataclass(frozen=True)
class Server:
    """`localchat serve --port 0`, and how to get in."""

    home: Path
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server") / "home"
    install(starter, home)
    token = "a-token-for-tests"
    running = start_cli("serve", "--port", "0", home=home, env={"LOCALCHAT_TOKEN": token})
    assert running.stderr
    said = running.stderr.readline().decode()
    listening = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    assert listening, said
    yield Server(home, int(listening[1]), token)
    running.terminate()
    running.communicate(timeout=60)
