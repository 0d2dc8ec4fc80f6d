"""kill -9 in mid-download (T2): every run after it ends at the right bytes, and nothing partial looks like a model."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import localchat
from localchat.models import store
from localchat.models.fetch import ensure
from tests.loopback_hub import LoopbackHub
from tests.models.conftest import FILE, REPO, Offer, forget, place

FETCH = "from localchat.models.fetch import ensure; ensure('tiny')"


def start_fetch(home: Path, hub: LoopbackHub) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "LOCALCHAT_HOME": str(home),
        "HF_ENDPOINT": hub.url,
        "PYTHONPATH": str(Path(localchat.__file__).parents[1]),
    }
    return subprocess.Popen([sys.executable, "-c", FETCH], env=environment)


def kill_and_resume(home: Path, hub: LoopbackHub, content: bytes, at: int) -> None:
    """Kill a fetch once `at` bytes are on disk, then let this process finish it."""
    hub.bytes_per_second = 20e6
    hub.requests.clear()
    partial = place(home).with_name(FILE + ".partial")
    process = start_fetch(home, hub)
    try:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if partial.exists() and partial.stat().st_size >= at:
                break
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    finished = place(home).exists()
    assert [model.path for model in store.installed()] == ([place(home)] if finished else [])
    kept = 0 if finished else partial.stat().st_size
    hub.bytes_per_second = None
    hub.requests.clear()
    model = ensure("tiny")
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == hashlib.sha256(content).hexdigest() == model.sha256
    assert not partial.exists()
    if not finished and 0 < kept < len(content):
        (get,) = hub.asked("GET")
        assert get.headers["range"] == f"bytes={kept}-", "bytes that were there were fetched again"
    for path in (place(home), place(home).with_name(FILE + ".json")):
        path.unlink()
    forget()


def rounds(home: Path, hub: LoopbackHub, content: bytes, offer: Offer, count: int) -> None:
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    hub.add(REPO, FILE, content)
    offer(content)
    for number in range(count):
        at = chance.randrange(len(content))
        try:
            kill_and_resume(home, hub, content, at)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, round {number}, killed at {at:,} bytes: {error!r}") from error


def test_a_few_kills(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    rounds(home, hub, bigger, offer, 4)


@pytest.mark.slow
def test_many_kills(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    rounds(home, hub, bigger, offer, 200)


def test_a_killed_holder_of_the_lock_blocks_nobody(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 1e6
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
