"""Which bytes of a file are there: a handful of disjoint spans, half open, as ranges arrive in any order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

Span = tuple[int, int]
"""First byte, and the byte after the last."""


class Spans:
    """A set of bytes. Spans that touch become one, so that there are never more than there are gaps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        """How many bytes there are."""

    @property
    def front(self) -> int:
        """How many bytes there are from the beginning without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` to before `end`; some or all of them may be there already."""
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self.total += end - start - sum(self._ends[first:last]) + sum(self._starts[first:last])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def missing(self, size: int) -> list[Span]:
        """The gaps in a file of `size` bytes."""
        edges = zip([0, *self._ends], [*self._starts, size], strict=True)
        return [(start, end) for start, end in edges if start < end]
