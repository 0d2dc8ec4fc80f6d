"""Brings a model that is not on this machine: its sources in order, verified, into its place in the store.

The one door to the network for models. One source down is not the end; where none answers, the error says how to bring
the file over by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from localchat.errors import DamagedFile, FetchError, Interrupted, NoSuchModel
from localchat.locks import FileLock
from localchat.models import gguf, records, store
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.records import Cancelled
from localchat.models.store import ModelFile
from localchat.models.transfer.partial import disk_errors
from localchat.models.transfer.progress import FetchProgress, Meter, OnProgress
from localchat.models.wanted import Wanted, in_order
from localchat.paths import paths
from localchat.safe_text import safe_line
from localchat.settings import is_offline, settings

__all__ = ["THIS_MACHINE", "FetchProgress", "ensure", "fetch", "fetch_files"]

THIS_MACHINE = "this machine"
"""The source that progress names while a file that is here already is verified."""

_OFFLINE = " and localchat is set to stay offline: leave out --offline (or set LOCALCHAT_OFFLINE=0), or "
_POLL_S = 0.1


def ensure(
    name: str | None = None, *, on_progress: OnProgress | None = None, cancelled: Cancelled | None = None
) -> ModelFile:
    """The model that `name` means, fetched first where it is in the catalogue and not on this machine.

    Without a name and with nothing installed that is the settings' model, else the starter. Raises what
    `store.resolve` raises, `FetchError` where it cannot be brought, and `Interrupted`.
    """
    try:
        return store.resolve(name, on_hashed=Meter(THIS_MACHINE, 0, on_progress).hashed, cancelled=cancelled)
    except NoSuchModel:
        asked = name or settings().model
        hit = catalogue().find(asked) if asked else (catalogue().starter, None)
        if not hit:
            raise
    entry, quantization = hit
    return fetch(entry, quantization, on_progress=on_progress, cancelled=cancelled)


def fetch(
    entry: Entry,
    quantization: Quantization | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancelled: Cancelled | None = None,
) -> ModelFile:
    """Bring a catalogue entry, in the quantization that suits this machine unless one is given; return it, verified.

    Raises as `fetch_files` does, and `DoesNotFit` where no quantization can run here.
    """
    from localchat.models import plan

    chosen = plan.of_entry(entry, quantization)
    chosen.check_fit()
    return fetch_files(chosen.files, on_progress=on_progress, cancelled=cancelled)


def fetch_files(
    files: Sequence[Wanted], *, on_progress: OnProgress | None = None, cancelled: Cancelled | None = None
) -> ModelFile:
    """Bring all files of a model, its first part (and so the model) last; return it, verified.

    Another process that fetches the same file is waited for, and its result used. Raises `FetchError` with one reason
    for each source and what to do by hand, `Interrupted`, and `LocalchatError` where a folder cannot be made.
    """
    first = files[0]
    missing = [file for file in files if not _is_file(file.place)]
    if missing and is_offline():
        kind = "not" if first in missing else "not whole"
        raise FetchError(f"{first.name} is {kind} on this machine{_OFFLINE}{_by_hand(missing[0])}")
    sizes = {file.place: file.size or 0 for file in files}
    for file in in_order(files):
        before = sum(size for place, size in sizes.items() if _is_file(place) and place != file.place)
        _fetch_one(file, _shifted(on_progress, before, sum(sizes.values())), cancelled)
    # Its whole path: where the person is may be a folder with the same names in it.
    return store.resolve(str(paths().models / first.place), cancelled=cancelled)


def _fetch_one(wanted: Wanted, on_progress: OnProgress | None, cancelled: Cancelled | None) -> None:
    """Bring one file into its place, unless it is there."""
    place = paths().models / wanted.place
    records.make_folders(place.parent)
    lock = FileLock(place.with_name(f".{place.name}.lock"), remove=True)
    with disk_errors(place.parent):
        _wait_for(lock, Meter(wanted.name, 0, on_progress), cancelled)
    try:
        if not _is_there(place, wanted, on_progress, cancelled):
            _from_first_source(wanted, place, on_progress, cancelled)
    finally:
        lock.release()


def _is_file(place: PurePosixPath) -> bool:
    return (paths().models / place).is_file()


def _shifted(on_progress: OnProgress | None, before: int, total: int) -> OnProgress | None:
    """Progress of one file of several, told as progress of them all."""
    if not on_progress or not before:
        return on_progress

    def shifted(state: FetchProgress) -> None:
        if state.total:
            left = (total - before - state.done) / state.bytes_per_second if state.bytes_per_second else None
            state = replace(state, done=before + state.done, total=max(total, before + state.total), eta=left)
        on_progress(state)

    return shifted


def _from_first_source(
    wanted: Wanted, place: Path, on_progress: OnProgress | None, cancelled: Cancelled | None
) -> None:
    """Publish the file and its record from the first source that has it. Raises `FetchError`, `Interrupted`."""
    # Imported here because it brings what opens connections, which those who have a model never pay for.
    from localchat.models import sources

    if is_offline():
        raise FetchError(f"{wanted.name} is not whole on this machine{_OFFLINE}{_by_hand(wanted)}")
    reasons: list[str] = []
    for source in wanted.sources:
        label = sources.label(source)
        meter = Meter(label, wanted.size or 0, on_progress)
        if reasons:
            meter.say(f"{reasons[-1]}; trying {label}")
        try:
            with sources.brought(source, wanted, place, meter, cancelled) as (file, pin):
                header = gguf.read_header(file)
                with disk_errors(place.parent):
                    # A record of another file that was here would make this one a damaged one, if we are killed now.
                    records.forget(place)
                    records.publish(file, place)
                written = records.make(
                    place,
                    sha256=pin.sha256,
                    source=label,
                    revision=pin.revision,
                    name=wanted.name,
                    quantization=header.quantization,
                )
                records.write(place, written)
        except sources.SourceFailed as failed:
            reasons.append(f"{label}: {failed.reason}")
        except DamagedFile as damaged:
            reasons.append(f"{label}: {damaged.message.partition(':')[0]}")
        else:
            return
    raise FetchError(f"could not fetch {wanted.name} ({'; '.join(reasons)}): {_by_hand(wanted)}")


def _is_there(place: Path, wanted: Wanted, on_progress: OnProgress | None, cancelled: Cancelled | None) -> bool:
    """Whether the file is here, or another process brought it meanwhile; a damaged one is fetched anew and replaced."""
    checking = Meter(THIS_MACHINE, wanted.size or 0, on_progress)
    if not place.is_file():
        return False
    try:
        found = records.verified(
            place, pinned=wanted.sha256, pinned_size=wanted.size, on_hashed=checking.hashed, cancelled=cancelled
        )
    except DamagedFile as damaged:
        checking.say(f"{damaged.message.partition(': ')[0]}: it has to be fetched again")
        return False
    except OSError:
        return False
    return wanted.sha256 in (None, found.sha256)


def _wait_for(lock: FileLock, meter: Meter, cancelled: Cancelled | None) -> None:
    """Take the lock, however long the process that has it needs. Raises `Interrupted`, `OSError`."""
    if lock.acquire(blocking=False):
        return
    meter.say("another localchat is fetching this model: waiting for it")
    while not lock.acquire(blocking=False):
        if cancelled and cancelled():
            raise Interrupted("stopped waiting for the other localchat that fetches this model")
        time.sleep(_POLL_S)


def _by_hand(wanted: Wanted) -> str:
    """What a person without a network can do instead."""
    facts = [f"{wanted.size:,} bytes"] if wanted.size else []
    facts += [f"sha256 {wanted.sha256}"] if wanted.sha256 else []
    place = paths().models / wanted.place
    return (
        f"put {safe_line(place.name)} ({', '.join(facts) or 'from any machine that has it'}) into "
        f"{safe_line(str(place.parent))}, or use a file you have with -m path/to/file.gguf"
    )
