"""Bytes of a GGUF, wherever they are, and a reader of them that believes no length. Used by `gguf` alone.

Every read is checked against the file's size before it happens, and what is kept in memory is capped.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NoReturn, Protocol

from localchat.errors import DamagedFile
from localchat.safe_text import safe_line

Scalar = int | float | bool | str

MAX_KEPT = 32 << 20
"""Bytes of metadata that are kept; real models have a tenth of it."""

BOOL = 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata types that are numbers, as `struct` knows them."""

NUMBER_BYTES = {kind: struct.calcsize("<" + code) for kind, code in NUMBERS.items()}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Source(Protocol):
    """Where the bytes come from: a file here, or ranges of a file far away."""

    @property
    def size(self) -> int:
        """Bytes in the whole file."""

    @property
    def window(self) -> int:
        """Bytes that are best read at once."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`; fewer than `length` only at the end of the file."""


class FileSource:
    """An open file as a `Source`."""

    # Long enough that a vocabulary takes few reads, short enough for a memory that does not grow with the file.
    window = 1 << 20

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`; fewer than `length` only at the end of the file."""
        self._file.seek(offset)
        return self._file.read(length)


class Reader:
    """A place in the file, with a window of bytes around it that is refilled as the reading moves on."""

    def __init__(self, source: Source, label: str) -> None:
        self._source = source
        self._label = label
        self._window = b""
        self._start = 0  # of the window in the file
        self._at = 0  # of the next byte in the window
        self.kept = 0

    @property
    def position(self) -> int:
        """The offset of the next byte in the file."""
        return self._start + self._at

    @property
    def size(self) -> int:
        """Bytes in the whole file."""
        return self._source.size

    def fail(self, fault: str) -> NoReturn:
        """Raise `DamagedFile` with this fault."""
        raise DamagedFile(f"{self._label} is damaged or not a model ({safe_line(fault)}): fetch or copy the file again")

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        end = self._at + length
        if end > len(self._window):
            self._refill(length)
            end = length
        part = self._window[self._at : end]
        self._at = end
        return part

    def skip(self, length: int) -> None:
        """Pass over bytes without reading them."""
        if length > self.size - self.position:
            self._cut_short()
        self._at += length

    def u32(self) -> int:
        """The next unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def string(self, limit: int) -> str:
        """The next string; bytes that are not UTF-8 become replacement marks, which no key of ours contains."""
        length = self.u64()
        if length > self.size - self.position:
            self._cut_short()
        self.kept += length
        if length > limit or self.kept > MAX_KEPT:
            self.fail(f"a text of {length} bytes stands where a short one belongs")
        return self.take(length).decode("utf-8", "replace")

    def numbers(self, kind: int, count: int) -> tuple[Scalar, ...]:
        """The next `count` numbers of a metadata type."""
        self.kept += 8 * count
        if self.kept > MAX_KEPT:
            self.fail("its metadata are far larger than a model's")
        return struct.unpack(f"<{count}{NUMBERS[kind]}", self.take(count * NUMBER_BYTES[kind]))

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, looking at nothing but their lengths."""
        unpack = _U64.unpack_from
        while count:
            window, at = self._window, self._at
            left = count
            try:
                while left:
                    (length,) = unpack(window, at)
                    at += 8 + length
                    left -= 1
            except (struct.error, OverflowError):
                pass  # ran off the window, which the check below tells from running off the file
            if self._start + at > self.size:
                self._cut_short()
            self._at = at
            if left == count:
                self._refill(8)
            count = left

    def _refill(self, length: int) -> None:
        """Move the window here, with at least `length` bytes in it."""
        position = self.position
        if length > self.size - position:
            self._cut_short()
        self._window = self._source.read(position, max(length, self._source.window))
        self._start, self._at = position, 0
        if len(self._window) < length:
            self._cut_short()

    def _cut_short(self) -> NoReturn:
        self.fail("it is cut short, or a length in its header is wrong")
