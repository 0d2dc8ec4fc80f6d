"""What a person gives to `ask`: words, standard input, files; taken as words and attachments, or refused with why."""

from __future__ import annotations

import sys
from pathlib import Path

from localchat.chats.attachments import read, stream
from localchat.chats.records import Attachment

_OPEN_FILES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""Where a shell shows what it has opened for a command, as in `-f <(git diff)`: a pipe that somebody writes to."""


def compose(words: str, files: tuple[str, ...]) -> tuple[str, list[Attachment]]:
    """The words of a prompt and what goes with them: files, then standard input where it is piped.

    Raises `UsageError` for a file that cannot be read or is no text.
    """
    attachments = attached(files)
    if not sys.stdin.isatty() and "-" not in files:
        piped = stream(sys.stdin.buffer, "standard input").strip("\n")
        if piped.strip():
            attachments.append(Attachment("", piped))
    return words, attachments


def attached(files: tuple[str, ...]) -> list[Attachment]:
    """The files of `-f`, "-" for standard input. Raises `UsageError` for one that cannot be read or is no text."""
    return [_attachment(name) for name in files]


def _attachment(name: str) -> Attachment:
    if name == "-":
        return Attachment("standard input", stream(sys.stdin.buffer, "standard input"))
    path = Path(name)
    if name.startswith(_OPEN_FILES) and path.is_fifo():
        with path.open("rb") as pipe:
            return Attachment(path.name, stream(pipe, name))
    return read(path)
