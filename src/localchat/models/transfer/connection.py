"""What carries requests: a client as the environment wants it (proxies, authorities), its connection kept open."""

from __future__ import annotations

import ssl
import threading
from functools import cache

import httpx2

SOCKS = "a SOCKS proxy is set, for which Python needs `pip install socksio`: install that, or set an http:// proxy"


class TransportError(Exception):
    """A request brought no usable answer. The text is a short reason; `reached` tells whether a server was there."""

    def __init__(self, reason: str, *, reached: bool, final: bool = False, stalled: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reached = reached
        self.final = final
        """Asking again cannot help."""
        self.stalled = stalled
        """It cost half a minute to find out."""


class Session:
    """What requests for one file share: a connection that stays open, and the address that redirects led to.

    One request at a time; a stopped one may still be on its way out.
    """

    def __init__(self) -> None:
        self._client: httpx2.Client | None = None
        self._asked = self._address = ""
        self._bare = False
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def client(self) -> httpx2.Client:
        """The client that keeps the connection, made when it is first used. Raises `TransportError`."""
        with self._lock:
            self._client = self._client or _client()
            return self._client

    @property
    def remembers(self) -> bool:
        """Whether the next request spares itself the redirects of the one before."""
        return bool(self._address)

    def forget(self) -> None:
        """Follow the redirects anew: a signed address behind them may have expired, or lead to a broken server."""
        self._asked = self._address = ""

    def remember(self, asked: str, address: str, bare: bool) -> None:
        """Note where `asked` led to, and whether to another host, which gets no credentials (`bare`)."""
        self._asked, self._address, self._bare = (asked, address, bare) if address != asked else ("", "", False)

    def resolve(self, url: str) -> tuple[str, bool]:
        """Where a request for `url` goes, and whether without credentials."""
        return (self._address, self._bare) if url == self._asked and self._address else (url, False)

    def close(self) -> None:
        """Close the connection, at once or when the request that uses it has stopped."""
        with self._lock:
            self._closed = True
            if self._users:
                return
        self._end()

    def enter(self) -> None:
        """A request begins."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """A request has ended."""
        with self._lock:
            self._users -= 1
            if self._users or not self._closed:
                return
        self._end()

    def _end(self) -> None:
        if self._client:
            self._client.close()


@cache
def _certificates() -> ssl.SSLContext:
    """The authorities to trust, read once: that takes longer than a request within this machine."""
    return httpx2.create_ssl_context()


def _client() -> httpx2.Client:
    """A client as the environment wants it. Raises `TransportError` where that cannot be."""
    try:
        certificates = _certificates()
    except OSError as error:  # an `SSLError` too
        raise TransportError(
            f"the authorities to trust cannot be read ({error.strerror or 'no certificates'}): see SSL_CERT_FILE and "
            "SSL_CERT_DIR",
            reached=False,
            final=True,
        ) from error
    try:
        return httpx2.Client(follow_redirects=False, verify=certificates)
    except ImportError as error:
        raise TransportError(SOCKS, reached=False, final=True) from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise TransportError(
            "the proxy that is set has no address that can be used: see HTTPS_PROXY and ALL_PROXY",
            reached=False,
            final=True,
        ) from error
