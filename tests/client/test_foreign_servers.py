"""`--engine URL` against servers that do as little as they may, and servers that do what they must not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from localchat import protocol
from localchat.client import engine_at
from localchat.errors import ContextExceeded, EngineFailed, FetchError, LocalchatError, NoSuchModel
from tests.conftest import forget_home, run_cli

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
MODELS = b'{"object": "list", "data": [{"id": "m1", "extra": true}, {"id": "m2"}]}'
Answer = Callable[[socket.socket], None]


@dataclass
class Server:
    """Answers with bytes: `answer` to questions, `models` (a body) to the list of models."""

    url: str
    answer: Answer
    models: bytes = MODELS
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


def sends(raw: bytes, *, by: int | None = None) -> Answer:
    def answer(connection: socket.socket) -> None:
        size = by or max(1, len(raw))
        for at in range(0, len(raw), size):
            connection.sendall(raw[at : at + size])

    return answer


def says(status: str, body: bytes, kind: str = "application/json") -> Answer:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return sends(head.encode() + body)


@contextmanager
def serving(answer: Answer, models: bytes = MODELS) -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", answer, models)

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            stream = connection.makefile("rb")
            line = stream.readline().decode()
            headers = {}
            while text := stream.readline().strip().decode():
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            server.requests.append((line, headers, stream.read(int(headers.get("content-length", 0)))))
            if line.startswith("GET"):
                says("200 OK", server.models)(connection)
            else:
                server.answer(connection)
            connection.shutdown(socket.SHUT_WR)
            stream.read()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that waits for a connection
        listener.close()


def event(text: str | None = None, *, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice], "model": "m1", **more}).encode() + b"\n\n"


WHOLE = event("Hel") + event("lo") + event(finish="stop") + b"data: [DONE]\n\n"


def ask(server: Server | str, model: str = "m1", **fields: object) -> str:
    """What the server answers, through the client."""
    request = protocol.ChatRequest(messages=[protocol.Message("user", "hi")], model=model, **fields)  # type: ignore[arg-type]
    text = ""
    with engine_at(server if isinstance(server, str) else server.url).chat(request) as stream:
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home in which nothing is; no host ever runs there."""
    monkeypatch.setenv("LOCALCHAT_HOME", str(tmp_path / "home"))
    for name in ("LOCALCHAT_TOKEN", "LOCALCHAT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    forget_home()
    yield
    forget_home()


@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE.replace(b"data: ", b"data:"),
        WHOLE.replace(b"data: [DONE]\n\n", b""),
        b": a comment\n\nretry: 5\n\nid: 7\n\nevent: message\n" + WHOLE,
        event("Hello") + b"data: [DONE]\n\n",
        event("Hello", finish="length"),
        WHOLE.replace(b'"finish_reason": null', b'"logprobs": null'),
        event("Hello")
        + b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
        event("Hello", usage=None, system_fingerprint=None, created=1.0) + b"data: [DONE]\n\n",
        event("Hello", usage={"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": None}}, finish="stop"),
    ],
    ids=[
        "plain",
        "CRLF",
        "no space after the colon",
        "no [DONE]",
        "comments and other fields",
        "no finish reason",
        "finish reason with the text",
        "other fields in the choice",
        "usage without a total",
        "nulls",
        "cached tokens null",
    ],
)
def test_every_correct_stream_is_understood(body: bytes) -> None:
    with serving(sends(HEAD + body)) as server:
        assert ask(server) == "Hello"


@pytest.mark.parametrize("by", [1, 2, 3, 5])
def test_a_stream_in_drips_is_the_same(by: int) -> None:
    text = "naïve 😀 done"
    with serving(sends(HEAD + event(text) + event(finish="stop"), by=by)) as server:
        assert ask(server) == text


def test_a_chunked_transfer_is_the_same() -> None:
    raw = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
    for at in range(0, len(WHOLE), 9):
        part = WHOLE[at : at + 9]
        raw += f"{len(part):x}\r\n".encode() + part + b"\r\n"
    with serving(sends(raw + b"0\r\n\r\n")) as server:
        assert ask(server) == "Hello"


def test_each_piece_is_handed_on_when_it_comes() -> None:
    go = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + event("Hel"))
        assert go.wait(20)
        connection.sendall(event("lo", finish="stop"))

    with serving(answer) as server:
        request = protocol.ChatRequest(messages=[protocol.Message("user", "hi")], model="m1")
        with engine_at(server.url).chat(request) as stream:
            pieces = iter(stream)
            assert next(pieces).choices[0].delta.content == "Hel"
            go.set()
            assert next(pieces).choices[0].delta.content == "lo"


def test_only_the_standard_is_sent_to_a_server_of_another_maker() -> None:
    with serving(sends(HEAD + WHOLE)) as server:
        ask(server, seed=0, temperature=0.0, localchat=protocol.Extras(thinking=True, context=100, progress=True))
    line, headers, body = server.requests[-1]
    assert line.startswith("POST /v1/chat/completions ")
    assert json.loads(body) == {
        "model": "m1",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 0,
        "temperature": 0.0,
    }
    assert headers["content-type"] == "application/json"
    assert not {name for name in headers if "localchat" in name} and "authorization" not in headers


def test_the_first_model_that_is_offered_is_taken() -> None:
    with serving(sends(HEAD + WHOLE)) as server:
        ask(server, model="")
        assert json.loads(server.requests[-1][2])["model"] == "m1"
    with serving(sends(HEAD + WHOLE), models=b'{"data": []}') as server, pytest.raises(NoSuchModel, match="-m"):
        ask(server, model="")


def test_a_token_is_sent_to_the_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_TOKEN", "secret-7")
    with serving(sends(HEAD + WHOLE)) as server:
        ask(server)
        assert server.requests[-1][1]["authorization"] == "Bearer secret-7"


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_TOKEN", "secret-7")
    with serving(sends(HEAD + WHOLE)) as other:
        moved = f"HTTP/1.1 307 Moved\r\nLocation: {other.url}/v1/chat/completions\r\nContent-Length: 0\r\n\r\n"
        with serving(sends(moved.encode())) as server, pytest.raises(EngineFailed, match="307"):
            ask(server)
        assert other.requests == []


# What goes wrong


def error(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (says("401 Unauthorized", b"{}"), EngineFailed, "set LOCALCHAT_TOKEN"),
        (says("403 Forbidden", error("no")), EngineFailed, "no"),
        (says("404 Not Found", error("no such model", code="model_not_found")), NoSuchModel, "no such model"),
        (says("404 Not Found", b'{"detail":"Not Found"}'), EngineFailed, "404 Not Found"),
        (says("404 Not Found", b'{"error":"model x not found"}'), EngineFailed, "model x not found"),
        (says("400 Bad Request", error("too long", code="context_length_exceeded")), ContextExceeded, "too long"),
        (says("400 Bad Request", error("bad field", code=None)), EngineFailed, "bad field"),
        (says("400 Bad Request", error("bad", code=400)), EngineFailed, "bad"),
        (says("422 Unprocessable", b'{"detail":[{"msg":"x"}]}'), EngineFailed, "422"),
        (says("429 Too Many Requests", error("slow down")), EngineFailed, "slow down"),
        (says("500 Oops", b"<html><h1>Oh\x1b[31m no</h1>", "text/html"), EngineFailed, "500 Oops"),
        (says("500 Oops", b""), EngineFailed, "500 Oops: no reason"),
        (says("503 Busy", b"\xff\xfe\0"), EngineFailed, "503 Busy"),
        (says("204 No Content", b""), EngineFailed, "204"),
        (sends(HEAD + b'data: {"error": {"message": "it broke", "code": 500}}\n\n'), EngineFailed, "it broke"),
        (sends(HEAD + event("Hel") + b'data: {"error": {"message": "it broke"}}\n\n'), EngineFailed, "it broke"),
        (sends(HEAD + b"data: hello\n\n"), EngineFailed, "not a chat chunk"),
        (sends(HEAD + b'data: {"choices": 5}\n\n'), EngineFailed, "not a chat chunk"),
        (sends(HEAD + b"data: \xff\xfe\n\n"), EngineFailed, "not a chat chunk"),
        (sends(HEAD + event("Hel")), EngineFailed, "closed the connection"),
        (sends(HEAD), EngineFailed, "closed the connection"),
        (sends(b""), EngineFailed, "cannot reach"),
        (sends(b"SSH-2.0-OpenSSH_9.0\r\n"), EngineFailed, "cannot reach"),
        (sends(b"HTTP/1.1 200 OK\r\n"), EngineFailed, ""),
        (says("200 OK", b"<html>a router's page</html>", "text/html"), EngineFailed, ""),
        (says("200 OK", b'{"object": "chat.completion"}'), EngineFailed, ""),
    ],
)
def test_a_server_that_fails_is_one_sentence(answer: Answer, kind: type[LocalchatError], said: str) -> None:
    with serving(answer) as server, pytest.raises(LocalchatError) as raised:
        ask(server)
    assert type(raised.value) is kind
    message = raised.value.message
    assert said in message and "\n" not in message and "\x1b" not in message and len(message) < 500


@pytest.mark.parametrize("models", [b"", b"<html>", b"[]", b'{"data": 5}', b'{"data": [{"name": "x"}]}', b"\xff"])
def test_a_list_of_models_that_is_none(models: bytes) -> None:
    with serving(sends(HEAD + WHOLE), models) as server, pytest.raises(EngineFailed, match="not an OpenAI-compatible"):
        ask(server, model="")


def test_an_answer_that_breaks_off_keeps_what_came(tmp_path: Path) -> None:
    with serving(sends(HEAD + event("Half of it"))) as server:
        done = run_cli("ask", "--engine", server.url, "-m", "m1", "hi", home=tmp_path)
    assert (done.stdout, done.returncode) == ("Half of it\n", 7)
    assert done.stderr.startswith("localchat: ") and done.stderr.count("\n") == 1


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = run_cli("ask", "--engine", url, "hi", home=tmp_path)
    assert (done.stdout, done.returncode) == ("", 7)
    assert done.stderr == f"localchat: cannot reach {url} (Connection refused): " + (
        "see that the server runs and the URL is right\n"
    )


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "localhost",
        "ftp://host/",
        "http://",
        "http:///v1",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "file:///etc/passwd",
        "unix:/tmp/x.sock",
        "http://a b/",
        "http://host/\r\nX: y",
        "http://host/a b",
        "http://host/é",
    ],
)
def test_a_url_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    done = run_cli("ask", "--engine", url, "hi", home=tmp_path)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("localchat: --engine takes the URL of a server") and done.stderr.count("\n") == 1


def test_a_password_in_the_url_is_not_shown(tmp_path: Path) -> None:
    done = run_cli("ask", "--engine", "http://me:hunter2@127.0.0.1:9/v1", "hi", home=tmp_path)
    assert done.returncode == 7 and "hunter2" not in done.stderr


def test_offline_allows_only_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    with serving(sends(HEAD + WHOLE)) as server:
        assert ask(server) == "Hello"
        assert ask(server.url.replace("127.0.0.1", "localhost")) == "Hello"
    for url in (
        "http://192.0.2.1:8080",
        "https://example.org",
        "http://127.0.0.1.example.org",
        "http://localhost.evil.test",
    ):
        with pytest.raises(FetchError, match="offline"):
            engine_at(url)


def test_closing_from_another_thread_ends_a_silent_stream() -> None:
    silent = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + event("Hel"))
        silent.wait(20)

    with serving(answer) as server:
        request = protocol.ChatRequest(messages=[protocol.Message("user", "hi")], model="m1")
        stream = engine_at(server.url).chat(request)
        pieces = iter(stream)
        assert next(pieces).choices
        threading.Timer(0.1, stream.close).start()
        began = time.monotonic()
        assert list(pieces) == [], "it ends without an error: somebody wanted it to"
        assert time.monotonic() - began < 10
        silent.set()


def test_a_connection_that_breaks_in_an_error_is_an_engine_failure() -> None:
    broken = sends(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nhalf a")
    request = protocol.ChatRequest(model="m1", messages=[protocol.Message("user", "hi")], stream=True)
    with serving(broken) as server, pytest.raises(EngineFailed, match="cannot reach"):
        engine_at(server.url).chat(request)
