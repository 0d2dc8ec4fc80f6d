"""Who gets in over TCP, and what is said to a request that is not as it should be: raw bytes, no client in between."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conftest import STARTER, status_of
from tests.host.conftest import Server

CHAT = "/v1/chat/completions"
QUESTION = {"model": STARTER, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

# For each part of a request: what is right, and what is not (with the status it gets).
HOSTS = {
    "127.0.0.1:{port}": 0,
    "localhost:{port}": 0,
    "127.0.0.1": 403,
    "127.0.0.1:1": 403,
    "evil.test": 403,
    "evil.test:{port}": 403,
    "127.0.0.1.evil.test:{port}": 403,
    "127.0.0.1:{port}.evil.test": 403,
    "0.0.0.0:{port}": 403,
    "[::1]:{port}": 403,
    "": 403,
}
ORIGINS = {
    None: 0,
    "null": 403,
    "https://evil.test": 403,
    "http://127.0.0.1:{port}": 403,
    "http://localhost:{port}": 403,
    "": 403,
}
TOKENS = {
    "Bearer {token}": 0,
    "bearer {token}": 0,
    None: 401,
    "": 401,
    "Bearer": 401,
    "Bearer ": 401,
    "Bearer wrong": 401,
    "Bearer {token}x": 401,
    "Bearer x{token}": 401,
    "Basic {token}": 401,
    "{token}": 401,
    "Bearer {token} {token}": 401,
}
TYPES = {
    "application/json": 0,
    "application/json; charset=utf-8": 0,
    "Application/JSON": 0,
    None: 415,
    "text/plain": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/form-data": 415,
    "application/jsonp": 415,
    "text/plain; application/json": 415,
}
PATHS = {
    ("POST", CHAT): 0,
    ("GET", "/v1/models"): 0,
    ("GET", "/health"): 0,
    ("POST", "/localchat/stop"): 403,
    ("GET", CHAT): 405,
    ("POST", "/v1/models"): 405,
    ("DELETE", "/v1/models"): 405,
    ("GET", "/"): 404,
    ("GET", "/v1/files"): 404,
    ("GET", "/v1/models/../../etc/passwd"): 404,
    ("OPTIONS", CHAT): 405,
}


def cases() -> Iterator[tuple[tuple[str, str], str | None, str | None, str | None, str | None, int]]:
    """The right request with each part changed, and with each two of host, origin, token and type changed."""
    parts: list[dict[str | None, int]] = [HOSTS, ORIGINS, TOKENS, TYPES]  # type: ignore[list-item]
    right = [next(iter(part)) for part in parts]
    post = ("POST", CHAT)
    for at, part in enumerate(parts):
        for value, status in part.items():
            yield post, *[*right[:at], value, *right[at + 1 :]], status  # type: ignore[misc]
    for path, status in PATHS.items():
        yield path, *right, status  # type: ignore[misc]
    for one, two in itertools.combinations(range(4), 2):
        wrong = [next(value for value, status in part.items() if status) for part in parts]
        values = [wrong[at] if at in (one, two) else right[at] for at in range(4)]
        yield post, *values, next(parts[at][values[at]] for at in (one, two))  # type: ignore[misc]
    everything = [[value for value, status in part.items() if status][-1] for part in parts]
    yield post, *everything, 403  # type: ignore[misc]


CASES = list(cases())


def exchange(server: Server, raw: bytes, answers: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    """Send raw bytes, and read whole answers to them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with suppress(OSError):  # a request that is refused need not be read to its end
            connection.sendall(raw)
        stream = connection.makefile("rb")
        found = []
        for _ in range(answers):
            status = int(stream.readline().split()[1])
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            found.append((status, headers, stream.read(int(headers.get("content-length", 0)))))
        return found


def request(
    server: Server,
    method: str = "POST",
    path: str = CHAT,
    body: bytes = json.dumps(QUESTION).encode(),
    **changed: str | None,
) -> bytes:
    """The bytes of a request; `host`, `origin`, `authorization` and `content_type` None leave the header out."""
    headers = {
        "host": "127.0.0.1:{port}",
        "origin": None,
        "authorization": "Bearer {token}",
        "content_type": "application/json",
        **changed,
    }
    lines = [f"{method} {path} HTTP/1.1"]
    for name, value in headers.items():
        if value is not None:
            shown = value.replace("{port}", str(server.port)).replace("{token}", server.token)
            lines.append(f"{name.replace('_', '-')}: {shown}")
    if body and method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body if method == "POST" else b"")


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 50 and len([case for case in CASES if case[-1] == 0]) >= 8


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, (*case[0], *case[1:]))))
def test_only_the_right_request_gets_in(
    server: Server, case: tuple[tuple[str, str], str | None, str | None, str | None, str | None, int]
) -> None:
    (method, path), host, origin, token, kind, expected = case
    raw = request(server, method, path, host=host, origin=origin, authorization=token, content_type=kind)
    ((status, headers, body),) = exchange(server, raw)
    assert status == (expected or 200)
    if expected:
        error = json.loads(body)["error"]
        assert error["message"] and error["code"]
    assert "access-control-allow-origin" not in headers
    assert server.token.encode() not in body


def test_requests_without_a_host_or_with_two_are_refused(server: Server) -> None:
    assert exchange(server, request(server, host=None))[0][0] in (400, 403)
    two = request(server).replace(b"host:", b"host: evil.test\r\nhost:", 1)
    assert exchange(server, two)[0][0] in (400, 403)
    old = request(server, "GET", "/v1/models", host=None).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(server, old)[0][0] in (400, 403)


def test_stop_is_for_the_socket_alone(server: Server) -> None:
    for path in ("/localchat/stop", "/localchat/stop/", "/localchat//stop", "/LOCALCHAT/STOP", "/localchat/%73top"):
        ((status, _, _),) = exchange(server, request(server, "POST", path, b"{}"))
        assert status in (307, 403, 404), path
    assert status_of(server.home)


# What is wrong inside


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not valid"),
        (b"{", "not valid"),
        (b"[]", "array"),
        (b'"text"', "str"),
        (b"\xff\xfe", "not valid"),
        (b'{"messages": 1}', "$.messages"),
        (b"{}", "messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "$.messages[0].role"),
        (b'{"messages": [{"content": "x"}]}', "role"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "$.messages[0].content"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "$.messages[0].content[0]"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "$.temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 99}', "$.temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "$.max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": -5}', "$.seed"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "$.stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": [1]}', "$.stop"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "localchat": {"overflow": "drop"}}',
            "$.localchat.overflow",
        ),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "assistant"),
        (b'{"messages": []}', "no messages"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "../../no/such/file"}', "no/such/file"),
    ],
)
def test_a_body_that_is_wrong_is_answered_with_what_is(server: Server, body: bytes, named: str) -> None:
    ((status, _, answer),) = exchange(server, request(server, body=body))
    error = json.loads(answer)["error"]
    assert status in (400, 404) and named in error["message"]
    assert "Traceback" not in error["message"]


def test_nesting_without_end_is_refused(server: Server) -> None:
    body = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ((status, _, _),) = exchange(server, request(server, body=body))
    assert status == 400


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    raw = request(server, body=b'{"messages": "' + b"x" * (65 << 20) + b'"}')
    ((status, _, answer),) = exchange(server, raw)
    assert status == 400 and b"64 MiB" in answer
    assert status_of(server.home)


def test_an_oversized_head_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request(server).replace(b"host:", b"x: " + b"x" * 200_000 + b"\r\nhost:", 1))
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 4")
    assert status_of(server.home)


def test_rubbish_is_refused_and_harms_nobody(server: Server) -> None:
    for rubbish in (b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(rubbish)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")
    assert status_of(server.home)


# HTTP itself


def test_a_head_request_is_a_get_without_a_body(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = request(server, "HEAD", "/v1/models").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        connection.sendall(head)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")


def test_a_chunked_upload_is_read(server: Server) -> None:
    body = json.dumps(QUESTION).encode()
    raw = request(server, body=b"").removesuffix(b"\r\n\r\n") + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    for at in range(0, len(body), 7):
        part = body[at : at + 7]
        raw += f"{len(part):x}\r\n".encode() + part + b"\r\n"
    ((status, _, answer),) = exchange(server, raw + b"0\r\n\r\n")
    assert status == 200 and json.loads(answer)["choices"]


def test_one_connection_serves_many_requests(server: Server) -> None:
    models = request(server, "GET", "/v1/models")
    # All at once: the answers come in order, errors in between do not break it.
    raw = models + request(server) + request(server, body=b"{") + request(server, "GET", "/nowhere") + models
    assert [status for status, _, _ in exchange(server, raw, answers=5)] == [200, 200, 400, 404, 200]


def test_an_upload_that_stops_half_way_harms_nobody(server: Server) -> None:
    raw = request(server)
    for end in (10, len(raw) - 5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(raw[:end])
    ((status, _, _),) = exchange(server, request(server))
    assert status == 200
