"""What a partial remembers of itself: one line for each unit of bytes that was written, with the unit's sha256.

The journal is a claim, never a proof: whoever opens a partial hashes each unit on the disk again and keeps those that
match. That is why nothing here waits for the disk. A unit is handed to the kernel before its line is; a killed process
loses neither, because both are in the kernel's hands. A power cut may lose either one or both, in any order: a unit
without its line is fetched again, and a line without its unit does not match. Waiting for the disk after every unit
would halve the speed of a fast network and make no byte more certain. A line that was cut short is no line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

UNIT_LIMIT = 4 << 20
"""Bytes of the largest unit that is believed: each is read into memory as a whole."""
_LONGEST = 64 << 20
"""Bytes of the longest journal that is read: that of a file of some 300 GB."""

_LINE = re.compile(rb"(\d{1,18}) (\d{1,9}) ([0-9a-f]{64})\n")


class Unit(NamedTuple):
    """Bytes of a file that were written in one go; `sha256` is empty where nobody noted it."""

    start: int
    length: int
    sha256: str = ""

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.start + self.length


class Journal:
    """The journal of one partial, open for adding lines. Raises `OSError` where the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def read(self, size: int) -> list[Unit]:
        """The units of an earlier run that lie within a file of `size` bytes, in the order of the file."""
        try:
            with self.path.open("rb") as file:
                lines = file.read(_LONGEST).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = [_LINE.fullmatch(line) for line in lines]
        units = {Unit(int(match[1]), int(match[2]), match[3].decode()) for match in found if match}
        return sorted(unit for unit in units if 0 < unit.length <= UNIT_LIMIT and unit.end <= size)

    def begin(self, units: Iterable[Unit] = ()) -> None:
        """Replace the journal by one that holds `units`, all of it or nothing, and go on from there."""
        self.close()
        new = self.path.with_name(self.path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.writelines(_line(unit) for unit in units)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(self.path, flags)

    def add(self, unit: Unit) -> None:
        """Note a unit whose bytes were written."""
        os.write(self._descriptor, _line(unit))

    def close(self) -> None:
        """Close the file; it stays for another time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _line(unit: Unit) -> bytes:
    return b"%d %d %s\n" % (unit.start, unit.length, unit.sha256.encode())
