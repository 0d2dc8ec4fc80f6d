"""Moves the bytes of one file from one web address to its partial, through whatever a network does on the way.

Goes on where an earlier run stopped, retries with growing, jittered pauses, honours Retry-After, and is done only when
size and sha256 are what was pinned beforehand. Knows nothing of hubs and catalogues.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from localchat.errors import Interrupted
from localchat.models.partial import Partial
from localchat.models.progress import Meter
from localchat.models.transport import STALL_BYTES, Cancelled, Reply, TransportError, request

_TRIES = 4
"""Attempts in a row that bring nothing new before a source is given up; one that stalls counts twice."""
_FIRST_PAUSE_S = 0.5
_LONGEST_WAIT_S = 30.0
_MAGIC = b"GGUF"

Explain = Callable[[Reply], str]
"""Says in a few words what an unwelcome status means at this source."""


class SourceFailed(Exception):
    """A source cannot provide the file; the text is a short reason, and the next source is tried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Retry(Exception):
    """One attempt failed; another one may do better, after `wait` seconds where the server named a time."""

    def __init__(self, reason: str, *, wait: float | None = None, range_refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.range_refused = range_refused


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
        if not partial.complete:
            _complete(url, headers, partial, meter, explain, cancelled)
        if partial.matches:
            return
        partial.quarantine()
        meter.start(0)
        if not last:
            meter.say("the bytes that arrived are not the expected ones: starting over")
    raise SourceFailed(f"sent other bytes than expected, twice (kept as {partial.damaged.name})")


def retrying(attempt: Callable[[], Reply], meter: Meter, cancelled: Cancelled | None, explain: Explain) -> Reply:
    """Run a request without a body until it is answered for good. Raises `SourceFailed`, `Interrupted`."""
    tries = 0
    while True:
        tries += 1
        try:
            reply = attempt()
            if reply.status < 400:
                return reply
            reply.close()
            raise _refusal(reply, explain, fresh_may_help=False)
        except TransportError as error:
            if error.final or error.stalled or not error.reached or tries >= _TRIES:
                raise SourceFailed(error.reason) from error
            _pause(tries, None, error.reason, meter, cancelled)
        except _Retry as retry:
            if tries >= _TRIES:
                raise SourceFailed(retry.reason) from retry
            _pause(tries, retry.wait, retry.reason, meter, cancelled)


def _complete(
    url: str, headers: Mapping[str, str], partial: Partial, meter: Meter, explain: Explain, cancelled: Cancelled | None
) -> None:
    """Fetch what is missing, in as many attempts as it takes while they bring something."""
    tries, reached, ranges = 0, False, True
    while not partial.complete:
        before = partial.done
        try:
            _attempt(url, headers, partial, meter, explain, cancelled, ranges)
            continue
        except TransportError as error:
            reached = reached or error.reached or partial.done > before
            # A server that was never there is not asked twice: another source may be.
            if error.final or not reached:
                raise SourceFailed(error.reason) from error
            reason, wait, cost = error.reason, None, 2 if error.stalled else 1
        except _Retry as retry:
            reached, reason, wait, cost = True, retry.reason, retry.wait, 1
            ranges = ranges and not retry.range_refused
        # A trickle is no headway: it would be retried for years.
        tries = 1 if partial.done >= before + STALL_BYTES else tries + cost
        if tries >= _TRIES:
            raise SourceFailed(reason)
        _pause(tries, wait, reason, meter, cancelled)


def _attempt(
    url: str,
    headers: Mapping[str, str],
    partial: Partial,
    meter: Meter,
    explain: Explain,
    cancelled: Cancelled | None,
    ranges: bool,
) -> None:
    """Ask once and write what comes. Raises `_Retry`, `TransportError`, `SourceFailed`."""
    asked = dict(headers)
    size = partial.pin.size
    etag = partial.etag_for(url)
    ranged = ranges and partial.done > 0
    if ranged:
        asked["range"] = f"bytes={partial.done}-"
        if etag:
            asked["if-range"] = etag
    elif partial.done:
        partial.restart()
    reply = request("GET", url, asked, cancelled=cancelled)
    try:
        _check(reply, partial, etag, ranged, explain)
        if reply.status == 200 and partial.done:
            partial.restart()
        meter.start(partial.done)
        partial.from_now_on(url, _strong(reply.headers.get("etag", "")))
        for chunk in reply.chunks():
            if partial.done < len(_MAGIC) and not _MAGIC[partial.done :].startswith(
                chunk[: len(_MAGIC) - partial.done]
            ):
                raise SourceFailed("sent something that is not a GGUF file")
            partial.append(chunk)
            meter.at(partial.done)
            if partial.complete:
                return
    finally:
        reply.close()
    if partial.done < size:
        raise _Retry(f"ended after {partial.done:,} of {size:,} bytes")


def _check(reply: Reply, partial: Partial, etag: str, ranged: bool, explain: Explain) -> None:
    """Accept exactly the answers whose bytes belong where they would be written."""
    size = partial.pin.size
    if reply.status == 416:
        there = reply.headers.get("content-range", "").rpartition("/")[2]
        if there.isdecimal() and int(there) != size:
            raise SourceFailed(f"has a file of {int(there):,} bytes where {size:,} were expected")
        raise _Retry("refused to go on in the middle", range_refused=True)
    if reply.status not in (200, 206):
        raise _refusal(reply, explain, fresh_may_help=partial.done > 0)
    if reply.headers.get("content-encoding", "identity") != "identity":
        raise SourceFailed("sent the file compressed, which it must not be")
    if reply.headers.get("content-type", "").startswith("text/html"):
        raise SourceFailed("sent a web page for a model (does this network ask you to log in first?)")
    if reply.status == 206:
        expected = f"bytes {partial.done}-{size - 1}/{size}"
        if not ranged or reply.headers.get("content-range", "").strip() != expected:
            raise _Retry("sent another part of the file than was asked for", range_refused=True)
        if etag and reply.headers.get("etag", etag) != etag:
            raise _Retry("the file changed on its way", range_refused=True)
        return
    length = reply.headers.get("content-length", "")
    if length.isdecimal() and int(length) != size:
        raise SourceFailed(f"has a file of {int(length):,} bytes where {size:,} were expected")


def _refusal(reply: Reply, explain: Explain, *, fresh_may_help: bool) -> Exception:
    """What an error status means for the next step."""
    reason = explain(reply)
    transient = reply.status in (408, 425, 429) or reply.status >= 500
    # A signed address that expired in mid-transfer; the next attempt gets a new one.
    if not transient and not (reply.status == 403 and fresh_may_help):
        return SourceFailed(reason)
    wait = retry_after(reply.headers.get("retry-after", ""))
    if wait is not None and wait > _LONGEST_WAIT_S:
        return SourceFailed(f"{reason} and asks to come back in {wait:,.0f} s")
    return _Retry(reason, wait=wait)


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None where it says neither."""
    value = value.strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _pause(tries: int, wait: float | None, reason: str, meter: Meter, cancelled: Cancelled | None) -> None:
    """Wait before another attempt: as long as the server asked, or longer each time, never all at the same moment."""
    if wait is None:
        wait = _FIRST_PAUSE_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
    meter.say(f"{reason}; trying again in {max(1, round(wait))} s")
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        if cancelled and cancelled():
            raise Interrupted("stopped: what was fetched so far is kept, and asking again goes on from there")
        time.sleep(min(left, 0.05))


def _strong(etag: str) -> str:
    """An entity tag that If-Range may carry: weak ones promise too little."""
    return etag if etag.startswith('"') else ""
