from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from localchat.locks import FileLock

HOLDER = """
import sys, time
from pathlib import Path
from localchat.locks import FileLock
FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_excludes_within_one_process(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire(blocking=False)
    first.release()
    assert second.acquire(blocking=False)
    second.release()


def test_is_private_and_stays(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as lock:
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
        assert lock.held
    assert (tmp_path / "lock").exists()
    assert not lock.held


def test_is_removed_when_asked(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock", remove=True):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_is_not_taken_twice_by_one_object(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as lock, pytest.raises(RuntimeError):
        lock.acquire()


def test_death_frees_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire(blocking=False)
    began = time.monotonic()
    threading.Timer(0.2, holder.kill).start()
    assert lock.acquire()
    assert 0.1 < time.monotonic() - began < 30
    lock.release()
    holder.wait()
    holder.stdout.close()


def test_removal_never_lets_two_in(tmp_path: Path) -> None:
    """Whoever waits on a removed file must notice that it is no longer the lock."""
    inside = overlaps = rounds = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, overlaps, rounds
        for _ in range(60):
            with FileLock(tmp_path / "lock", remove=True):
                with guard:
                    inside += 1
                    overlaps += inside > 1
                time.sleep(0.0005)
                with guard:
                    inside -= 1
                    rounds += 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (overlaps, rounds) == (0, 240)
