"""The sha256 of a file that is still growing: a thread follows the bytes that are there from the beginning on.

A sha256 can only be taken in order. Taken while the rest is still on its way, with bytes that the system has in memory
anyway, it costs no second pass over a large file at the end.
"""

from __future__ import annotations

import hashlib
import threading

from localchat.models.transfer.sparse_file import SparseFile

_STEP = 1 << 20


class FrontHash:
    """The hash of the first `done` bytes of a file. `close` must come before the file's own."""

    def __init__(self, file: SparseFile) -> None:
        self.done = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._front = 0
        self._closed = False
        self._error: OSError | None = None
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes from memory; only before the first `follow`."""
        self._digest.update(data)
        self.done += len(data)

    def follow(self, front: int) -> None:
        """Hash as far as byte `front`, in the background."""
        with self._moved:
            self._front = front
            if front > self.done and not self._thread:
                self._thread = threading.Thread(target=self._run, name="localchat-hash", daemon=True)
                self._thread.start()
            self._moved.notify_all()

    def wait(self, done: int, seconds: float) -> bool:
        """Whether `done` bytes are hashed, waited for. Raises `OSError` where they could not be read."""
        with self._moved:
            self._moved.wait_for(lambda: self._error or self.done >= done, seconds)
            if self._error:
                raise self._error
            return self.done >= done

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Stop following."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._closed or self._front > self.done)
                if self._closed:
                    return
                wanted = min(_STEP, self._front - self.done)
            try:
                data = self._file.read_at(self.done, wanted)
                if not data:
                    raise OSError(0, "the file became shorter")
            except OSError as error:
                with self._moved:
                    self._error = error
                    self._moved.notify_all()
                return
            self._digest.update(data)
            with self._moved:
                self.done += len(data)
                self._moved.notify_all()
