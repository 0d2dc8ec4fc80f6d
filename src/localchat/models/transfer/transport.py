"""One web request that can be stopped at once: redirects, credentials, proxies and silence handled, nothing else.

It rides on httpx2, which comes with huggingface_hub and brings proxies (`HTTPS_PROXY`, `NO_PROXY`) and the system's
certificates (`SSL_CERT_FILE`); Python's http.client would need all that written anew. The request runs in a thread of
its own and hands its bytes over through a short queue: looking up a name cannot be interrupted on any system, and a
read that waits 30 s for a silent server must not hold up the person who wants to stop.
"""

from __future__ import annotations

import ipaddress
import queue
import ssl
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from localchat.errors import Interrupted
from localchat.models.transfer.connection import Session as Session
from localchat.models.transfer.connection import TransportError as TransportError
from localchat.models.transfer.progress import STOPPED
from localchat.safe_text import safe_line
from localchat.settings import is_offline

CONNECT_S = 5.0
"""Seconds until a server must have been reached, name look-up and TLS included."""
STALL_S = 30.0
"""Seconds in which a server must send something worth the wait (`STALL_BYTES`)."""
STALL_BYTES = 32 << 10
MAX_REDIRECTS = 5
_QUEUED = 8
"""Pieces of up to 64 KiB that wait for whoever writes them; what they hold is lost when the process is killed."""
_POLL_S = 0.05

Cancelled = Callable[[], bool]


class Reply:
    """An answer whose body is still coming in. `url` is where it came from, after redirects."""

    def __init__(self, url: str, status: int, headers: Mapping[str, str], worker: _Worker) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self._worker = worker

    def chunks(self) -> Generator[bytes, None, None]:
        """The body, piece by piece, as it was sent (no decoding). Raises `TransportError` and `Interrupted`."""
        quiet_since, received, stall_s = time.monotonic(), 0, self._worker.stall_s
        while True:
            try:
                piece = self._worker.next(quiet_since + stall_s)
            except TransportError as error:
                if error.stalled and received:
                    raise _trickle() from error
                raise
            if piece is None:
                return
            yield piece
            received += len(piece)
            now = time.monotonic()
            if received >= STALL_BYTES:
                quiet_since, received = now, 0
            elif now - quiet_since > stall_s:
                raise _trickle()

    def close(self) -> None:
        """Stop the transfer; nothing more is read."""
        self._worker.stop()


def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    cancelled: Cancelled | None = None,
    follow: bool = True,
    session: Session | None = None,
    stall_s: float | None = None,
) -> Reply:
    """Send a request and return once the final answer's headers are there.

    At most five redirects are followed, to https only (plain http within this machine); without `follow` only those
    that stay on the same host. An `authorization` header goes to the first host alone. Without a `session`, the
    connection ends with the request. `stall_s` takes the place of `STALL_S`. Raises `TransportError` and `Interrupted`.
    """
    if is_offline():  # whoever asks has looked already; here it holds for everybody
        raise TransportError("localchat is set to stay offline", reached=False, final=True)
    headers = {name.lower(): value for name, value in headers.items()}
    headers["accept-encoding"] = "identity"
    check_url(url)
    asked = url
    used = session or Session()
    url, bare = used.resolve(url)
    if bare:
        headers.pop("authorization", None)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            worker = _Worker(method, url, headers, cancelled, used, STALL_S if stall_s is None else stall_s)
            reply = worker.reply()
            target = reply.headers.get("location")
            if reply.status not in (301, 302, 303, 307, 308) or not target:
                used.remember(asked, url, bare)
                return reply
            target = _target(url, target)
            if _origin(target) != _origin(url):
                if not follow:
                    return reply
                headers.pop("authorization", None)
                bare = True
            reply.close()
            url = target
        raise TransportError(f"it redirects more than {MAX_REDIRECTS} times", reached=True, final=True)
    finally:
        if not session:
            used.close()


def _target(url: str, location: str) -> str:
    """Where a redirect leads. Raises `TransportError` where nobody must go."""
    try:
        target = urljoin(url, location)
    except ValueError:
        raise TransportError("it redirects to an address that is none", reached=True, final=True) from None
    check_url(target)
    if is_loopback(urlsplit(target).hostname or "") and not is_loopback(urlsplit(url).hostname or ""):
        raise TransportError(f"{host_of(url)} redirects into this machine", reached=True, final=True)
    return target


def check_url(url: str) -> None:
    """Raise `TransportError` for an address that must not be asked: anything but https outside this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise TransportError("it gave an address that is none", reached=True, final=True) from None
    if parts.scheme == "https" and host:
        return
    if parts.scheme == "http" and is_loopback(host):
        return
    raise TransportError(f"{host_of(url)} was not asked, as only https is safe", reached=False, final=True)


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(url: str) -> str:
    """The host of an address, for a message."""
    return safe_line(urlsplit(url).hostname or "an address without a host")


def _trickle() -> TransportError:
    return TransportError("it nearly stopped sending", reached=True, stalled=True)


def _has_proxy(url: str) -> bool:
    """Whether the environment sends requests for an address through a proxy."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def _certificate_doubt(error: object) -> str:
    """What is wrong with a server's certificate, if that is what an error is about."""
    while isinstance(error, BaseException):
        if isinstance(error, ssl.SSLCertVerificationError):
            return safe_line(error.verify_message) or "not valid"
        error = error.__cause__ or error.__context__
    return ""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port or {"https": 443, "http": 80}.get(parts.scheme)


class _Worker:
    """The thread that carries one request out, and the queue through which its answer comes."""

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        cancelled: Cancelled | None,
        session: Session,
        stall_s: float,
    ) -> None:
        self.stall_s = stall_s
        self._request = (method, url, dict(headers))
        self._cancelled = cancelled
        self._session = session
        # Holds the answer, then its pieces, then None; an exception in place of any of them.
        self._queue: queue.Queue[Reply | bytes | Exception | None] = queue.Queue(_QUEUED)
        self._connected = threading.Event()
        self._stopped = threading.Event()
        session.enter()
        threading.Thread(target=self._run, name="localchat-transfer", daemon=True).start()

    def reply(self) -> Reply:
        """The answer's headers, waited for."""
        try:
            began = time.monotonic()
            while True:
                deadline = began + (self.stall_s if self._connected.is_set() else CONNECT_S)
                try:
                    item = self._queue.get(timeout=_POLL_S)
                except queue.Empty:
                    self._check_cancelled()
                    if time.monotonic() > deadline:
                        raise self._silence() from None
                    continue
                if isinstance(item, Reply):
                    return item
                raise self._as_error(item)
        except BaseException:
            self.stop()
            raise

    def next(self, deadline: float) -> bytes | None:
        """The next piece of the body; None at its end."""
        while True:
            self._check_cancelled()
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    self.stop()
                    raise self._silence() from None
                continue
            if item is None or isinstance(item, bytes):
                return item
            raise self._as_error(item)

    def stop(self) -> None:
        """Let the thread end as soon as it can; it is never waited for."""
        self._stopped.set()

    def _check_cancelled(self) -> None:
        if self._cancelled and self._cancelled():
            self.stop()
            raise Interrupted(STOPPED)

    def _silence(self) -> TransportError:
        host = host_of(self._request[1])
        if not self._connected.is_set():
            by = " through the proxy that is set" if _has_proxy(self._request[1]) else ""
            return TransportError(f"{host} did not answer within {CONNECT_S:.0f} s{by}", reached=False)
        return TransportError(f"{host} sent nothing for {self.stall_s:.0f} s", reached=True, stalled=True)

    def _as_error(self, item: object) -> TransportError:
        host = host_of(self._request[1])
        if isinstance(item, TransportError):
            return item
        if isinstance(item, httpx2.TimeoutException):
            return self._silence()
        if doubt := _certificate_doubt(item):
            return TransportError(
                f"the certificate of {host} cannot be trusted ({doubt}); if your own network has a proxy in between, "
                "name the file of its authority in SSL_CERT_FILE",
                reached=True,
                final=True,
            )
        reason = safe_line(str(item)) or type(item).__name__
        if isinstance(item, httpx2.ProxyError):
            return TransportError(f"the proxy on the way to {host} refused ({reason})", reached=False)
        if not self._connected.is_set():
            return TransportError(f"{host} cannot be reached ({reason})", reached=False)
        return TransportError(f"the connection to {host} broke ({reason})", reached=True)

    def _run(self) -> None:
        method, url, headers = self._request
        timeout = httpx2.Timeout(self.stall_s, connect=CONNECT_S)
        extensions = {"trace": self._trace}
        try:
            stream = self._session.client.stream(method, url, headers=headers, timeout=timeout, extensions=extensions)
            with stream as response:
                plain = {name.lower(): value for name, value in response.headers.items()}
                self._put(Reply(url, response.status_code, plain, self))
                for piece in response.iter_raw():
                    if not self._put(piece):
                        return
            self._put(None)
        except Exception as error:  # whatever it is crosses to the thread that asked
            self._put(error)
        finally:
            self._session.leave()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        # A proxy that takes a request to connect has not reached the server yet.
        if event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self._connected.set()

    def _put(self, item: Reply | bytes | Exception | None) -> bool:
        """Hand something over; False once nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
