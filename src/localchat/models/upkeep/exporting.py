"""Copies a model out of the store, with its records, so that another machine can use it without a network.

The copy has the store's own layout, `DIR/owner/repo/file.gguf`: its folders may be copied into another models folder as
they are, and `import` understands the file with the record beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from localchat.errors import UsageError
from localchat.models import records, store
from localchat.models.records import Cancelled, Record
from localchat.models.store import ModelFile
from localchat.models.transfer.progress import Meter, OnProgress
from localchat.models.upkeep import copying, projectors
from localchat.models.upkeep.importing import COPYING, HASHING
from localchat.paths import paths, sync_folder
from localchat.safe_text import safe_line

_MARGIN = 1 << 20
"""Bytes that stay free on the disk: nothing else lives from a stick, but the records need some."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the files it `copied` (`size` bytes), and those that were `there` with the same bytes."""

    model: ModelFile
    copied: list[Path]
    there: list[Path]
    size: int


def export(
    name: str,
    folder: Path,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
    cancelled: Cancelled | None = None,
) -> Exported:
    """Copy the model that `name` means into `folder`, which is made where its parent exists.

    The bytes are hashed on the way and compared with the record. Another file in the way is replaced only with `force`.
    Raises `NoSuchModel`, `UsageError`, `DamagedFile`, `FetchError` (disk), `Interrupted`.
    """
    model = store.find(name)
    sources = store.parts(model.path)
    projector = projectors.beside(model.path)
    sources += [projector] if projector else []
    known = {source: _record(source, on_progress, cancelled) for source in sources}
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{safe_line(str(folder))} is a file: name a folder")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise UsageError(f"there is no folder {safe_line(str(folder.parent))}: is the disk mounted?")
    if folder.resolve().is_relative_to(paths().models.resolve()):
        raise UsageError(f"{safe_line(str(folder))} is in the models folder itself: name a folder on another disk")
    targets = {source: folder / source.relative_to(paths().models) for source in sources}
    there = [source for source in sources if _is_there(targets[source], known[source], force, on_progress, cancelled)]
    missing = [source for source in sources if source not in there]
    size = sum(known[source].size for source in missing)
    with copying.writing_to(folder):
        folder.mkdir(exist_ok=True)
        copying.check_room(folder, size, _MARGIN)
    meter = Meter(COPYING, size, on_progress)
    before = 0
    for source in missing:
        _copy(source, targets[source], known[source], partial(_report, meter, before), cancelled)
        before += known[source].size
    for source in sources:
        with copying.writing_to(targets[source].parent):
            _write_record(targets[source], known[source])
    return Exported(model, [targets[one] for one in missing], [targets[one] for one in there], size)


def _record(source: Path, on_progress: OnProgress | None, cancelled: Cancelled | None) -> Record:
    """The record by which the copy is checked; a file that has none yet is verified first."""
    meter = Meter(HASHING, source.stat().st_size, on_progress)
    pinned = store.pinned(source)
    return records.read(source) or records.verified(
        source,
        pinned=pinned.sha256 if pinned else None,
        pinned_size=pinned.size if pinned else None,
        on_hashed=partial(_report, meter, 0),
        cancelled=cancelled,
    )


def _is_there(
    target: Path, known: Record, force: bool, on_progress: OnProgress | None, cancelled: Cancelled | None
) -> bool:
    """Whether the target has these bytes already. Raises `UsageError` where it has others, unless with `force`."""
    if not target.exists():
        return False
    if target.is_file() and target.stat().st_size == known.size:
        meter = Meter(HASHING, known.size, on_progress)
        if records.hash_file(target, on_hashed=partial(_report, meter, 0), cancelled=cancelled) == known.sha256:
            return True
    if force and target.is_file():
        return False
    raise UsageError(f"there is another file at {safe_line(str(target))}: --force replaces it")


def _copy(source: Path, target: Path, known: Record, on_copied: partial[None], cancelled: Cancelled | None) -> None:
    with copying.writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        copying.place(
            source,
            target,
            sha256=known.sha256,
            may_share=False,
            margin=_MARGIN,
            on_copied=on_copied,
            cancelled=cancelled,
        )
        # It is meant for other machines, where somebody else may read the disk.
        target.chmod(0o644)


def _write_record(target: Path, known: Record) -> None:
    """The copy's own record: `records.write` would keep it in memory where it cannot be written, which helps nobody."""
    status = target.stat()
    copied = msgspec.structs.replace(known, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
    beside = records.record_file(target)
    temporary = beside.with_name(f".{target.name}.new.json")
    temporary.write_bytes(records.encoded(copied))
    temporary.replace(beside)
    sync_folder(target.parent)


def _report(meter: Meter, before: int, done: int, _total: int = 0) -> None:
    """Tell of one file of several."""
    meter.at(before + done)
