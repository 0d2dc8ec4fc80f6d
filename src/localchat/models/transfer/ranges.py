"""Brings what a partial lacks from one address, over several connections at once where that can help.

Delivery networks cap each connection, so a large file comes in ranges. The first connection finds out whether the
server sends the part that it is asked for; only then others join in. A file of moderate size comes in one stream. Each
connection has a thread that tries, writes and waits; the thread that called watches over all of them, and is the only
one that talks to the person.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping

from localchat.errors import Interrupted
from localchat.models.transfer import transport
from localchat.models.transfer.partial import UNIT, Partial
from localchat.models.transfer.progress import STOPPED, Meter
from localchat.models.transfer.retries import TRIES, Explain, Patience, Retry, SourceFailed, notice, refusal
from localchat.models.transfer.tasks import Task, Tasks
from localchat.models.transfer.transport import STALL_BYTES, Cancelled, Reply, Session, TransportError, request

CONNECTIONS = 8
CHUNK = 16 << 20
"""Bytes that are asked for at once."""
ONE_STREAM_BELOW = 32 << 20
"""Bytes of a file for which more than one connection is not worth it."""

_MORE_TRIES = 6
"""Attempts in a row of which none brings anything, where this transfer did bring something: networks come back."""
_REJOIN_S = 10.0
"""Seconds after a connection gave up until another one is opened in its place."""
_WRITE_S = 2.0
"""Seconds after which bytes are written although they are no full unit yet, so that a slow line loses little."""
_NOTHING_S = 55.0
"""Seconds without a single byte on any connection after which the source is given up."""
_POLL_S = 0.05
_MAGIC = b"GGUF"


class OneStream(Exception):
    """Ranges do not work with this server, or (`changed`) what it has now is another file than before."""

    def __init__(self, retry: Retry) -> None:
        super().__init__(retry.reason)
        self.reason = retry.reason
        self.changed = retry.changed


class Transfer:
    """One go at bringing all that is missing. Without `ranges`, the server's one stream is read from its beginning."""

    def __init__(
        self, url: str, headers: Mapping[str, str], partial: Partial, explain: Explain, *, ranges: bool
    ) -> None:
        self._url = url
        self._headers = headers
        self._partial = partial
        self._explain = explain
        self._ranges = ranges
        self._etag = partial.etag_for(url)
        self._had = partial.done
        self._most = CONNECTIONS if ranges and partial.pin.size >= ONE_STREAM_BELOW else 1
        self._tasks = Tasks(partial.missing, CHUNK if self._most > 1 else partial.pin.size)
        # Shared by the threads of all connections.
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._active = 0
        self._proven = self._reached = False
        self._rejoin_at = 0.0
        self._failure: BaseException | None = None
        self._notices: deque[str] = deque()
        self._stop = threading.Event()
        self._news = threading.Event()

    def run(self, meter: Meter, cancelled: Cancelled | None) -> None:
        """Return when all bytes are there; raise `OneStream`, `SourceFailed`, `FetchError` (disk), `Interrupted`.

        Whatever ends it, the bytes that came are in the partial, and no thread uses that any more.
        """
        meter.start(self._had)
        self._connect()
        accepted, moved_at = 0, time.monotonic()
        try:
            while self._tasks.left and not self._failure:
                self._news.wait(_POLL_S)
                self._news.clear()
                if cancelled and cancelled():
                    raise Interrupted(STOPPED)
                if self._tasks.accepted > accepted:
                    accepted, moved_at = self._tasks.accepted, time.monotonic()
                elif time.monotonic() - moved_at > _NOTHING_S:
                    raise SourceFailed(f"sent nothing for {_NOTHING_S:.0f} s")
                while self._notices:
                    meter.say(self._notices.popleft())
                meter.at(self._had + self._tasks.accepted)
                self._connect_more()
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if self._failure:
            raise self._failure
        meter.at(self._partial.done)

    def _connect(self) -> None:
        self._active += 1
        thread = threading.Thread(target=self._work, name="localchat-range", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _connect_more(self) -> None:
        """Open more connections, once it is known that the server sends ranges, and as long as there is work."""
        with self._lock:
            if self._proven and time.monotonic() >= self._rejoin_at:
                while self._active < min(self._most, -(-self._tasks.left // CHUNK)):
                    self._connect()

    def _work(self) -> None:
        """What the thread of one connection does."""
        session, patience = Session(), Patience()
        try:
            while task := self._tasks.take(self._stop.is_set):
                before = task.at
                try:
                    # Two stalls in a row must not cost a person more than a minute.
                    self._attempt(task, session, transport.STALL_S * (1 if patience.tries < 2 else 2 / 3))
                    patience.reset()
                    continue
                except (TransportError, Retry) as error:
                    failed = error
                finally:
                    self._tasks.give_back(task)
                    self._news.set()
                # A trickle is no headway: it would be retried for years.
                if task.at - before >= STALL_BYTES:
                    patience.reset()
                session.forget()
                pause_s = self._after(failed, patience)
                if pause_s is None:
                    return
                self._stop.wait(pause_s)
        except Interrupted:
            pass  # by `_stop`: whoever set that knows why
        except BaseException as error:  # whatever it is crosses to the thread that watches
            with self._lock:
                self._failure = self._failure or error
        finally:
            session.close()
            self._news.set()

    def _after(self, failed: TransportError | Retry, patience: Patience) -> float | None:
        """Seconds until the connection that failed tries again; None where it leaves the work to the others.

        Raises `SourceFailed` and `OneStream` where this is the end for all.
        """
        limit = _MORE_TRIES if self._tasks.accepted else TRIES
        asked, overloaded, unreachable = None, False, False
        if isinstance(failed, TransportError):
            if failed.final:
                raise SourceFailed(failed.reason)
            patience.tries += limit // 2 if failed.stalled else 1
            # Of a thin line, eight connections each get too little.
            overloaded, unreachable = failed.stalled, not failed.reached
        else:
            patience.tries += 1
            asked, overloaded = failed.wait, failed.busy
            # One odd answer is an accident, as long as others were right.
            if failed.changed or (failed.range_refused and (not self._proven or patience.tries > 1)):
                raise OneStream(failed)
        with self._lock:
            if self._active > 1 and (overloaded or unreachable or patience.tries >= limit):
                # Fewer connections may be what this server can bear.
                self._most -= overloaded
                self._active -= 1
                self._rejoin_at = time.monotonic() + _REJOIN_S
                return None
            alone = self._active == 1
            self._reached = self._reached or not unreachable
        # A server that was never there is not asked twice: another source may be.
        if not self._reached or patience.tries >= limit:
            raise SourceFailed(failed.reason)
        wait = patience.pause_s(failed.reason, asked)
        if alone:
            self._notices.append(notice(failed.reason, wait))
        return wait

    def _attempt(self, task: Task, session: Session, stall_s: float) -> None:
        """Ask once and write what comes. Raises `Retry`, `TransportError`, `SourceFailed`."""
        first, end, size = task.at, task.end, self._partial.pin.size
        ranged = self._ranges and (first, end) != (0, size)
        reply = self._ask(first, end, ranged, session, stall_s)
        writer = _Writer(self._partial, first)
        try:
            self._check(reply, first, end, ranged)
            if reply.status == 200:
                first, end = 0, size
            self._accepted(reply, task)
            at = first
            for piece in reply.chunks():
                if at < len(_MAGIC) and not _MAGIC[at:].startswith(piece[: len(_MAGIC) - at]):
                    raise SourceFailed("sent something that is not a GGUF file")
                wanted = piece[max(0, task.at - at) :]
                at += len(piece)
                count = self._tasks.accept(task, len(wanted))
                writer.add(wanted[:count])
                # The end of the answer is waited for where it must be next: the connection is then of further use.
                if not task.left and (at != end or reply.headers.get("content-length") != str(end - first)):
                    return
            if task.left:
                raise Retry(f"ended after {at:,} of {size:,} bytes")
        finally:
            reply.close()
            writer.flush()

    def _ask(self, first: int, end: int, ranged: bool, session: Session, stall_s: float) -> Reply:
        """Send the request, to where redirects led before if that still works."""
        headers = dict(self._headers)
        if ranged:
            headers["range"] = f"bytes={first}-" if end == self._partial.pin.size else f"bytes={first}-{end - 1}"
            if self._etag:
                headers["if-range"] = self._etag
        for fresh in (not session.remembers, True):
            reply = request("GET", self._url, headers, cancelled=self._stop.is_set, session=session, stall_s=stall_s)
            # Signed addresses expire, and servers say so in many ways.
            if fresh or not 400 <= reply.status < 500 or reply.status in (408, 416, 425, 429):
                break
            reply.close()
            session.forget()
        return reply

    def _check(self, reply: Reply, first: int, end: int, ranged: bool) -> None:
        """Accept exactly the answers whose bytes belong where they would be written."""
        size, length = self._partial.pin.size, reply.headers.get("content-length", "")
        begun = self._partial.done > 0 or self._proven
        if reply.status == 416:
            length = reply.headers.get("content-range", "").rpartition("/")[2]
        elif reply.status not in (200, 206):
            # A signed address that expired in mid-transfer, maybe right after it was given.
            has_expired = begun and (reply.status == 403 or reply.url != self._url)
            raise refusal(reply, self._explain, fresh_may_help=has_expired)
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise SourceFailed("sent the file compressed, which it must not be")
        if reply.headers.get("content-type", "").startswith("text/html"):
            raise SourceFailed("sent a web page for a model (does this network ask you to log in first?)")
        if reply.status != 206 and length.isdecimal() and len(length) < 16 and int(length) != size:
            raise SourceFailed(f"has a file of {int(length):,} bytes where {size:,} were expected")
        if reply.status == 416:
            raise Retry("refused to go on in the middle", range_refused=ranged)
        if begun and self._etag and reply.headers.get("etag", self._etag) != self._etag:
            raise Retry("the file changed on its way", changed=True)
        if begun and not self._etag and not self._partial.pin.sha256:
            raise Retry("nothing says whether the file is still the same", changed=True)
        if reply.status == 206:
            expected = f"bytes {first}-{end - 1}/{size}"
            if not ranged or reply.headers.get("content-range", "").strip() != expected:
                raise Retry("sent another part of the file than was asked for", range_refused=ranged)
            # Parts of what may become another file meanwhile must not be put together.
            if not begun and not self._partial.pin.sha256 and not _strong(reply.headers.get("etag", "")):
                raise Retry("does not tell one state of the file from another", range_refused=True)
        elif ranged and begun:
            raise Retry("sent the whole file where a part was asked for", range_refused=True)

    def _accepted(self, reply: Reply, task: Task) -> None:
        """Learn from an answer that will do."""
        with self._lock:
            self._reached = True
            if reply.status == 200:
                self._most = 1
                self._tasks.take_all(task)
            if not self._proven:
                self._proven = True
                self._etag = _strong(reply.headers.get("etag", self._etag))
                self._partial.from_now_on(self._url, self._etag)


def _strong(etag: str) -> str:
    """An entity tag that If-Range may carry: weak ones promise too little."""
    return etag if etag.startswith('"') else ""


class _Writer:
    """Collects what one connection brings until it is worth writing."""

    def __init__(self, partial: Partial, start: int) -> None:
        self._partial = partial
        self._start = start
        self._pieces: list[bytes] = []
        self._length = 0
        self._write_by = 0.0

    def add(self, piece: bytes) -> None:
        """Take the bytes that come next."""
        if not self._pieces:
            self._write_by = time.monotonic() + _WRITE_S
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length >= UNIT or time.monotonic() >= self._write_by:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._length:
            data = b"".join(self._pieces)
            self._partial.write(self._start, data)
            self._start += self._length
            self._pieces, self._length = [], 0
