"""Reads models again from beginning to end, and compares their sha256 with their records and the catalogue.

A file that was found wrong is never used again until it was replaced: its record says so. A record that was wrong about
a file that the catalogue vouches for is put right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from localchat.errors import DamagedFile, NoSuchModel
from localchat.models import gguf, records, store
from localchat.models.catalogue import Quantization, catalogue
from localchat.models.names import split_siblings
from localchat.models.records import Cancelled
from localchat.models.store import ModelFile
from localchat.models.transfer.progress import Meter, OnProgress
from localchat.models.upkeep import projectors
from localchat.paths import paths
from localchat.safe_text import safe_line

State = Literal["ok", "recorded", "corrected", "other revision", "damaged", "missing", "unreadable"]
SOUND = ("ok", "recorded", "corrected", "other revision")
"""`recorded`: it had no record and has one now. `corrected`: its record was wrong, and is right now. `other revision`:
it is whole, and not the one that the catalogue names now."""


class Checked(msgspec.Struct, frozen=True):
    """One file, read again. `problem` is a sentence with the next step where something is wrong. `size` is bytes."""

    name: str
    path: str
    state: State
    size: int = 0
    sha256: str = ""
    problem: str = ""


def check(
    name: str | None = None, *, on_progress: OnProgress | None = None, cancelled: Cancelled | None = None
) -> Iterator[Checked]:
    """Check one model, or all: every part, and every projector beside them. Raises `NoSuchModel`, `Interrupted`."""
    models = [store.find(name)] if name else store.installed()
    for model, path in _files(models):
        meter = Meter(f"verifying {path.name}", _size(path), on_progress)
        yield _checked(model, path, partial(_report, meter), cancelled)


def _files(models: list[ModelFile]) -> list[tuple[ModelFile, Path]]:
    files: dict[Path, ModelFile] = {}
    for model in models:
        for path in [model.path.with_name(name) for name in split_siblings(model.path.name)]:
            files[path] = model
    for model in models:
        for path in projectors.in_folder(model.path.parent):
            files.setdefault(path, model)
    return [(model, path) for path, model in files.items()]


def _checked(model: ModelFile, path: Path, on_hashed: partial[None], cancelled: Cancelled | None) -> Checked:
    """Read one file and judge it."""
    sha256 = ""
    try:
        status = path.stat()
        sha256 = records.hash_file(path, on_hashed=on_hashed, cancelled=cancelled)
        state, problem = _judged(path, sha256, status)
    except FileNotFoundError:
        state, problem = "missing", f"{safe_line(path.name)} is missing"
    except OSError as error:
        state, problem = "unreadable", f"it cannot be read ({error.strerror})"
    except (DamagedFile, NoSuchModel) as error:
        state, problem = "damaged", error.message.rpartition(":")[0]
    if problem:
        problem += f": remove it with `localchat rm {safe_line(model.name)}` and fetch or copy it again"
    return Checked(model.name, str(path), state, _size(path), sha256, problem)


def _judged(path: Path, sha256: str, status: os.stat_result) -> tuple[State, str]:
    """What a file with this hash is, and what is wrong with it; its record is brought up to date.

    `status` is what it was before it was read. Raises `OSError`, and `DamagedFile` where its header is unsound.
    """
    known, pin = records.read(path), _pin(path)
    if known and known.sha256 == sha256:
        state: State = "ok" if not pin or pin.sha256 in (None, sha256) else "other revision"
        if state == "ok" or known.revision:
            records.refreshed(path, known, status)
            return state, ""
    elif known and not (pin and pin.sha256 == sha256):
        records.distrust(path)
        return "damaged", f"its sha256 is not {known.sha256[:12]}… as when it was verified"
    if pin and pin.sha256 and pin.sha256 != sha256:
        records.distrust(path)
        return "damaged", f"its sha256 is not {pin.sha256[:12]}… as the catalogue has it"
    label = gguf.read_header(path).quantization
    made = records.make(path, sha256=sha256, source="carried over by hand", quantization=label)
    records.refreshed(path, made, status)
    return ("corrected" if known else "recorded"), ""


def _pin(path: Path) -> Quantization | None:
    """What the catalogue says of the file in this place, be it a model or a projector."""
    quantization = store.pinned(path)
    if quantization:
        return quantization
    for entry in catalogue().model:
        if entry.projector and paths().models / entry.place(entry.projector) == path:
            return entry.projector
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _report(meter: Meter, done: int, _total: int) -> None:
    meter.at(done)
