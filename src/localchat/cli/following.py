"""What the commands that look after model files share: a line that follows the reading, and questions to the person."""

from __future__ import annotations

import sys

from localchat.cli.progress import ProgressLine, seconds, size, write_aside
from localchat.errors import Interrupted, UsageError
from localchat.models.transfer.progress import FetchProgress, OnProgress


def following(line: ProgressLine) -> OnProgress:
    """Shows how far the reading, hashing or copying of a file is."""

    def show(state: FetchProgress) -> None:
        if state.notice:
            line.note(state.notice)
        elif state.total:
            line.show(describe(state))

    return show


def describe(state: FetchProgress) -> str:
    """How far something is, in a few words."""
    speed = f", {size(state.bytes_per_second)}/s" if state.bytes_per_second else ""
    left = f", {seconds(state.eta)} left" if state.eta is not None and state.eta >= 1 else ""
    return f"{state.source}: {state.done / state.total:.0%} of {size(state.total)}{speed}{left}"


def can_ask() -> bool:
    """Whether somebody is there to answer: what is asked goes to stderr, so that stdout may be a pipe."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> str:
    """Ask the person; the answer, lower case. Raises `Interrupted` where there is none."""
    write_aside(question)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        write_aside("\n")
        raise
    if not answer:
        write_aside("\n")
        raise Interrupted("no answer: nothing was changed")
    return answer.strip().lower()


def confirmed(question: str, yes: bool, command: str) -> bool:
    """Whether to go on: said beforehand with --yes, or by the person. Raises `UsageError` where nobody can be asked."""
    if yes:
        return True
    if not can_ask():
        raise UsageError(f"nobody can be asked here: `{command} --yes` goes on without asking")
    return ask(f"{question} [y/N] ") in ("y", "yes")


def files(count: int) -> str:
    """A number of files, in words."""
    return "1 file" if count == 1 else f"{count} files"
