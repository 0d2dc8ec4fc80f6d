"""Moves the bytes of one file from one web address to its partial, through whatever a network does on the way.

Goes on where an earlier run stopped, and is done only when size and sha256 are what was pinned beforehand. Knows
nothing of hubs and catalogues.
"""

from __future__ import annotations

from collections.abc import Mapping

from localchat.errors import Interrupted
from localchat.models.transfer.partial import Partial
from localchat.models.transfer.progress import STOPPED, Meter
from localchat.models.transfer.ranges import OneStream, Transfer
from localchat.models.transfer.retries import Explain, SourceFailed, retry_after, retrying
from localchat.models.transfer.transport import Cancelled

__all__ = ["Explain", "SourceFailed", "download", "retry_after", "retrying"]

_CHANGES = 3
"""How often a file may change, or a server its mind, before the source is given up."""
_POLL_S = 0.05


def download(
    url: str,
    headers: Mapping[str, str],
    partial: Partial,
    meter: Meter,
    *,
    explain: Explain,
    cancelled: Cancelled | None,
) -> None:
    """Bring `partial` to its pinned size and sha256.

    Each attempt starts from `url`, so that signed addresses behind it are always fresh. Raises `SourceFailed`,
    `FetchError` (disk) and `Interrupted`.
    """
    for last in (False, True):
        _complete(url, headers, partial, meter, explain, cancelled)
        while not partial.hashed(_POLL_S):
            if cancelled and cancelled():
                raise Interrupted(STOPPED)
        if partial.matches:
            return
        partial.quarantine()
        meter.start(0)
        if not last:
            meter.say("the bytes that arrived are not the expected ones: starting over")
    raise SourceFailed(f"sent other bytes than expected, twice (kept as {partial.damaged.name})")


def _complete(
    url: str, headers: Mapping[str, str], partial: Partial, meter: Meter, explain: Explain, cancelled: Cancelled | None
) -> None:
    """Fetch what is missing: in ranges, else in one stream; over from the beginning where the file changed."""
    ranges, changes = True, 0
    while not partial.complete:
        try:
            Transfer(url, headers, partial, explain, ranges=ranges).run(meter, cancelled)
        except OneStream as refused:
            changes += 1
            if changes > _CHANGES:
                raise SourceFailed(refused.reason) from refused
            ranges = ranges and refused.changed and changes < 2
            # Without an entity tag nobody can tell whether the bytes so far are of the same file.
            if refused.changed or not partial.etag_for(url):
                partial.restart()
                meter.say(f"{refused.reason}: starting over")
            else:
                partial.cut()
