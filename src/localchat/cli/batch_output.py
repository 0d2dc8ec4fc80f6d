"""Where the answers of a batch go: standard output, or a file that a later run goes on with."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from localchat.cli.batch_journal import Journal
from localchat.cli.batch_lines import LINE_LIMIT_BYTES, Line, printed
from localchat.cli.main import give_up_stdout
from localchat.errors import LocalchatError, UsageError
from localchat.locks import FileLock
from localchat.safe_text import safe_line

_ID = rb'(?:null|true|false|-?[\d.eE+-]+|"(?:[^"\\]|\\.)*")'
_TORN = re.compile(
    rb'(?:\{|\{"|\{"i|\{"id|\{"id"|\{"id":'  # before the id
    rb'|\{"id":(?:n|nu|nul|t|tr|tru|f|fa|fal|fals|-?[\d.eE+-]*|"(?:[^"\\]|\\.)*\\?|[\[{].*)'  # within it
    rb'|\{"id":' + _ID + rb'(?:|,|,"|,"l|,"li|,"lin|,"line|,"line"|,"line":)'  # after it
    rb'|\{"id":' + _ID + rb',"line":\d.*)',
    re.DOTALL,
)
"""How much of a printed line, at least its first character, can be there where a kill tore it."""


class StdoutOutput:
    """Answers on standard output, each as soon as it is its turn."""

    with_keys = False

    def __init__(self) -> None:
        self.shares_screen = sys.stdout.isatty()

    def has(self, line: Line) -> bool:
        """Whether the line's answer is there already."""
        return False

    def write(self, answer: bytes) -> None:
        """Write one line. Raises `OSError`: a pipe that was closed, a disk that is full."""
        try:
            sys.stdout.buffer.write(answer)
            sys.stdout.buffer.flush()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                give_up_stdout()
            raise

    def close(self) -> None:
        """Nothing is left to write."""


class FileOutput:
    """A file of answers that goes on where an earlier run was broken off.

    As long as its lines are the answers to the lines of the input, they stay. From the first one on that is not (an
    error, an edited prompt, a line that is torn), the file is cut off, and what it had of answers goes to `journal`
    to be printed again in its turn; where that keeps nothing on disk, into a file beside this one until all of them
    are printed. Raises `UsageError` for a file with anything else in it, or that another run
    writes, and `OSError`.
    """

    with_keys = True
    shares_screen = False

    def __init__(self, path: Path, journal: Journal, *, ordered: bool) -> None:
        self._journal = journal
        self._rest = path.with_name(path.name + ".rest")
        name = safe_line(str(path))
        self._lock = FileLock(path)
        try:
            if path.exists() and not path.is_file():
                raise UsageError(f"{name} is no plain file: name another one, or write `> FILE` without --output")
            if not self._lock.acquire(blocking=False):
                raise UsageError(f"another batch writes to {name}: wait for it, or name another file")
            for number, raw in enumerate(_lines(path), 1):
                if not (printed(raw) if raw.endswith(b"\n") else _TORN.fullmatch(raw)):
                    raise UsageError(f"{name}, line {number}, is not from `localchat batch`: name another file")
            self._file = path.open("r+b", buffering=0)
            self._old: BinaryIO | None = path.open("rb")
            if self._rest.exists():
                with self._rest.open("rb") as rest:
                    journal.bring(_answers_in(rest))
        except (OSError, ValueError) as error:
            self._lock.release()
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot write {name} ({reason}): make it writable, or name another file") from error
        except UsageError:
            self._lock.release()
            raise
        self._end = 0
        self._ordered = ordered

    def is_same(self, file: BinaryIO) -> bool:
        """Whether this is the file that the prompts are read from."""
        return os.path.samestat(os.fstat(self._file.fileno()), os.fstat(file.fileno()))

    def has(self, line: Line) -> bool:
        """Whether the line's answer is what comes next in the file. Asked for each line, in order."""
        if not self._ordered:
            self._cut()
        if not self._old:
            return False
        raw = self._old.readline(LINE_LIMIT_BYTES)
        found = printed(raw) if raw.endswith(b"\n") else None
        if found and found[1] and (found[0].line, found[0].id, found[0].key) == (line.number, line.id, line.key.hex()):
            self._end += len(raw)
            # Kept elsewhere too, by the run that printed it: that goes once all is answered.
            self._journal.pass_over(line.key, line.number, found[1])
            return True
        self._cut()
        return False

    def write(self, answer: bytes) -> None:
        """Write one line. Raises `OSError`."""
        self._cut()
        while answer:
            answer = answer[self._file.write(answer) :]

    def close(self) -> None:
        """Cut off what the input no longer asks for: all that it does ask for is printed."""
        self._cut()
        self._rest.unlink(missing_ok=True)
        self._file.close()
        self._lock.release()

    def _cut(self) -> None:
        """End the file after the last line that stays; the answers behind it are on disk elsewhere before that."""
        if not self._old:
            return
        if not self._journal.keeps:
            self._old.seek(self._end)
            _append(self._rest, self._old)
        self._old.seek(self._end)
        self._journal.bring(_answers_in(self._old))
        self._old.close()
        self._old = None
        self._file.truncate(self._end)
        self._file.seek(self._end)


def _append(path: Path, file: BinaryIO) -> None:
    """Add what is left of `file` to a file of this user's, for good, after a line of that which a kill tore."""
    rest = file.read(1)
    if rest:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as target:
            if target.seek(0, os.SEEK_END):
                target.seek(-1, os.SEEK_END)
                target.write(b"" if target.read(1) == b"\n" else b"\n")
            target.write(rest)
            shutil.copyfileobj(file, target)
            target.flush()
            os.fsync(target.fileno())


def _answers_in(file: BinaryIO) -> Iterator[tuple[bytes, int, bytes]]:
    """Keys, lines and encoded answers of what was printed into a file; what failed or is torn is none."""
    for raw in file:
        found = printed(raw) if raw.endswith(b"\n") else None
        if found and found[1]:
            yield bytes.fromhex(found[0].key), found[0].line, found[1]


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


Output = StdoutOutput | FileOutput


def opened_input(name: str | None) -> BinaryIO:
    """The prompts: a file, or standard input for None and "-". Raises `UsageError` where there is nothing to read."""
    if name is None or name == "-":
        if sys.stdin.isatty():
            raise UsageError("there are no prompts: name a file (`localchat batch prompts.jsonl`), or pipe them in")
        # Not `sys.stdin`: Python would wait for the thread that reads it before it exits.
        return open(0, "rb", closefd=False)
    path = Path(name)
    try:
        if path.is_dir():
            raise UsageError(f"{safe_line(name)} is a folder: name a file with one prompt a line")
        return path.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {safe_line(name)}: check the name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {safe_line(name)} ({safe_line(reason)}): make it readable") from error


def count_lines(file: BinaryIO) -> int | None:
    """How many lines there are that are not empty, where the file can be read twice; else None. Raises `OSError`."""
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        start = file.tell()
        count = sum(1 for _ in read_lines(file))
        file.seek(start)
    except ValueError:
        return None
    return count


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers from 1; of one that is too long, only its beginning is kept.

    Raises `UsageError` for a file that is no UTF-8 text at all, and `OSError`.
    """
    number = 0
    while raw := file.readline(LINE_LIMIT_BYTES + 1):
        number += 1
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UsageError("the prompts are UTF-16 text: convert them with `iconv -f utf-16 -t utf-8`")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        rest = raw
        while len(rest) > LINE_LIMIT_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LINE_LIMIT_BYTES + 1)
        if raw.strip():
            yield number, raw


def failed_to_write(error: OSError, kept: bool) -> LocalchatError:
    """The sentence for answers that cannot be written."""
    then = "the same command goes on from here" if kept else "then give the same command again"
    return LocalchatError(f"cannot write the answers ({error.strerror or error}): make room, {then}")
