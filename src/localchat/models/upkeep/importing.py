"""Takes a GGUF file that is on this machine into the store: checked, hashed, and linked rather than copied.

Files of other programs are read and never changed. A hard link shares its bytes with the file it was made from: where
its program rewrites them in place, the record no longer fits, and the file is hashed again before it is used.
"""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from localchat.errors import DamagedFile, FetchError, NoSuchModel, UsageError
from localchat.locks import FileLock
from localchat.models import gguf, records, store
from localchat.models.names import check_file, check_repo, is_projector
from localchat.models.records import Cancelled
from localchat.models.store import ModelFile
from localchat.models.transfer.progress import Meter, OnProgress
from localchat.models.upkeep import copying, foreign, placing, projectors
from localchat.models.upkeep.copying import How
from localchat.models.upkeep.foreign import Foreign
from localchat.models.upkeep.placing import File
from localchat.paths import paths
from localchat.safe_text import safe_line

HASHING = "reading and hashing"
COPYING = "copying"
"""What progress says is being done."""

_UNFINISHED = (".partial", ".part", ".incomplete", ".crdownload", ".download", "-partial")
_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})")


@dataclass(frozen=True)
class Imported:
    """What an import did. `how` is None where the model was here already; `files` counts parts and projector."""

    model: ModelFile
    how: How | None
    files: int = 0


def import_file(
    path: Path,
    *,
    repo: str = "",
    copy: bool = False,
    held: Foreign | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Cancelled | None = None,
) -> Imported:
    """Take in the model at `path`, all its parts and its projector; a model that is here already stays as it is.

    `repo` (owner/repo) is where the person wants it; `held` what is known of it where another program holds it. With
    `copy` no bytes are shared. Raises `NoSuchModel`, `UsageError`, `DamagedFile`, `FetchError` (disk), `Interrupted`.
    """
    if repo:
        check_repo(repo)
    _check_plain(path)
    if path.resolve().is_relative_to(paths().models.resolve()):
        return Imported(_in_the_store(path, on_progress, cancelled), None)
    held = held or foreign.holding(path)
    files = _gather(path, held)
    here = _linked_already(files)
    if here:
        return Imported(here, None)
    files = _hashed(files, on_progress, cancelled)
    _check_promises(files, held)
    here = _known_already(files)
    if here:
        return Imported(here, None)
    folder, files = placing.destination(files, repo, held)
    place = paths().models / folder
    try:
        how = _bring(place, files, copy, held, on_progress, cancelled)
    except BaseException:
        for one in (place, place.parent):
            with suppress(OSError):  # there is something in it
                one.rmdir()
        raise
    return Imported(store.find(str(place / files[0].name)), how, len(files))


def _check_plain(path: Path) -> None:
    """Raise where there is no file that could be a model."""
    label = safe_line(str(path))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchModel(f"there is no file {label}: check its spelling") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoSuchModel(f"cannot read {label} ({reason}): make it readable") from error
    if stat.S_ISDIR(mode):
        there = sorted(one.relative_to(path).as_posix() for one in path.glob("*.gguf"))
        there += sorted(one.relative_to(path).as_posix() for one in path.glob("*/*/*.gguf"))
        some = (
            f", such as {safe_line(', '.join(there[:3]))}" if there else "; --scan looks into other programs' folders"
        )
        raise UsageError(f"{label} is a folder: name a .gguf file in it{some}")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{label} is not a plain file: name a .gguf file")
    if path.name.lower().endswith(_UNFINISHED):
        raise DamagedFile(f"{label} is a download that has not finished: let the program that began it finish it first")


def _in_the_store(path: Path, on_progress: OnProgress | None, cancelled: Cancelled | None) -> ModelFile:
    meter = Meter(HASHING, path.stat().st_size, on_progress)
    return store.resolve(str(path.absolute()), on_hashed=lambda done, _: meter.at(done), cancelled=cancelled)


def _gather(path: Path, held: Foreign | None) -> list[File]:
    """Every file of the model, its header checked: the parts in order, then the projector."""
    parts = gguf.shards(path)
    headers = [gguf.read_header(part) for part in parts]
    count = headers[0].metadata.get("split.count")
    if isinstance(count, int) and count > 1 and count != len(parts):
        raise DamagedFile(
            f"{safe_line(str(path))} is one of {count} parts, and its name does not say so: give the parts their own "
            f"names (…-00001-of-{count:05}.gguf) in one folder"
        )
    if headers[0].architecture == "clip" or is_projector(parts[0].name):
        raise UsageError(
            f"{safe_line(str(path))} is a projector, with which a model sees: import the model beside it, and it "
            "comes along"
        )
    names = placing.names_of(parts, headers[0], held)
    projector = held.projector if held else projectors.beside(parts[0])
    if projector:
        parts, headers = [*parts, projector], [*headers, gguf.read_header(projector)]
        names.append(placing.projector_name(projector, names[0]))
    return [File(part, name, header, _status(part)) for part, name, header in zip(parts, names, headers, strict=True)]


def _status(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _linked_already(files: list[File]) -> ModelFile | None:
    """The model of the store that is a link to the very same file, and known to be sound."""
    for model in store.installed():
        try:
            if model.path.samefile(files[0].path) and all(map(records.is_current, store.parts(model.path))):
                return model
        except OSError:
            continue
    return None


def _known_already(files: list[File]) -> ModelFile | None:
    """The model of the store that has the very same bytes."""
    wanted = [file.sha256 for file in files if not is_projector(file.name)]
    for model in store.installed():
        known = [records.read(part) for part in store.parts(model.path) if records.is_current(part)]
        if wanted and [record.sha256 for record in known if record] == wanted:
            return model
    return None


def _hashed(files: list[File], on_progress: OnProgress | None, cancelled: Cancelled | None) -> list[File]:
    meter = Meter(HASHING, sum(file.size for file in files), on_progress)
    before, hashed = 0, []
    for file in files:
        try:
            sha256 = records.hash_file(file.path, on_hashed=partial(_report, meter, before), cancelled=cancelled)
        except OSError as error:
            raise DamagedFile(f"cannot read {safe_line(str(file.path))} ({error.strerror}): copy it again") from error
        if _status(file.path) != file.status:
            raise DamagedFile(
                f"{safe_line(str(file.path))} changed while it was read: end the program that writes to it, and try "
                "again"
            )
        before += file.size
        hashed.append(replace(file, sha256=sha256))
    return hashed


def _check_promises(files: list[File], held: Foreign | None) -> None:
    """Compare with what records beside the files, or the program that holds them, say of their hashes."""
    for file in files:
        record = records.read(file.path)
        blob = _BLOB.fullmatch(file.path.name)
        promises = {"the record beside it": record.sha256 if record else "", "its name": blob[1] if blob else ""}
        if held and file is files[0]:
            promises[safe_line(held.program)] = held.sha256
        for who, promised in promises.items():
            if promised and promised != file.sha256:
                raise DamagedFile(
                    f"{safe_line(str(file.path))} is damaged (its sha256 is not {promised[:12]}… as {who} says): "
                    "fetch or copy it again"
                )


def _bring(
    folder: Path,
    files: list[File],
    copy: bool,
    held: Foreign | None,
    on_progress: OnProgress | None,
    cancelled: Cancelled | None,
) -> How:
    """Put every file into its place with its record; the first part last, since by it the store knows a model."""
    for file in files:
        _check_free(folder / check_file(file.name), file, on_progress, cancelled)
    records.make_folders(folder)
    meter = Meter(COPYING, sum(file.size for file in files), on_progress)
    before = 0
    how: How = "linked"
    for file in reversed(files):
        target = folder / file.name
        lock = FileLock(target.with_name(f".{target.name}.lock"), remove=True)
        with copying.writing_to(folder):
            if not lock.acquire(blocking=False):
                raise FetchError(f"{safe_line(file.name)} is being fetched or imported right now: wait until that ends")
        try:
            how = copying.place(
                file.path,
                target,
                sha256=file.sha256,
                may_share=not copy,
                on_copied=partial(_report, meter, before),
                cancelled=cancelled,
            )
            records.write(target, _record(file, target, held))
        finally:
            lock.release()
        before += file.size
    return how


def _report(meter: Meter, before: int, done: int, _total: int = 0) -> None:
    """Tell of one file of several."""
    meter.at(before + done)


def _check_free(target: Path, file: File, on_progress: OnProgress | None, cancelled: Cancelled | None) -> None:
    """Raise `UsageError` where another file has this place."""
    try:
        size = target.stat().st_size
    except OSError:
        return
    record = records.read(target)
    if record and record.sha256 == file.sha256:
        return  # what lies there is damaged or was touched, and is replaced by what was just checked
    meter = Meter(HASHING, size, on_progress)
    if (
        size == file.size
        and records.hash_file(target, on_hashed=partial(_report, meter, 0), cancelled=cancelled) == file.sha256
    ):
        return
    raise UsageError(
        f"there is another file at {safe_line(str(target))}: choose another place with --name owner/repo, or remove "
        "that one first (`localchat rm`)"
    )


def _record(file: File, target: Path, held: Foreign | None) -> records.Record:
    """The new file's record; what a record that came along knows of its origin is kept."""
    brought = records.read(file.path)
    source = "imported"
    if held:
        source = f"imported from {held.program}"
    return records.make(
        target,
        sha256=file.sha256,
        source=brought.source if brought else source,
        revision=(brought.revision if brought else "") or (held.revision if held else ""),
        name=brought.name if brought else "",
        quantization=file.header.quantization,
    )
