"""One finding of the doctor, and how a page of them looks."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from localchat.errors import LocalchatError
from localchat.safe_text import safe_line

State = Literal["ok", "warning", "problem"]

_COLOURS: dict[State, str] = {"ok": "32", "warning": "33", "problem": "31"}
_STATE_WIDTH, _WHAT_WIDTH = 9, 10
_WIDEST = 110


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was looked at, what was found, and the next step where it is not as it should be."""

    state: State
    what: str
    found: str
    next: str = ""


Check = Callable[[], Iterable[Finding]]


def examined(what: str, check: Check) -> list[Finding]:
    """What `check` finds; where it fails, that is a finding too, and the rest of the page goes on."""
    try:
        return list(check())
    except LocalchatError as error:
        return [Finding("problem", what, error.message)]
    except Exception as error:  # a machine stranger than we thought
        return [Finding("warning", what, f"could not be looked at ({type(error).__name__}: {error})")]


def page(findings: Iterable[Finding]) -> str:
    """All findings: in columns on a terminal, one line each elsewhere."""
    is_terminal = sys.stdout.isatty()
    coloured = is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = min(shutil.get_terminal_size().columns, _WIDEST) if is_terminal else 0
    return "\n".join(_shown(finding, width, coloured) for finding in findings)


def _shown(finding: Finding, width: int, coloured: bool) -> str:
    # Padded before it is coloured: an escape sequence has a length, and no width.
    state = f"{finding.state:<{_STATE_WIDTH}}"
    if coloured:
        state = f"\x1b[{_COLOURS[finding.state]}m{state}\x1b[0m"
    what = f"{safe_line(finding.what):<{_WHAT_WIDTH}} "
    found, following = safe_line(finding.found), safe_line(finding.next)
    if not width:
        return state + what + found + (f"; next: {following}" if following else "")
    indent = " " * (_STATE_WIDTH + _WHAT_WIDTH + 1)
    room = max(20, width - len(indent))
    lines = textwrap.wrap(found, room, break_on_hyphens=False)
    if following:
        # What is to be typed is not cut in two, so that it can be copied.
        lines += textwrap.wrap(
            f"next: {following}",
            room,
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return state + what + f"\n{indent}".join(lines)


def summary(findings: list[Finding]) -> str:
    """The page in one line."""
    counts = {state: sum(finding.state == state for finding in findings) for state in ("problem", "warning")}
    if not any(counts.values()):
        return "All is well."
    return ", ".join(f"{count or 'no'} {state}{'' if count == 1 else 's'}" for state, count in counts.items()) + "."
