"""A file that several threads write and read at places of their own. Bytes between written ones are holes."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


class SparseFile:
    """An open file. Raises `OSError` where the disk does, and at any use after `close`."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(path, flags, 0o600)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes up to the last one that was ever written, holes included."""
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        """Cut the file."""
        os.ftruncate(self._descriptor, size)

    def write_at(self, start: int, data: bytes) -> None:
        """Write all of `data` from byte `start` on."""
        left = memoryview(data)
        while left:
            written = self._write(start, left)
            start, left = start + written, left[written:]

    def read_at(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on; fewer only at the end of the file."""
        data = b""
        while len(data) < length and (more := self._read(start + len(data), length - len(data))):
            data = data + more if data else more
        return data

    def close(self) -> None:
        """Close the file; no thread may use it any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    if sys.platform == "win32":
        # There the place belongs to the open file, so that moving it and using it must be one step.
        def _write(self, start: int, data: memoryview) -> int:
            with self._lock:
                os.lseek(self._descriptor, start, os.SEEK_SET)
                return os.write(self._descriptor, data)

        def _read(self, start: int, length: int) -> bytes:
            with self._lock:
                os.lseek(self._descriptor, start, os.SEEK_SET)
                return os.read(self._descriptor, length)

    else:

        def _write(self, start: int, data: memoryview) -> int:
            return os.pwrite(self._descriptor, data, start)

        def _read(self, start: int, length: int) -> bytes:
            return os.pread(self._descriptor, length, start)
