"""Tables with bars in them, for stdout: in plain letters where the terminal or the locale has no others. No colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_WIDTH = 24


def has_unicode() -> bool:
    """Whether stdout takes more than ASCII, and is no terminal that cannot show it."""
    return "utf" in (sys.stdout.encoding or "").lower() and os.environ.get("TERM") not in ("dumb", "linux")


def bar(value: float | None, most: float, width: int = _WIDTH) -> str:
    """A bar for `value`, as long as it is of `most`; something that is not nothing is seen."""
    if not value or most <= 0:
        return ""
    length = min(1.0, value / most) * width
    if not has_unicode():
        return "#" * max(1, round(length))
    eighths = max(1, round(length * 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows in columns, the first row a heading; the first `left` columns and the last stand left, figures right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1

    def cell(text: str, index: int) -> str:
        return text.ljust(widths[index]) if index < left or index == last else text.rjust(widths[index])

    return "\n".join("  ".join(cell(text, index) for index, text in enumerate(row)).rstrip() for row in rows)


def figure(value: float | None) -> str:
    """A speed for people: two or three digits that mean something."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def times(ratio: float) -> str:
    """A ratio for people."""
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"
