"""One line on stderr that says how far something is; only where a person watches, and gone when it is over."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from localchat.protocol import Progress
from localchat.safe_text import safe_line

_EVERY_S = 0.1
_PLAIN_EVERY_S = 10.0
_BAR = 20


def seconds(value: float) -> str:
    """A duration for people: "4 s", "2 min 05 s"."""
    whole = max(0, round(value))
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02} s"


def size(count: float) -> str:
    """A size for people, in decimal units as shops and downloads use them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit != "MB" else f"{count:.1f} MB"
        count /= 1000
    return f"{count:.1f} GB"


def _is_watched() -> bool:
    """Whether stderr is a terminal on which a line can be overwritten."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def bar(share: float) -> str:
    """A bar for a person who watches, and nothing where nobody does."""
    if not _is_watched():
        return ""
    done = round(_BAR * min(1.0, max(0.0, share)))
    full, empty = ("━", "─") if "utf" in (sys.stderr.encoding or "").lower() else ("#", ".")
    return full * done + empty * (_BAR - done) + " "


def describe(progress: Progress, model: str) -> str:
    """What the engine is doing, in a few words."""
    left = f", {seconds(progress.eta_ms / 1000)} left" if progress.eta_ms and progress.eta_ms >= 1000 else ""
    if progress.stage == "loading":
        # A file outside the store goes by its whole path, which would push the figures out of the line.
        name = model.rpartition("/")[2] if model.startswith("/") else model
        return f"loading {name or 'the model'}: {progress.done / (progress.total or 1):.0%}{left}"
    if progress.stage == "reading":
        cached = f", {progress.cached:,} from the cache" if progress.cached else ""
        return f"reading the prompt: {progress.done:,.0f} of {progress.total:,.0f} tokens{cached}{left}"
    return "waiting for other requests"


def write_aside(text: str) -> None:
    """Write to stderr; where that cannot be, nothing is said: it must not end what stdout is there for."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


class ProgressLine:
    """A line that is overwritten in place on a terminal. Elsewhere, only `note` writes, and a download now and then."""

    def __init__(self) -> None:
        self._is_terminal = _is_watched()
        self._shown = False
        self._due = 0.0

    def show(self, text: str, *, also_plain: bool = False) -> None:
        """Show `text` instead of what is shown; `also_plain` as a line of its own, rarely, where nobody watches."""
        now = time.monotonic()
        if now < self._due or not (self._is_terminal or also_plain):
            return
        self._due = now + (_EVERY_S if self._is_terminal else _PLAIN_EVERY_S)
        text = safe_line(text)
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._shown = True  # before it is: Ctrl+C may come between the two
            write_aside(f"\r\x1b[K{text[:width]}")
        else:
            write_aside(f"localchat: {text}\n")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            write_aside("\r\x1b[K")
            self._shown = False

    def note(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        write_aside(f"localchat: {safe_line(text)}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.clear()
