"""The thread that writes what models have read: answers go on while it hashes and waits for the disk.

It lives as long as the engine, over all models. What it cannot write is said on stderr and forgotten; what waits to be
written takes no more than a fixed amount of memory.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localchat.machine import engine_stamp
from localchat.prefix_file import Buffer, Header
from localchat.prefixes import PrefixStore, known_hashes, remember_hash

if TYPE_CHECKING:
    from localchat.engine.job import ModelSpec

MOST_WAITING_BYTES = 64 << 20
"""How much may wait to be written; a single piece may be larger."""

_HASH_STEP = 4 << 20


class PrefixSaver:
    """The store and the thread that writes to it; `folder` may take `cap` bytes."""

    def __init__(self, folder: Path, cap: int) -> None:
        self.engine = engine_stamp()
        self.store = PrefixStore(folder, cap, self.engine)
        self.loaded = threading.Event()
        self.idle = threading.Event()
        """Set while the engine computes nothing: hashing a model's file can wait until then."""
        self._hashing: set[str] = set()
        self._tried: set[tuple[str | int, ...]] = set()
        self._queue: deque[tuple[Header, Buffer, int] | Callable[[], None]] = deque()
        self.most_waiting = MOST_WAITING_BYTES
        """How many bytes may wait to be written; may be lowered at any time."""
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="prefix cache", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that nothing should be added."""
        return self._waiting_bytes >= self.most_waiting

    @property
    def is_empty(self) -> bool:
        """Whether all is written."""
        return not self._queue

    def put(self, header: Header, payload: Buffer, cleared: int) -> None:
        """Have an entry written, unless the cache was cleared after `cleared` (`PrefixStore.cleared`)."""
        with self._changed:
            self._waiting_bytes += len(payload)
            self._queue.append((header, payload, cleared))
            self._changed.notify_all()

    def _write(self, header: Header, payload: Buffer, cleared: int) -> None:
        if self.store.cleared != cleared or not self.store.put(header, payload):
            return
        written = self.store.index.get(header.id)
        if written and self.store.cleared != cleared:
            self.store.remove(written)

    def later(self, task: Callable[[], None]) -> None:
        """Have something small done to the store, after all that was asked before."""
        with self._changed:
            self._queue.append(task)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until there is room in the queue; False where there is none in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_full, seconds)

    def close(self, seconds: float) -> None:
        """Write what waits, for at most so long; what is not written by then is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.idle.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        self._guarded(self.store.load)
        self.loaded.set()
        while True:
            with self._changed:
                while not (self._queue or self._closing):
                    self._changed.wait()
                if not self._queue:
                    return
                work = self._queue[0]
            if callable(work):
                self._guarded(work)
            else:
                self._guarded(partial(self._write, *work))
            with self._changed:
                # Only now: what is being written takes memory too, and is not to be planned again.
                self._queue.popleft()
                self._waiting_bytes -= 0 if callable(work) else len(work[1])
                del work
                self._changed.notify_all()

    def _guarded(self, task: Callable[[], object]) -> None:
        """Whatever is wrong with the cache, the thread goes on: answers do not depend on it."""
        try:
            task()
        except Exception as error:
            with suppress(OSError, ValueError):
                print(f"prefix cache: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def is_hashing(self, spec: ModelSpec) -> bool:
        """Whether the file of a model is being hashed."""
        return str(spec.path) in self._hashing

    def sha256(self, spec: ModelSpec) -> str:
        """The hash of a model's file, "" where nobody knows it yet: then it is found out when there is time."""
        if spec.sha256:
            return spec.sha256
        path, file = str(spec.path), list(spec.version)
        known = known_hashes(self.store.folder).get(path)
        if known and known[1:] == file:
            return str(known[0])
        if (path, *file) not in self._tried:
            self._tried.add((path, *file))
            self._hashing.add(path)
            threading.Thread(target=self._guarded, args=(lambda: self._hash(spec),), daemon=True).start()
        return ""

    def _hash(self, spec: ModelSpec) -> None:
        try:
            self._hash_and_remember(spec)
        finally:
            self._hashing.discard(str(spec.path))

    def _hash_and_remember(self, spec: ModelSpec) -> None:
        digest = hashlib.sha256()
        with spec.path.open("rb", buffering=0) as file:
            while part := file.read(_HASH_STEP):
                digest.update(part)
                self.idle.wait()
                if self._closing:
                    return
        if spec.is_current():  # else it changed meanwhile
            remember_hash(self.store.folder, spec.path, digest.hexdigest(), spec.version)
