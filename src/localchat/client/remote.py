"""An engine somewhere else: any server that speaks the OpenAI chat-completions protocol, named by its URL."""

from __future__ import annotations

import http.client
import os
from urllib.parse import urlsplit

import msgspec

from localchat import protocol
from localchat.client.stream import ChatStream, Reply, error_of, gathered, send
from localchat.errors import EngineFailed, FetchError, LocalchatError, NoSuchModel, UsageError
from localchat.safe_text import safe_line
from localchat.settings import is_offline

_CONNECT_TIMEOUT_S = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_BODY_LIMIT = 1 << 24


class RemoteEngine:
    """The server at `url` (its base, with or without `/v1`).

    A bearer token is taken from `LOCALCHAT_TOKEN`. Raises `UsageError` for a URL that is none, `FetchError` where the
    person forbade the network.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            is_sound = parts.scheme in ("http", "https") and url.isprintable() and " " not in url
        except ValueError:
            is_sound, host = False, None
        if not (is_sound and host and parts.path.isascii()):
            raise UsageError(
                f"--engine takes the URL of a server, such as http://127.0.0.1:8080, not {safe_line(url)!r}"
            )
        if is_offline() and host not in _LOOPBACK:
            raise FetchError(f"offline is set, and {host} is not this machine: unset it, or leave --engine out")
        self._secure = parts.scheme == "https"
        self._host, self._port = host, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Content-Type": "application/json"}
        if token := os.environ.get("LOCALCHAT_TOKEN"):
            self._headers["Authorization"] = f"Bearer {token}"
        self._speaks_localchat = False
        self._is_known = False

    @property
    def goes_on(self) -> bool:
        """Whether it can continue an answer that ended too early; known once it was asked something."""
        return self._speaks_localchat

    def models(self) -> list[str]:
        """The ids of the models that the server offers. Raises `EngineFailed` where it does not answer as one."""
        reply = self._send("GET", protocol.MODELS_PATH, patience_s=_CONNECT_TIMEOUT_S)
        try:
            self._speaks_localchat = (reply.response.getheader("Server") or "").startswith("localchat/")
            self._is_known = True
            body = reply.response.read(_BODY_LIMIT)
            return [card.id for card in msgspec.json.decode(body, type=protocol.ModelList).data]
        except (msgspec.DecodeError, OSError, http.client.HTTPException) as error:
            raise EngineFailed(f"{self._name} is not an OpenAI-compatible server: give the URL of one") from error
        finally:
            reply.connection.close()

    def chat(self, request: protocol.ChatRequest) -> ChatStream:
        """Begin to stream an answer; an empty `request.model` takes the first one that the server offers.

        localchat's extras are sent only to a server that says it is localchat: strict ones refuse unknown fields.
        """
        model = request.model
        if model:
            self._learn()
        else:
            model = self.first_model()
        return self._stream(msgspec.structs.replace(request, model=model))

    def answer(self, request: protocol.ChatRequest) -> protocol.Completion:
        """The whole answer in one piece, to a request that names its model. It is streamed all the same, so that no
        proxy on the way takes the quiet for the end; whose server it is, is asked only once. Raises as `chat` does.
        """
        if not self._is_known:
            self._learn()
        with self._stream(request) as stream:
            return gathered(stream, request.model)

    def first_model(self) -> str:
        """The model that answers where none is named. Raises `NoSuchModel`, and as `models` does."""
        offered = self.models()
        if not offered:
            raise NoSuchModel(f"{self._name} offers no model: name one with -m")
        return offered[0]

    def _learn(self) -> None:
        """Find out whose server it is; one without a list of models may still answer."""
        try:
            self.models()
        except LocalchatError as error:
            self._is_known = error.http_status is not None

    def _stream(self, request: protocol.ChatRequest) -> ChatStream:
        request = msgspec.structs.replace(
            request,
            stream=True,
            stream_options=protocol.StreamOptions(include_usage=True),
            localchat=request.localchat if self._speaks_localchat else None,
        )
        reply = self._send("POST", protocol.CHAT_PATH, msgspec.json.encode(request))
        return ChatStream(reply, lambda: f"{self._name} closed the connection")

    def _send(self, method: str, path: str, body: bytes | None = None, patience_s: float | None = None) -> Reply:
        """Send one request; the answer is 200 or an error is raised."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            # Reading a long prompt can take minutes before the first byte of an answer.
            connection.sock.settimeout(patience_s)
            reply = send(connection, method, self._path + path, body, self._headers)
            if reply.response.status == 200:
                return reply
            refusal = error_of(reply.response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise EngineFailed(
                f"cannot reach {self._name} ({safe_line(reason)}): see that the server runs and the URL is right"
            ) from error
        connection.close()
        if reply.response.status == 401:
            raise EngineFailed(f"{self._name} wants a token: set LOCALCHAT_TOKEN to it")
        raise refusal
