"""Removes models and what was left behind, and says what takes room on the disk.

Only files whose names localchat itself gives are ever taken for leftovers; anything else in the models folder is the
person's. What another process is fetching or importing right now is held by its lock, and left alone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localchat.errors import LocalchatError, UsageError
from localchat.locks import FileLock
from localchat.models import records, store
from localchat.models.catalogue import Hub
from localchat.models.store import ModelFile
from localchat.models.upkeep import projectors
from localchat.paths import paths
from localchat.safe_text import safe_line

Kind = Literal[
    "unfinished download", "damaged file", "record without a file", "temporary file", "left-over lock", "old revision"
]

_KINDS: list[tuple[Kind, re.Pattern[str]]] = [
    ("unfinished download", re.compile(r"(?P<file>.+\.gguf)\.partial(\..+)?", re.IGNORECASE)),
    ("damaged file", re.compile(r"(?P<file>.+\.gguf)\.damaged", re.IGNORECASE)),
    ("record without a file", re.compile(r"(?P<file>[^.].*\.gguf)\.json", re.IGNORECASE)),
    ("temporary file", re.compile(r"\.(?P<file>.+\.gguf)\.(import|wheel|new\.json|[0-9a-f]{8}\.json)", re.IGNORECASE)),
    ("left-over lock", re.compile(r"\.(?P<file>.+\.gguf)\.lock", re.IGNORECASE)),
]
_WRITING_S = 600.0
"""A record is written without the file's lock, within a moment; what is this old was left by a crash."""


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs any more. `belongs_to` is the model file it is left of, `size` the bytes it takes."""

    path: Path
    kind: Kind
    belongs_to: Path
    size: int


@dataclass(frozen=True)
class Removal:
    """What removing a model means: its `files` with their records, and the bytes that this `frees`.

    `shared` are bytes that stay, as another program holds the same file.
    """

    model: ModelFile
    files: list[Path]
    frees: int
    shared: int


def room_of(path: Path) -> int:
    """The bytes that a file, or all in a folder, takes on the disk; holes in a partial take none."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    if stat.S_ISDIR(status.st_mode):
        return sum(room_of(one) for one in _listed(path))
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * 512


def removal(model: ModelFile) -> Removal:
    """What there is to remove of a model: its parts, partials, the projector where no other model needs it."""
    parts = store.parts(model.path)
    others = [one for one in store.installed() if one.path.parent == model.path.parent and one.path != model.path]
    files = list(parts)
    if not others:
        files += projectors.in_folder(model.path.parent)
    else:
        mine = projectors.beside(model.path)
        if mine and all(projectors.beside(one.path) != mine for one in others):
            files.append(mine)
    files += [one.path for one in _leftovers(model.path.parent) if one.belongs_to in files]
    frees = shared = 0
    for file in files:
        with suppress(OSError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                shared += status.st_size
            else:
                frees += room_of(file)
    return Removal(model, files, frees, shared)


def remove_model(what: Removal) -> None:
    """Remove a model, its first part first, so that it is gone at once for everybody.

    Raises `UsageError` while another process fetches it, and `LocalchatError` where the folder cannot be written.
    """
    for file in what.files:
        if _is_held(file):
            raise UsageError(f"{safe_line(file.name)} is being fetched or imported right now: stop that first")
    try:
        for file in what.files:
            _unlink(file)
            _unlink(records.record_file(file))
    except OSError as error:
        raise LocalchatError(
            f"cannot remove {safe_line(str(error.filename or what.model.path))} ({error.strerror}): end what uses it "
            "(`localchat stop` ends the engine), and see that its folder can be written"
        ) from error
    _remove_empty_folders({file.parent for file in what.files})


def leftovers(*, old_revisions: bool = False) -> tuple[list[Leftover], list[Path]]:
    """What can be pruned, and the files that are being fetched right now, of which nothing is listed."""
    found = list(_leftovers(paths().models))
    if old_revisions:
        found += _old_revisions()
    busy = {path for path in {one.belongs_to for one in found} if _is_held(path)}
    return [one for one in found if one.belongs_to not in busy], sorted(busy)


def remove_leftovers(found: Iterable[Leftover]) -> int:
    """Remove what `leftovers` found, except what somebody began to use since; return the bytes that this freed."""
    groups: dict[Path, list[Leftover]] = {}
    for one in found:
        groups.setdefault(one.belongs_to, []).append(one)
    freed = 0
    for path, group in groups.items():
        lock = FileLock(path.with_name(f".{path.name}.lock"), remove=True)
        try:
            if not lock.acquire(blocking=False):
                continue
            try:
                for one in group:
                    shares = one.path.is_file() and one.path.stat().st_nlink > 1
                    if one.path != lock.path:
                        _remove(one.path)
                    if one.kind == "old revision":
                        _unlink(records.record_file(one.path))
                    freed += 0 if shares else one.size
            finally:
                lock.release()
        except OSError as error:
            raise LocalchatError(
                f"cannot remove {safe_line(str(error.filename or path))} ({error.strerror}): make its folder writable"
            ) from error
        _remove_empty_folders({path.parent})
    return freed


def _leftovers(folder: Path) -> Iterator[Leftover]:
    """What localchat left in a folder and in those below it, as deep as models lie."""
    depth = len(folder.relative_to(paths().models).parts)
    for path in _listed(folder):
        found = _kind_of(path)
        if found:
            yield found
        elif depth < 2 and path.is_dir() and not path.is_symlink():
            yield from _leftovers(path)


def _kind_of(path: Path) -> Leftover | None:
    for kind, pattern in _KINDS:
        match = pattern.fullmatch(path.name)
        if not match:
            continue
        belongs_to = path.with_name(match["file"])
        try:
            # A link whose disk is not mounted now is no reason to forget what is known of its file.
            if kind == "record without a file" and (os.path.lexists(belongs_to) or records.read(belongs_to) is None):
                return None
            if kind == "temporary file" and path.suffix == ".json" and not _is_old(path):
                return None
        except OSError:
            return None
        return Leftover(path, kind, belongs_to, room_of(path))
    return None


def _old_revisions() -> list[Leftover]:
    """Models in a catalogue's place that were fetched at another revision than the one that the catalogue names now."""
    found = []
    for model in store.installed():
        pinned, record = store.pinned(model.path), records.read(model.path)
        if not pinned or not record or not record.revision or pinned.sha256 in (None, record.sha256):
            continue
        revisions = [source.revision for source in pinned.source if isinstance(source, Hub)]
        if revisions and record.revision not in revisions:
            found += [Leftover(part, "old revision", part, room_of(part)) for part in store.parts(model.path)]
    return found


def _is_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _WRITING_S


def _is_held(path: Path) -> bool:
    """Whether a process fetches or imports the model file at `path` right now."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    if not lock.path.exists():
        return False
    try:
        if not lock.acquire(blocking=False):
            return True
    except OSError as error:
        # On a disk that cannot be written, nobody fetches anything.
        return error.errno != errno.EROFS
    lock.release()
    return False


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        _unlink(path)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove folders of the store that hold nothing any more, and their parents likewise."""
    for folder in folders:
        for one in (folder, folder.parent):
            if one != paths().models and one.is_relative_to(paths().models):
                with suppress(OSError):  # there is something in it
                    one.rmdir()
