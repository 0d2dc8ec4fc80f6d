"""Files that go with a message, as text: text and code as they are, the text of a PDF's pages, or why there is none.

A PDF is read in a process of its own (`pdf_process`), as the engine does it with chat templates: a file from elsewhere
can have a parser loop or grow without end, and a process can be limited and killed. It gets the open file, not a name.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from localchat.chats.records import Attachment
from localchat.errors import UsageError
from localchat.safe_text import safe_line

FILE_LIMIT_BYTES = 20_000_000
TEXT_LIMIT_CHARACTERS = 4_000_000
"""More than the context window of any model holds."""

PDF_LIMIT_S = 30.0
_PDF_SCRIPT = Path(__file__).with_name("pdf_process.py")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif"}
_PDF_PROBLEMS = {
    "encrypted": "is protected by a password: save a copy of it without one",
    "scanned": "is a PDF with no text in it, perhaps scanned: run text recognition over it first (`ocrmypdf`)",
    "heavy": "is a PDF that takes too much memory or time to read: attach a part of it",
    "broken": "is not a PDF that can be read: it may be damaged, so open it in a viewer and save it anew",
}


def read(path: Path) -> Attachment:
    """A file as an attachment. Raises `UsageError` with one sentence where it is none that a model can read."""
    name = safe_line(str(path))
    try:
        with opened(path, name) as file:
            if path.suffix.lower() in _PICTURES:
                raise UsageError(f"{name} is a picture, and no model is given pictures yet: say in words what it shows")
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT_BYTES:
                raise UsageError(f"{name} is too large ({size / 1e6:,.0f} MB): {_too_large()}")
            start = file.read(1024)
            if start.lstrip().startswith(b"%PDF-") or path.suffix.lower() == ".pdf":
                text = _pdf_text(file, name)
            else:
                # A file under /proc has no size, and one that is being written may have grown.
                text = decoded(start + file.read(FILE_LIMIT_BYTES), name)
    except OSError as error:
        raise _unreadable(error, name) from error
    except ValueError as error:  # a name that no file system can hold
        raise UsageError(f"there is no file {name}: check the name") from error
    if not text.strip():
        raise UsageError(f"{name} is empty: there is nothing in it to attach")
    return Attachment(safe_line(path.name), text)


def stream(file: BinaryIO, name: str) -> str:
    """All text of a pipe. Raises `UsageError` where it is too much, or no text."""
    return decoded(file.read(FILE_LIMIT_BYTES + 1), name)


def decoded(raw: bytes, name: str) -> str:
    """Bytes as text: UTF-8, or what a byte order mark says. Raises `UsageError` naming `name` where they are none."""
    if len(raw) > FILE_LIMIT_BYTES:
        raise UsageError(f"{name} is too large (more than {FILE_LIMIT_BYTES / 1e6:.0f} MB): {_too_large()}")
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
    return _within_limit(text, name)


def _within_limit(text: str, name: str) -> str:
    if len(text) > TEXT_LIMIT_CHARACTERS:
        raise UsageError(f"{name} is too large ({len(text):,} characters): {_too_large()}")
    return text


def _too_large() -> str:
    return (
        f"at most {FILE_LIMIT_BYTES / 1e6:.0f} MB and {TEXT_LIMIT_CHARACTERS:,} characters can be read, so give a part"
    )


def opened(path: Path, name: str) -> BinaryIO:
    """The file, open; what is no plain file is refused before a byte of it is asked for."""
    # Without waiting: to open a pipe that nobody writes to would take for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise UsageError(f"{name} is no plain file but a device or a pipe: name a file, or pipe its text in")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _unreadable(error: OSError, name: str) -> UsageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UsageError(f"there is no file {name}: check the name")
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{name} is a folder: name the files in it, one by one")
    return UsageError(f"cannot read {name} ({error.strerror}): make it readable, or leave it out")


def _pdf_text(file: BinaryIO, name: str) -> str:
    """The text of the pages of an open PDF."""
    import json
    import subprocess

    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        # -P: a file of the folder that the person is in must not be taken for a module.
        done = subprocess.run(
            [sys.executable, "-P", str(_PDF_SCRIPT), str(TEXT_LIMIT_CHARACTERS)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PDF_LIMIT_S,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # no answer: it was killed, by its own limits or by us
        answer = {"problem": "heavy"}
    if "problem" in answer:
        raise UsageError(f"{name} {_PDF_PROBLEMS[answer['problem']]}")
    return _within_limit(answer["text"], name)
