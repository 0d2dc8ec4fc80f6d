"""A streamed answer, read chunk by chunk, that can be stopped from any thread.

Works with this machine's host and with any OpenAI-compatible server; a server that lacks localchat's extras still
answers, only without progress and timings.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import msgspec

from localchat import protocol
from localchat.errors import EngineFailed, LocalchatError, from_code
from localchat.safe_text import safe_line

_chunk_decoder = msgspec.json.Decoder(protocol.Chunk)
_error_decoder = msgspec.json.Decoder(protocol.ErrorResponse)
_ERROR_BODY_LIMIT = 1 << 16


class Reply(NamedTuple):
    """A server's answer, with the connection that it comes over.

    The socket is kept apart: http.client forgets it where the server means to close, and stopping must still reach it.
    """

    connection: http.client.HTTPConnection
    socket: socket.socket
    response: http.client.HTTPResponse


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> Reply:
    """Send a request over an open connection and wait for the answer's head. Raises `OSError`, `HTTPException`."""
    sock = connection.sock
    connection.request(method, path, body=body, headers=headers)
    return Reply(connection, sock, connection.getresponse())


class ChatStream:
    """A streamed answer: iterate over its chunks; `close` (from any thread, at any time) stops the engine's work.

    `last_words` says what is known about an engine that died in mid-answer.
    """

    def __init__(self, reply: Reply, last_words: Callable[[], str]) -> None:
        self._reply = reply
        self._last_words = last_words
        self._closed = False

    def __iter__(self) -> Iterator[protocol.Chunk]:
        """Chunks as they arrive. Raises the error that the server names, or `EngineFailed` where it died on the way."""
        finished = False
        try:
            for line in self._lines():
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk = _chunk_decoder.decode(data)
                if chunk.error:
                    raise from_code(str(chunk.error.code), safe_line(chunk.error.message))
                finished = finished or any(choice.finish_reason for choice in chunk.choices)
                yield chunk
            if not finished and not self._closed:
                raise EngineFailed(
                    f"the engine died in mid-answer ({self._last_words()}): what came so far is kept, ask again"
                )
        except msgspec.DecodeError as error:
            raise EngineFailed(
                f"the server sent something that is not a chat chunk: {safe_line(str(error))}"
            ) from error
        finally:
            self.close()

    def _lines(self) -> Iterator[bytes]:
        while not self._closed:
            try:
                line = self._reply.response.readline()
            except (OSError, http.client.HTTPException, ValueError, AttributeError):
                # The connection broke, or was closed under our feet: __iter__ knows whether that was too early.
                return
            if not line:
                return
            yield line

    def close(self) -> None:
        """Stop: the engine notices the closed connection within one token."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._reply.socket.shutdown(socket.SHUT_RDWR)
        self._reply.connection.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def gathered(stream: ChatStream, model: str) -> protocol.Completion:
    """A streamed answer in one piece. Raises as the stream does."""
    content, reasoning, finish_reason = [], [], None
    usage: protocol.Usage | None = None
    report: protocol.Report | None = None
    for chunk in stream:
        model = chunk.model or model
        usage, report = chunk.usage or usage, chunk.localchat or report
        for choice in chunk.choices:
            content.append(choice.delta.content or "")
            reasoning.append(choice.delta.reasoning_content or "")
            finish_reason = choice.finish_reason or finish_reason
    message = protocol.CompletionMessage("".join(content), reasoning_content="".join(reasoning) or None)
    return protocol.Completion(
        id="",
        created=0,
        model=model,
        choices=[protocol.CompletionChoice(message, finish_reason)],
        usage=usage,
        localchat=report,
    )


def error_of(response: http.client.HTTPResponse) -> LocalchatError:
    """The error that an answer other than 200 stands for, whoever sent it."""
    body = response.read(_ERROR_BODY_LIMIT)
    try:
        said = _error_decoder.decode(body).error
        error = from_code(str(said.code), safe_line(said.message) or f"the server answered {response.status}")
    except msgspec.DecodeError:
        words = safe_line(body.decode(errors="replace"))[:200]
        error = EngineFailed(
            f"the server answered {response.status} {safe_line(response.reason)}: {words or 'no reason'}"
        )
    error.http_status = response.status
    return error
