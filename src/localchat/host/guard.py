"""Who may ask. The Unix socket's file mode lets only its owner in; a TCP port is open to every program and web page.

So over TCP the token must be right, the Host exact (against DNS rebinding), the Origin absent (no web page has business
here) and the content JSON. Over the socket the client's version must be the host's, so that an upgrade takes effect.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from localchat import __version__, protocol
from localchat.errors import LocalchatError

_SOCKET_ONLY = (protocol.STOP_PATH,)


def error_response(error: LocalchatError, status: int | None = None) -> Response:
    """An error as OpenAI would send it."""
    body = protocol.ErrorResponse(protocol.ErrorBody(error.message, type(error).__name__, error.code))
    return Response(msgspec.json.encode(body), status or error.status, media_type="application/json")


class Guard:
    """Refuses what may not be asked, and tells `on_version_mismatch` when a client of another version comes."""

    def __init__(
        self, app: ASGIApp, token: str, port: int | None, socket_path: str, on_version_mismatch: Callable[[], None]
    ) -> None:
        self._app = app
        self._socket = (socket_path, None)
        self._token = token.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._on_version_mismatch = on_version_mismatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it with the reason why not."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        # Only what is surely our socket is trusted; whatever else it may be has to know the token.
        over_socket = tuple(scope.get("server") or ()) == self._socket
        refusal = self._refuse_version(headers) if over_socket else self._refuse_tcp(scope, headers)
        await (refusal or self._app)(scope, receive, send)

    def _refuse_tcp(self, scope: Scope, headers: Headers) -> Response | None:
        if headers.get("host") not in self._hosts:
            return _refusal(403, "this server answers to 127.0.0.1 and localhost only")
        if "origin" in headers:
            return _refusal(403, "web pages may not ask this server")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            return _refusal(401, "this server wants its bearer token: set LOCALCHAT_TOKEN or use the one it printed")
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
        ):
            return _refusal(415, "send application/json")
        if scope["path"] in _SOCKET_ONLY:
            return _refusal(403, "only the person at the machine may do that")
        return None

    def _refuse_version(self, headers: Headers) -> Response | None:
        theirs = headers.get(protocol.VERSION_HEADER)
        if theirs in (None, __version__):
            return None
        self._on_version_mismatch()
        return _refusal(409, f"this engine is of version {__version__} and makes room for version {theirs}")


def _refusal(status: int, message: str) -> Response:
    error = LocalchatError(message)
    error.code = {401: "unauthorized", 403: "forbidden", 409: "version_mismatch", 415: "unsupported_media_type"}[status]
    return error_response(error, status)
