"""The routes: OpenAI's chat completions and models, and localchat's own few beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from localchat import protocol
from localchat.engine.job import Event
from localchat.engine.scheduler import Engine
from localchat.errors import EngineFailed, EngineLeaving, LocalchatError, UsageError
from localchat.host.answers import Answer, Gathering, Gone, StreamedAnswer, whole_answer
from localchat.host.guard import error_response
from localchat.host.life import Life
from localchat.host.mailbox import Mailbox
from localchat.host.spec import spec_of
from localchat.models import store

_BODY_LIMIT = 64 << 20
_Body = TypeVar("_Body")
_Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(engine: Engine, life: Life) -> Starlette:
    """The host's ASGI application, without the guard in front of it."""
    routes = _Routes(engine, life)
    get, post = ["GET"], ["POST"]
    return Starlette(
        routes=[
            Route(protocol.HEALTH_PATH, routes.health, methods=get),
            Route(protocol.MODELS_PATH, routes.models, methods=get),
            Route(protocol.STATUS_PATH, routes.status, methods=get),
            Route(protocol.CHAT_PATH, routes.busy(routes.chat), methods=post),
            Route(protocol.LOAD_PATH, routes.busy(routes.load), methods=post),
            Route(protocol.UNLOAD_PATH, routes.busy(routes.unload), methods=post),
            Route(protocol.TOKENIZE_PATH, routes.busy(routes.tokenize), methods=post),
            Route(protocol.STOP_PATH, routes.stop, methods=post),
        ],
        exception_handlers={LocalchatError: _on_error, Exception: _on_surprise, 404: _on_no_route, 405: _on_no_route},
    )


class _Routes:
    def __init__(self, engine: Engine, life: Life) -> None:
        self._engine = engine
        self._life = life

    def busy(self, endpoint: _Endpoint) -> _Endpoint:
        """The endpoint as one that keeps the host alive; a streamed answer counts until it has ended.

        A host that is leaving says so instead, and the client asks the next one.
        """

        async def endpoint_while_busy(request: Request) -> Response:
            leave = self._life.enter()
            try:
                response = await endpoint(request)
            except EngineFailed as error:
                leave()
                if self._life.leaving:
                    raise EngineLeaving(error.message) from error
                raise
            except BaseException:
                leave()
                raise
            if isinstance(response, StreamedAnswer):
                response.on_end = leave
            else:
                leave()
            return response

        return endpoint_while_busy

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def models(self, request: Request) -> Response:
        files = await asyncio.to_thread(store.installed)
        return _json(protocol.ModelList([protocol.ModelCard(file.name, owned_by="localchat") for file in files]))

    async def status(self, request: Request) -> Response:
        active, queued = self._engine.counts()
        status = self._life.status()
        return _json(
            msgspec.structs.replace(
                status,
                active=active,
                queued=queued,
                answered=self._engine.answered,
                taken_bytes=status.resident_bytes + self._engine.template_process_bytes,
                max_ram=self._engine.max_ram,
                model=self._engine.loaded(),
            )
        )

    async def chat(self, request: Request) -> Response:
        body = await _body(request, protocol.ChatRequest)
        _check(body)
        may_hash = not (body.localchat and body.localchat.verified_only)
        spec = await asyncio.to_thread(spec_of, body.model, may_hash=may_hash)
        mailbox: Mailbox[Event | Gone] = Mailbox()
        # Who wants the whole answer is not woken for its pieces: with many side by side that would slow all of them.
        sink = mailbox.put if body.stream else Gathering(mailbox).put
        job = self._engine.submit(spec, body, sink)
        answer = Answer(body, spec.name, lambda: self._engine.cancel(job), mailbox)
        if body.stream:
            return StreamedAnswer(answer)
        return await whole_answer(answer, request.receive)

    async def load(self, request: Request) -> Response:
        body = await _body(request, protocol.LoadRequest)
        spec = await asyncio.to_thread(spec_of, body.model, may_hash=not body.verified_only)
        await asyncio.wrap_future(self._engine.load(spec, body.context, body.gpu_layers, body.max_ram))
        return await self.status(request)

    async def unload(self, request: Request) -> Response:
        self._engine.unload()
        return _json({"status": "ok"})

    async def tokenize(self, request: Request) -> Response:
        body = await _body(request, protocol.TokenizeRequest)
        spec = await asyncio.to_thread(spec_of, body.model, may_hash=not body.verified_only)
        tokens = await asyncio.wrap_future(self._engine.tokenize(spec, body.text, body.max_ram))
        return _json({"tokens": tokens})

    async def stop(self, request: Request) -> Response:
        asyncio.get_running_loop().call_soon(self._life.stop)
        return _json({"status": "ok"})


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """The request's body as `kind`. Raises `UsageError` naming the field that is wrong."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > _BODY_LIMIT:
            raise UsageError(f"the request is larger than {_BODY_LIMIT >> 20} MiB: send less text")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the request is not valid: {error}") from error


def _check(body: protocol.ChatRequest) -> None:
    """Refuse what localchat cannot do, rather than do something else."""
    if not body.messages:
        raise UsageError("the request has no messages: send at least one")
    goes_on = bool(body.localchat and body.localchat.continue_final)
    if goes_on != (body.messages[-1].role == "assistant"):
        wanted = "an answer to go on with" if goes_on else "a question"
        raise UsageError(f"the last message is the {body.messages[-1].role}'s: end with {wanted}")
    unsupported = {
        "n": (body.n or 1) > 1,
        "tools": bool(body.tools),
        "logprobs": bool(body.logprobs),
        "response_format": (body.response_format or {}).get("type", "text") != "text",
    }
    for name, asked in unsupported.items():
        if asked:
            raise UsageError(f"this server does not offer {name!r}: leave it out")


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LocalchatError)
    return error_response(error)


async def _on_surprise(request: Request, error: Exception) -> Response:
    return error_response(LocalchatError(f"the engine stumbled ({type(error).__name__}: {error}): see its log"))


async def _on_no_route(request: Request, error: Exception) -> Response:
    missing = UsageError(f"{request.method} {request.url.path} is not offered here")
    return error_response(missing, getattr(error, "status_code", 404))
