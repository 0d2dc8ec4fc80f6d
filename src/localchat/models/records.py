"""What is known of one file of the store: a small record beside it that says when its sha256 was verified.

A file whose size, time and inode are those of its record is trusted without being read again; any other is read and
hashed: a copy, even one that kept its time, may have gone wrong on its way.
This module also puts finished files into their place. It knows nothing of names, catalogues or sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from localchat.errors import DamagedFile, FetchError, Interrupted, LocalchatError
from localchat.models import gguf
from localchat.paths import paths, private_folder, sync_folder
from localchat.safe_text import safe_line

_CHUNK = 1 << 20
_LONGEST = 1 << 16
"""Bytes beyond which a record is none: records travel with files, and may come from anywhere."""
OnHashed = Callable[[int, int], None]
"""Told how many bytes of how many were hashed."""
Cancelled = Callable[[], bool]

# What was verified while its folder could not be written: known for as long as this process lives.
_remembered: dict[Path, Record] = {}


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The record of one file. `size` is bytes, `verified` when its hash was last found right."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    mtime_ns: int
    source: str
    verified: Annotated[datetime, msgspec.Meta(tz=True)]
    revision: str = ""
    name: str = ""
    quantization: str = ""
    inode: int = 0

    def fits(self, status: os.stat_result) -> bool:
        """Whether this is still the file that was verified, as far as can be told without reading it."""
        return (self.size, self.mtime_ns, self.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)


def record_file(path: Path) -> Path:
    """Where the record of the model file at `path` lies."""
    return path.with_name(path.name + ".json")


def read(path: Path) -> Record | None:
    """The record of the file at `path`; None where there is none, or none that can be understood."""
    remembered = _remembered.get(path)
    if remembered:
        return remembered
    try:
        with record_file(path).open("rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            return None
        record = msgspec.json.decode(content, type=Record)
        record.verified.astimezone(UTC)  # times at the ends of the calendar have no such
        return record
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        return None


def is_current(path: Path) -> bool:
    """Whether the file at `path` can be trusted without being read again.

    A file that was hard-linked from another program shares its bytes with that program's: where that rewrites them in
    place, size or time no longer fit, the file is read again, and refused.
    """
    known = read(path)
    try:
        return known is not None and known.fits(path.stat())
    except OSError:
        return False


def write(path: Path, record: Record) -> None:
    """Keep the record of the file at `path`; where the folder cannot be written, for this process only."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.json")
    try:
        with open(temporary, "xb", opener=_private) as file:
            file.write(encoded(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(record_file(path))
        _remembered.pop(path, None)
    except FileNotFoundError:
        _remembered.pop(path, None)  # the folder is gone, and the file with it
    except OSError:
        _remembered[path] = record
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def encoded(record: Record) -> bytes:
    """A record as it is kept: JSON that a person can read."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def make(path: Path, *, sha256: str, source: str, revision: str = "", name: str = "", quantization: str = "") -> Record:
    """A record of the file at `path` as it is now, verified now."""
    status = path.stat()
    return Record(
        sha256=sha256,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        source=source,
        verified=_now(),
        revision=revision,
        name=name,
        quantization=quantization,
    )


def distrust(path: Path) -> None:
    """Have the file at `path` read again before it is used: its bytes are wrong, though size and time do not say so."""
    known = read(path)
    if known:
        write(path, msgspec.structs.replace(known, mtime_ns=0))


def refreshed(path: Path, record: Record, status: os.stat_result) -> Record:
    """The record of the file at `path`, kept anew: its hash was found right just now.

    `status` is what the file was before that, so that a change meanwhile shows.
    """
    known = msgspec.structs.replace(
        record, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino, verified=_now()
    )
    write(path, known)
    return known


def make_folders(folder: Path) -> None:
    """Make the store's folders down to `folder`, each private. Raises `FetchError` where that is not possible."""
    try:
        for one in reversed([folder, *(parent for parent in folder.parents if parent.is_relative_to(paths().data))]):
            if not one.is_dir():
                private_folder(one)
    except LocalchatError as error:
        raise FetchError(error.message) from error


def forget(path: Path) -> None:
    """Remove the record of the file at `path`, which is to be replaced. Raises `OSError`."""
    _remembered.pop(path, None)
    record_file(path).unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Move a finished, verified file into its place, so that a crash leaves all of it there or none."""
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def hash_file(path: Path, *, on_hashed: OnHashed | None = None, cancelled: Cancelled | None = None) -> str:
    """The sha256 of a file, as 64 hex digits. Raises `Interrupted` when cancelled."""
    import hashlib  # 4 ms that a file with a record need not wait for

    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if on_hashed:
                on_hashed(done, total)
            if cancelled and cancelled():
                raise Interrupted("stopped while checking the model file: ask again to go on")
    return digest.hexdigest()


def verified(
    path: Path,
    *,
    pinned: str | None = None,
    pinned_size: int | None = None,
    on_hashed: OnHashed | None = None,
    cancelled: Cancelled | None = None,
) -> Record:
    """The record of the file at `path`, once its sha256 is known to be right.

    `pinned` is the catalogue's hash for a file that has no record yet (one that was carried over by hand); a file that
    nobody pinned is taken as it is if its header is sound. Raises `DamagedFile`, and `OSError` where it cannot be read.
    """
    status = path.stat()
    known = read(path)
    if known and known.fits(status):
        return known
    label = safe_line(str(path))
    again = "remove it, and localchat can fetch it again"
    size = known.size if known else pinned_size
    if size is not None and status.st_size != size:
        raise DamagedFile(f"{label} has {status.st_size:,} bytes where {size:,} were expected: {again}")
    if not known and pinned is None:
        header = gguf.read_header(path)  # cheap, so it comes before minutes of hashing
    sha256 = hash_file(path, on_hashed=on_hashed, cancelled=cancelled)
    expected = known.sha256 if known else pinned
    if expected is not None and sha256 != expected:
        raise DamagedFile(f"{label} is damaged (its sha256 is not {expected[:12]}…): {again}")
    if known:
        return refreshed(path, known, status)
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise DamagedFile(f"{label} changed while it was read: end the program that writes to it, and try again")
    if pinned is not None:
        header = gguf.read_header(path)
    record = make(path, sha256=sha256, source="carried over by hand", quantization=header.quantization)
    write(path, record)
    return record


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
