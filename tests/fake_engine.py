"""A fake engine on loopback that speaks the protocol for real: what it answers is a script, what it is asked is kept.

    with FakeEngine() as engine:
        engine.script(say("Hello "), wait("go"), say("you."), usage())
        stream = engine_at(engine.url).chat(request)
        ...
        engine.go("go")

A script is a list of steps. `wait` holds an answer until the test says `go`, so that no test has to sleep.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from localchat import __version__, protocol
from localchat.protocol import Choice, Chunk, Delta, ErrorBody, Progress, Report, Timings, Usage

MODEL = "fake-1b"
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Wait:
    gate: str


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Die:
    """Break the connection off with no end of the stream."""


@dataclass(frozen=True)
class Refuse:
    """Answer with an error in place of a stream."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, in place of a chunk."""

    data: bytes


Step = Chunk | Wait | Pause | Die | Refuse | Raw


def _delta(**fields: str) -> Chunk:
    return Chunk(model=MODEL, choices=[Choice(delta=Delta(**fields))])


def say(text: str, *, by: int | None = None) -> list[Step]:
    """The answer's text, in pieces of `by` characters or in one."""
    by = by or max(1, len(text))
    return [_delta(content=text[start : start + by]) for start in range(0, len(text), by)]


def think(text: str, *, by: int | None = None) -> list[Step]:
    by = by or max(1, len(text))
    return [_delta(reasoning_content=text[start : start + by]) for start in range(0, len(text), by)]


def progress(stage: protocol.Stage, done: float, total: float, eta_ms: float | None = None, **more: int) -> list[Step]:
    return [Chunk(model=MODEL, localchat=Report(progress=Progress(stage, done, total, eta_ms), **more))]


def wait(gate: str) -> list[Step]:
    return [Wait(gate)]


def pause(seconds: float) -> list[Step]:
    return [Pause(seconds)]


def finish(reason: str = "stop") -> list[Step]:
    return [Chunk(model=MODEL, choices=[Choice(finish_reason=reason)])]


def usage(
    prompt: int = 24, completion: int = 12, *, context: int | None = 4096, speed: float = 23.4, **more: int
) -> list[Step]:
    report = Report(context=context, seed=7, timings=Timings(tokens_per_second=speed), **more)
    return [Chunk(model=MODEL, usage=Usage(prompt, completion, prompt + completion), localchat=report)]


def fail(code: str, message: str) -> list[Step]:
    """An error in a stream that had begun."""
    return [Chunk(error=ErrorBody(message=message, code=code))]


@dataclass
class FakeEngine:
    """The engine: `script` what it will answer, one call for each question; the last script is used again and again."""

    models: list[str] = field(default_factory=lambda: [MODEL])
    requests: list[protocol.ChatRequest] = field(default_factory=list)
    """What it was asked."""
    closed_early: threading.Event = field(default_factory=threading.Event)
    """Set once a client has closed the connection in mid-answer."""

    _scripts: list[list[Step]] = field(default_factory=list)
    _gates: dict[str, threading.Event] = field(default_factory=dict)
    _connections: set[socket.socket] = field(default_factory=set)

    def script(self, *steps: list[Step], end: bool = True) -> None:
        """What to answer to the next question; `end` adds a finish reason and usage where there are none."""
        flat = [step for part in steps for step in part]
        chunks = [step for step in flat if isinstance(step, Chunk)]
        if end and not any(choice.finish_reason for chunk in chunks for choice in chunk.choices):
            flat += finish()
        if end and not any(chunk.usage for chunk in chunks):
            flat += usage()
        self._scripts.append(flat)

    def go(self, gate: str) -> None:
        """Let an answer that waits at `gate` go on."""
        self._gate(gate).set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def die(self) -> None:
        """Be gone, as after a kill -9: no listener, every connection broken off."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for gate in self._gates.values():
            gate.set()

    def __enter__(self) -> FakeEngine:
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def _gate(self, name: str) -> threading.Event:
        return self._gates.setdefault(name, threading.Event())

    def _next(self, request: protocol.ChatRequest) -> Iterator[Step]:
        self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        yield from script


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left is nothing to report


def _handler_for(engine: FakeEngine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = f"localchat/{__version__}"
        sys_version = ""

        def do_GET(self) -> None:
            cards = [protocol.ModelCard(name) for name in engine.models]
            self._send(200, msgspec.json.encode(protocol.ModelList(cards)))

        def do_POST(self) -> None:
            engine._connections.add(self.connection)
            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._stream(engine._next(msgspec.json.decode(body, type=protocol.ChatRequest)))
            except OSError:
                engine.closed_early.set()
            finally:
                engine._connections.discard(self.connection)

        def _stream(self, steps: Iterator[Step]) -> None:
            begun = False
            self.close_connection = True
            for step in steps:
                if isinstance(step, Refuse):
                    error = protocol.ErrorResponse(ErrorBody(message=step.message, code=step.code))
                    self._send(step.status, msgspec.json.encode(error))
                    return
                if not begun and not isinstance(step, Die):
                    begun = True
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                if isinstance(step, Die):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(step, Wait):
                    self._hold(engine._gate(step.gate).wait)
                elif isinstance(step, Pause):
                    self._hold(threading.Event().wait, step.seconds)
                elif isinstance(step, Raw):
                    self._write(step.data)
                else:
                    named = msgspec.structs.replace(step, model=engine.models[0]) if step.model == MODEL else step
                    self._write(b"data: " + msgspec.json.encode(named) + b"\n\n")
            self._write(b"data: [DONE]\n\n")
            self._write(b"")

        def _hold(self, wait: Callable[[float], bool], seconds: float = _PATIENCE_S) -> None:
            """Wait, but notice (as the real engine does) a client that leaves meanwhile."""
            waited = 0.0
            while waited < seconds and not wait(min(0.01, seconds - waited)):
                waited += 0.01
                self.connection.settimeout(0.0)
                try:
                    if not self.connection.recv(1, socket.MSG_PEEK):
                        raise ConnectionResetError("the client has left")
                except BlockingIOError:
                    pass
                finally:
                    self.connection.settimeout(None)

        def _write(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
