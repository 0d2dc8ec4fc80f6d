"""What localchat's files take on the disk, each file counted once, however many names it has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from localchat.models import store
from localchat.models.upkeep import housekeeping, projectors
from localchat.paths import paths


class Use(msgspec.Struct, frozen=True):
    """One line: what it is, and the bytes it takes.

    `shared`: the same file is linked elsewhere too, so that removing it frees nothing. `repeated`: the same file was
    counted before under another name.
    """

    name: str
    kind: str
    size: int
    shared: bool = False
    repeated: bool = False


class Usage(msgspec.Struct, frozen=True):
    """All of it, in bytes. `total` leaves out what is repeated; `free` is what the disk of the models has left."""

    lines: list[Use]
    total: int
    shared: int
    free: int
    folder: str


def usage() -> Usage:
    """Look at everything that localchat keeps."""
    seen: set[tuple[int, int]] = set()
    models, data = paths().models, paths().data
    lines = []
    counted: set[Path] = set()
    for model in store.installed():
        projector = projectors.beside(model.path)
        files = [*store.parts(model.path), *([projector] if projector else [])]
        lines.append(_use(model.name, "model", [file for file in files if file not in counted], seen))
        counted.update(files)
    found, _ = housekeeping.leftovers()
    for kind in dict.fromkeys(one.kind for one in found):
        lines.append(_use(f"{kind}s", "leftover", [one.path for one in found if one.kind == kind], seen))
    lines.append(_use("prompts that models have read (`localchat cache`)", "other", [paths().cache], seen))
    own = (models, paths().runtime, data, paths().state, paths().config, paths().cache)
    for folder in dict.fromkeys((data, paths().state, paths().config)):
        for path in _listed(folder):
            # The sockets and locks of the runtime folder take nothing.
            if path not in own:
                lines.append(_use(path.name, "other", [path], seen))
    lines = [line for line in lines if line.size or line.kind == "model"]
    there = next((folder for folder in (models, *models.parents) if folder.is_dir()), Path("/"))
    return Usage(
        lines=lines,
        total=sum(line.size for line in lines if not line.repeated),
        shared=sum(line.size for line in lines if line.shared and not line.repeated),
        free=shutil.disk_usage(there).free,
        folder=str(models),
    )


def _use(name: str, kind: str, files: list[Path], seen: set[tuple[int, int]]) -> Use:
    size = 0
    shared = repeated = False
    for file in files:
        try:
            status = file.stat() if file.is_file() else file.lstat()
        except OSError:
            continue
        identity = (status.st_dev, status.st_ino)
        repeated = repeated or identity in seen
        is_here = file.is_symlink() or status.st_nlink > 1
        shared = shared or (is_here and file.is_file())
        size += status.st_size if is_here and file.is_file() else housekeeping.room_of(file)
        seen.add(identity)
    return Use(name, kind, size, shared, repeated)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError:
        return []
