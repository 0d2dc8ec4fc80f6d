"""What a person gives to `ask`: words, standard input, files; made into one prompt, or refused with the reason."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path

from localchat.errors import UsageError
from localchat.safe_text import safe_line

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def compose(words: str, files: tuple[str, ...]) -> str:
    """One prompt: files with their names, standard input where it is piped, and the words last.

    What is long comes first and what changes comes last, so that a second question about the same text finds it read.
    Raises `UsageError` for a file that cannot be read or is no text.
    """
    parts = [_fenced(name) for name in files]
    if not sys.stdin.isatty() and "-" not in files:
        piped = _text(sys.stdin.buffer.read(), "standard input").strip("\n")
        if piped.strip():
            parts.append(piped)
    if words.strip():
        parts.append(words)
    return "\n\n".join(parts)


def _fenced(name: str) -> str:
    """A file as the prompt shows it: its name, then its text in a fence that the text cannot close."""
    text = _read(name).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{'standard input' if name == '-' else Path(name).name}:\n{fence}\n{text}\n{fence}"


def _read(name: str) -> str:
    if name == "-":
        return _text(sys.stdin.buffer.read(), "standard input")
    shown = safe_line(name)
    try:
        return _text(Path(name).read_bytes(), shown)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {shown}: check the name after -f") from error
    except IsADirectoryError as error:
        raise UsageError(f"{shown} is a folder: name the files in it, each with -f") from error
    except OSError as error:
        raise UsageError(f"cannot read {shown} ({error.strerror}): make it readable, or leave it out") from error


def _text(raw: bytes, name: str) -> str:
    """Bytes as text: UTF-8, or what a byte order mark says."""
    encoding = next((encoding for mark, encoding in _BOMS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in raw[:8192]:
            raise UsageError(f"{name} is not text but binary data: give a text file") from error
        raise UsageError(
            f"{name} is not UTF-8 text (byte {raw[error.start]:#04x} at position {error.start}): "
            "convert it first, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    if "\0" in text:
        raise UsageError(f"{name} is not text but binary data: give a text file")
    return text
