"""A process of its own that prints JSON lines while it measures: read as they come, and ended with whoever reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from threading import Timer
from types import TracebackType
from typing import IO, Generic, TypeVar

import msgspec

Line = TypeVar("Line")


class Child(Generic[Line]):
    """`python ARGUMENTS`, whose lines of stdout are of `kind`; others are passed over. To be used as a context.

    It is killed at the end of the context, and after `timeout_s` seconds: then it `was_overdue`.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        kind: type[Line],
        timeout_s: float,
        stderr: IO[bytes] | int = subprocess.DEVNULL,
    ) -> None:
        self._kind = kind
        self.was_overdue = False
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
        self._timer = Timer(timeout_s, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.was_overdue = True
        self._process.kill()

    def __iter__(self) -> Iterator[Line]:
        """The lines as they come."""
        assert self._process.stdout
        for raw in self._process.stdout:
            try:
                line = msgspec.json.decode(raw, type=self._kind)
            except msgspec.DecodeError:
                continue  # not a line of ours
            yield line

    def exit_code(self) -> int:
        """How it ended, once it has printed its last line; negative: by which signal."""
        return self._process.wait()

    def __enter__(self) -> Child[Line]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.__exit__(kind, value, tb)
