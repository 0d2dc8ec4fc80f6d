"""kill -9 in mid-download (T2): every run after it ends at the right bytes, and nothing partial looks like a model.

At most one chunk of 16 MiB is fetched again, although eight connections write at once.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import localchat
from localchat.models import store
from localchat.models.fetch import ensure
from tests.loopback_hub import LoopbackHub
from tests.models.conftest import FILE, REPO, Offer, asked_bytes, forget, hub_source, make_gguf, place

FETCH = """
import sys
from localchat.models.transfer import ranges
ranges.ONE_STREAM_BELOW, ranges.CHUNK = int(sys.argv[1]), int(sys.argv[2])
from localchat.models.fetch import ensure
ensure('tiny')
"""
CHUNK = 16 << 20


def start_fetch(home: Path, hub: LoopbackHub, *, one_stream_below: int = 32 << 20) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "LOCALCHAT_HOME": str(home),
        "HF_ENDPOINT": hub.url,
        "PYTHONPATH": str(Path(localchat.__file__).parents[1]),
    }
    arguments = [str(one_stream_below), str(min(CHUNK, one_stream_below))]
    return subprocess.Popen([sys.executable, "-c", FETCH, *arguments], env=environment)


def kill_and_resume(home: Path, hub: LoopbackHub, content: bytes, at: int, one_stream_below: int) -> int:
    """Kill a fetch once `at` bytes were sent, then let this process finish it; return the bytes fetched again."""
    hub.bytes_per_second = 20e6
    hub.requests.clear()
    partial = place(home).with_name(FILE + ".partial")
    process = start_fetch(home, hub, one_stream_below=one_stream_below)
    try:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if sum(get.sent for get in hub.asked("GET")) >= at:
                break
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    finished = place(home).exists()
    assert [model.path for model in store.installed()] == ([place(home)] if finished else [])
    sent = asked_bytes(hub.asked("GET"), len(content), sent=True)
    hub.bytes_per_second = None
    hub.requests.clear()
    model = ensure("tiny")
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == hashlib.sha256(content).hexdigest() == model.sha256
    assert not list(partial.parent.glob(f"{partial.name}*"))
    again = asked_bytes(hub.asked("GET"), len(content)) & sent
    for path in (place(home), place(home).with_name(FILE + ".json")):
        path.unlink()
    forget()
    return np.count_nonzero(again)


def rounds(
    home: Path, hub: LoopbackHub, content: bytes, offer: Offer, count: int, one_stream_below: int = 32 << 20
) -> None:
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    hub.add(REPO, FILE, content)
    # As a plain address: the hub's own library takes longer to import than the fetch takes.
    offer(content, f'kind = "mirror"\nurl = "{hub.url}/{REPO}/resolve/main/{{file}}"', hub_source())
    most = 0
    for number in range(count):
        at = chance.randrange(len(content))
        try:
            again = kill_and_resume(home, hub, content, at, one_stream_below)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, round {number}, killed at {at:,} bytes: {error!r}") from error
        most = max(most, again)
        assert again <= CHUNK, f"seed {seed}, round {number}, killed at {at:,} bytes: {again:,} fetched again"
    print(f"at most {most:,} bytes fetched again")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of 64 MiB."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "large.gguf", tensor_rows=(64 << 20) // 256, seed=3)


@pytest.fixture(scope="session")
def medium(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of 8 MiB."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "medium.gguf", tensor_rows=(8 << 20) // 256, seed=4)


def test_kills_in_one_stream(home: Path, hub: LoopbackHub, medium: bytes, offer: Offer) -> None:
    rounds(home, hub, medium, offer, 6)


def test_kills_while_several_connections_write(home: Path, hub: LoopbackHub, medium: bytes, offer: Offer) -> None:
    rounds(home, hub, medium, offer, 9, one_stream_below=2 << 20)


@pytest.mark.slow
def test_many_kills(home: Path, hub: LoopbackHub, large: bytes, offer: Offer) -> None:
    rounds(home, hub, large, offer, 200)


def test_a_killed_holder_of_the_lock_blocks_nobody(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 20e3
    offer(bigger)
    process = start_fetch(home, hub)
    lock = place(home).with_name(f".{FILE}.lock")
    while not lock.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert lock.exists()
    hub.bytes_per_second = None
    assert ensure("tiny").path == place(home)
    assert not lock.exists()
