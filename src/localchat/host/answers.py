"""An answer as it leaves the host: streamed as server-sent events, or whole."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localchat import protocol
from localchat.engine.job import Event, Finished
from localchat.engine.text import Piece
from localchat.errors import LocalchatError
from localchat.host.guard import error_response
from localchat.host.mailbox import Mailbox

_PACE_S = 0.06
"""Tokens that come within this time leave together: each departure costs time that the engine's threads would use."""

_DONE = b"data: [DONE]\n\n"


class Gone:
    """The client has closed its connection."""


@dataclass
class Answer:
    """A running request, seen from the event loop: its events, and how to stop it."""

    request: protocol.ChatRequest
    model: str
    cancel: Callable[[], None]
    mailbox: Mailbox[Event | Gone]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def watch(self, receive: Receive) -> None:
        """Wait until the client goes away, and say so in the mailbox."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.mailbox.put(Gone())


class StreamedAnswer(Response):
    """Server-sent events, one chunk each, the last with finish reason, usage and localchat's report."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._answer = answer
        extras = answer.request.localchat
        self._speaks_localchat = extras is not None
        self._wants_progress = extras is not None and extras.progress
        options = answer.request.stream_options
        self._wants_usage = self._speaks_localchat or (options is not None and options.include_usage)
        self._role: str | None = "assistant"
        self.on_end: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as it comes; a client that goes away stops the engine."""
        watcher = asyncio.create_task(self._answer.watch(receive))
        ended = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not ended:
                body, ended = self._encode(await self._answer.mailbox.take())
                await send({"type": "http.response.body", "body": body, "more_body": not ended})
                if not ended:
                    await asyncio.sleep(_PACE_S)
        finally:
            watcher.cancel()
            if not ended:
                self._answer.cancel()
            self.on_end()

    def _encode(self, events: list[Event | Gone]) -> tuple[bytes, bool]:
        """The bytes for what has come since the last departure, and whether the answer has ended."""
        body = b""
        text = Piece()
        for event in events:
            if isinstance(event, Piece):
                text.reasoning += event.reasoning
                text.content += event.content
                text.tokens = event.tokens
                continue
            body += self._delta(text)
            text = Piece()
            if isinstance(event, Gone):
                self._answer.cancel()
                return body, True
            if isinstance(event, protocol.Progress):
                body += self._progress(event)
            elif isinstance(event, Finished):
                return body + self._last(event) + _DONE, True
            else:
                error = protocol.ErrorBody(event.message, type(event).__name__, event.code)
                return body + self._chunk(error=error) + _DONE, True
        return body + self._delta(text), False

    def _chunk(self, **fields: object) -> bytes:
        chunk = protocol.Chunk(
            id=self._answer.id,
            created=self._answer.created,
            model=self._answer.model,
            **fields,  # type: ignore[arg-type]
        )
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _delta(self, text: Piece) -> bytes:
        if not text:
            return b""
        delta = protocol.Delta(self._role, text.content or None, text.reasoning or None)
        self._role = None
        report = protocol.Report(completion_tokens=text.tokens) if self._speaks_localchat else None
        return self._chunk(choices=[protocol.Choice(delta=delta)], localchat=report)

    def _progress(self, progress: protocol.Progress) -> bytes:
        if self._wants_progress:
            return self._chunk(localchat=protocol.Report(progress=progress))
        # A comment keeps a foreign client's connection alive while a long prompt is read.
        return f": {progress.stage} {progress.done:.0f} of {progress.total:.0f}\n\n".encode()

    def _last(self, finished: Finished) -> bytes:
        last = protocol.Choice(delta=protocol.Delta(self._role), finish_reason=finished.reason)
        report = finished.report if self._speaks_localchat else None
        if not self._wants_usage:
            return self._chunk(choices=[last])
        if self._speaks_localchat:
            return self._chunk(choices=[last], usage=finished.usage, localchat=report)
        # OpenAI sends usage in a chunk of its own, after the finish reason.
        return self._chunk(choices=[last]) + self._chunk(usage=finished.usage)


class Gathering:
    """Puts an answer together on the engine's thread; the mailbox gets all of its text with its end."""

    def __init__(self, mailbox: Mailbox[Event | Gone]) -> None:
        self._mailbox = mailbox
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def put(self, event: Event) -> None:
        """Take an event; progress is for who watches."""
        if isinstance(event, Piece):
            self._content.append(event.content)
            self._reasoning.append(event.reasoning)
        elif not isinstance(event, protocol.Progress):
            self._mailbox.put(Piece("".join(self._reasoning), "".join(self._content)))
            self._mailbox.put(event)


async def whole_answer(answer: Answer, receive: Receive) -> Response:
    """The answer in one piece, once it is complete."""
    watcher = asyncio.create_task(answer.watch(receive))
    text = Piece()
    ended = False
    try:
        while True:
            for event in await answer.mailbox.take():
                if isinstance(event, Piece):
                    text.reasoning += event.reasoning
                    text.content += event.content
                elif isinstance(event, Finished):
                    ended = True
                    return _completion(answer, text, event)
                elif isinstance(event, LocalchatError):
                    ended = True
                    return error_response(event)
                elif isinstance(event, Gone):
                    return Response(status_code=499)
    finally:
        watcher.cancel()
        if not ended:
            answer.cancel()


def _completion(answer: Answer, text: Piece, finished: Finished) -> Response:
    message = protocol.CompletionMessage(text.content, reasoning_content=text.reasoning or None)
    completion = protocol.Completion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[protocol.CompletionChoice(message, finished.reason)],
        usage=finished.usage,
        localchat=finished.report if answer.request.localchat else None,
    )
    return Response(msgspec.json.encode(completion), media_type="application/json")
