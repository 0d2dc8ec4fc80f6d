"""Puts a file that is on this machine already into another place: linked, cloned or copied; there is all of it or none.

A hard link and a clone take no extra room. A hard link shares its bytes for good, so the caller checks them against a
record each time; a clone shares them until one of the two is written to. Knows nothing of models.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from localchat.errors import DamagedFile, FetchError, Interrupted
from localchat.models import records
from localchat.models.records import Cancelled
from localchat.paths import sync_folder
from localchat.safe_text import safe_line

How = Literal["linked", "cloned", "copied"]
"""A hard link, a copy-on-write clone, or a copy that takes room of its own."""

MARGIN = 64 << 20
"""Bytes that stay free on the disk, for the system and the person's own files."""
_CHUNK = 1 << 20
_FICLONE = 0x40049409
"""Linux's ioctl that clones a file (`_IOW(0x94, 9, int)` in linux/fs.h); btrfs, XFS and bcachefs can."""


def place(
    source: Path,
    target: Path,
    *,
    sha256: str,
    may_share: bool,
    margin: int = MARGIN,
    on_copied: Callable[[int], None] | None = None,
    cancelled: Cancelled | None = None,
) -> How:
    """Put the bytes of `source`, whose sha256 was just found to be `sha256`, at `target`, which is replaced.

    With `may_share` a hard link is tried first, then a clone. The folder must exist, and the caller hold the lock of
    `target`. A copy leaves `margin` bytes of the disk free. Raises `FetchError` (disk), `DamagedFile` where the
    source changes meanwhile, and `Interrupted`.
    """
    temporary = temporary_for(target)
    before = source.stat()
    with writing_to(target.parent):
        temporary.unlink(missing_ok=True)
        try:
            how = (_linked(source, temporary) or _cloned(source, temporary)) if may_share else None
            how = how or _copied(source, temporary, sha256, margin, on_copied, cancelled)
            after = source.stat()
            if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
                raise _changed(source)
            if how == "linked":
                # Not ours to flush, and perhaps not ours to open for writing.
                temporary.replace(target)
                sync_folder(target.parent)
            else:
                records.publish(temporary, target)
        finally:
            # Of two links to one file, renaming one over the other leaves both.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return how


def temporary_for(target: Path) -> Path:
    """What the file at `target` is called while it is being put there."""
    return target.with_name(f".{target.name}.import")


def check_room(folder: Path, needed: int, margin: int = MARGIN) -> None:
    """Raise `FetchError` where `needed` more bytes and `margin` do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed and free < needed + margin:
        raise FetchError(
            f"the disk of {safe_line(str(folder))} has too little room ({needed / 1e6:,.0f} MB and "
            f"{margin / 1e6:,.0f} MB to spare are needed, {free / 1e6:,.0f} MB are free): make room, or choose "
            "another disk"
        )


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what a disk can refuse into a `FetchError` of one sentence; wraps writing to `folder`."""
    try:
        yield
    except OSError as error:
        where = safe_line(str(folder))
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise FetchError(f"the disk of {where} is full: make room, or choose another disk") from error
        if error.errno == errno.EFBIG:
            raise FetchError(
                f"the file is larger than the file system of {where} allows: a disk formatted as FAT32 takes at most "
                "4 GB a file, exFAT takes any"
            ) from error
        raise FetchError(f"cannot write to {where} ({error.strerror}): make it writable") from error


def _linked(source: Path, target: Path) -> How | None:
    try:
        # The path was resolved: what a symbolic link points to is linked, not the link.
        os.link(source.resolve(), target)
    except OSError:  # another disk, a file system without links, or a file of another user
        return None
    return "linked"


def _cloned(source: Path, target: Path) -> How | None:
    try:
        _clone(source, target)
    except OSError:
        with suppress(OSError):
            target.unlink(missing_ok=True)
        return None
    return "cloned"


if sys.platform == "linux":

    def _clone(source: Path, target: Path) -> None:
        import fcntl

        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with source.open("rb") as file:
                fcntl.ioctl(descriptor, _FICLONE, file.fileno())
        finally:
            os.close(descriptor)

elif sys.platform == "darwin":

    def _clone(source: Path, target: Path) -> None:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        if library.clonefile(os.fsencode(source.resolve()), os.fsencode(target), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        target.chmod(0o600)

else:

    def _clone(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def _copied(
    source: Path,
    target: Path,
    sha256: str,
    margin: int,
    on_copied: Callable[[int], None] | None,
    cancelled: Cancelled | None,
) -> How:
    """Copy the bytes, and check on the way that they are the expected ones."""
    check_room(target.parent, source.stat().st_size, margin)
    digest = hashlib.sha256()
    done = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as written, source.open("rb", buffering=0) as file:
        while chunk := _read(file, source):
            left = memoryview(chunk)
            while left:
                left = left[written.write(left) :]
            digest.update(chunk)
            done += len(chunk)
            if on_copied:
                on_copied(done)
            if cancelled and cancelled():
                raise Interrupted("stopped while copying: nothing was changed")
    if digest.hexdigest() != sha256:
        raise _changed(source)
    return "copied"


def _read(file: object, source: Path) -> bytes:
    try:
        return file.read(_CHUNK)  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise DamagedFile(
            f"cannot read {safe_line(str(source))} ({error.strerror}): its disk may be failing"
        ) from error


def _changed(source: Path) -> DamagedFile:
    return DamagedFile(
        f"{safe_line(str(source))} changed while it was read: end the program that writes to it, and try again"
    )
