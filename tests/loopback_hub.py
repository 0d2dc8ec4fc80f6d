"""A hub on this machine for tests: it answers as a real one does, and misbehaves on request.

It serves files from memory under `/{repo}/resolve/{revision}/{file}` (HEAD and GET, with ranges) and what is known of
them under `/api/models[/{repo}[/revision/{revision}]]`. A `Fault` is put on the hub with `hub.faults.append(...)`; each
is used up after its `times`. What was asked is in `hub.requests`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Kind = Literal[
    "status",  # answer with `status` (and `error_code`, `retry_after`)
    "reset",  # break the connection after `at` bytes of the body
    "truncate",  # close the connection in good order after `at` bytes, and say so in Content-Length
    "short",  # close after `at` bytes of a longer Content-Length
    "longer",  # send more bytes than the file has, with no Content-Length
    "wrong",  # send other bytes of the same length
    "ignore_range",  # answer 200 with the whole file
    "bad_range",  # answer 206 with a Content-Range that was not asked for
    "redirect",  # answer 302 to `location`
    "drip",  # send one byte every `pause` seconds
    "hang",  # answer nothing for `pause` seconds
    "html",  # answer 200 with a web page
    "gzip",  # claim that the body is compressed
    "bomb",  # send a small compressed body that would become a large one
    "other_etag",  # send the right bytes under another ETag
    "weak_etag",  # send them under a weak one
    "changed",  # from now on the file has other bytes and another ETag
    "no_promise",  # leave out X-Linked-Etag, X-Linked-Size and X-Repo-Commit
]


@dataclass
class Fault:
    """One kind of misbehaviour, for the next `times` requests with one of `methods`."""

    kind: Kind
    times: int = 1
    methods: tuple[str, ...] = ("GET",)
    status: int = 503
    error_code: str = ""
    retry_after: str = ""
    at: int = 0
    location: str = ""
    pause: float = 0.0
    skip: int = 0
    """How many requests that would be met are answered well before."""


@dataclass
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    start: int = 0
    """First byte of the file that the answer holds."""
    sent: int = 0
    """Bytes of the body that were sent."""


@dataclass
class HubFile:
    """A file of a repo."""

    content: bytes
    commit: str = COMMIT

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class LoopbackHub:
    """The state of a running hub; `url` is what HF_ENDPOINT takes."""

    url: str = ""
    files: dict[tuple[str, str], HubFile] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    """How many connections were opened so far."""
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    """Repos whose files are only for those who accepted the licence (here: for `token`)."""
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    """Sizes that a listing claims against the truth."""
    plain: bool = False
    """Answer as an ordinary web server: no promise of a hash, and no entity tag that is one."""
    bytes_per_second: float | None = None
    """Of each connection; a change holds at once, also for what is on its way."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: threading.Event = field(default_factory=threading.Event)
    """Set once the hub ends: what hangs until then is let go."""

    def add(self, repo: str, file: str, content: bytes, commit: str = COMMIT) -> HubFile:
        """Offer a file; return what a catalogue would pin of it."""
        self.files[repo, file] = HubFile(content, commit)
        return self.files[repo, file]

    def address(self, repo: str, file: str) -> str:
        """Where a file is."""
        return f"{self.url}/{repo}/resolve/main/{file}"

    def asked(self, method: str) -> list[Request]:
        """The requests so far with this method."""
        return [request for request in self.requests if request.method == method]

    def fault_for(self, method: str) -> Fault | None:
        """The first fault that applies, used up by one."""
        with self.lock:
            for fault in self.faults:
                if method not in fault.methods or fault.times <= 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(64 << 20), 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.hub.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in mid-transfer are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.command, self.path, headers)
        hub.requests.append(self.request_seen)
        if hub.token and headers.get("authorization") not in (None, f"Bearer {hub.token}"):
            self._refuse(401)
            return
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models"):
            self._api(path)
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        file = hub.files.get((match[1], match[3])) if match else None
        if not match or file is None:
            self._refuse(404, "EntryNotFound")
            return
        if match[1] in hub.gated and (not hub.token or "authorization" not in headers):
            self._refuse(403, "GatedRepo")
            return
        if match[2] not in ("main", file.commit):
            self._refuse(404, "RevisionNotFound")
            return
        self._file(file, headers, hub.fault_for(self.command))

    def _file(self, file: HubFile, headers: dict[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            self._refuse(fault.status, fault.error_code, fault.retry_after)
            return
        if fault and kind == "redirect":
            self._send(302, {"Location": fault.location, **self._promise(file)}, b"")
            return
        if fault and kind == "hang":
            self.server.hub.closed.wait(fault.pause)
        if kind == "html":
            self._send(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Please log in</html>")
            return
        if kind == "changed":
            other = bytes(byte ^ 0x5A for byte in file.content[4:4096])
            file.content = file.content[:4] + other + file.content[4096:]
        content, size = file.content, len(file.content)
        if kind == "wrong":
            content = content[: size // 2] + bytes([content[size // 2] ^ 0xFF]) + content[size // 2 + 1 :]
        status, start = 200, 0
        answer = {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        if self.server.hub.plain:
            answer["ETag"] = '"plain"'
        elif kind != "no_promise":
            answer |= self._promise(file)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        fresh = headers.get("if-range") in (None, answer["ETag"])
        if asked and fresh and kind != "ignore_range":
            start = int(asked[1])
            end = min(int(asked[2]), size - 1) if asked[2] else size - 1
            if start >= size or end < start:
                self._send(416, {"Content-Range": f"bytes */{size}"}, b"")
                return
            shift = 1 if kind == "bad_range" else 0
            status, content = 206, content[start : end + 1]
            answer["Content-Range"] = f"bytes {start + shift}-{end}/{size}"
        if kind in ("gzip", "bomb"):
            answer["Content-Encoding"] = "gzip"
        if kind == "bomb":
            content = _bomb()
        if kind in ("other_etag", "weak_etag"):
            answer["ETag"] = '"other"' if kind == "other_etag" else 'W/"weak"'
        if kind == "longer":
            content += b"more" * 1000
        self.request_seen.start = start
        self._send(status, answer, content, fault)

    def _promise(self, file: HubFile) -> dict[str, str]:
        return {
            "X-Repo-Commit": file.commit,
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(len(file.content)),
        }

    def _refuse(self, status: int, code: str = "", retry_after: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        headers |= {"Retry-After": retry_after} if retry_after else {}
        self._send(status, headers, b"no")

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        kind = fault.kind if fault else ""
        length = len(body)
        if fault and kind in ("truncate", "short", "reset"):
            body = body[: fault.at]
            length = len(body) if kind == "truncate" else length
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "longer":
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        self._write(body, fault)
        if kind == "reset":
            # A closing with SO_LINGER 0 is a TCP reset, as a box in the middle would send it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if kind in ("reset", "short"):
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()

    def _write(self, body: bytes, fault: Fault | None) -> None:
        if fault and fault.kind == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.request_seen.sent += 1
                time.sleep(fault.pause)
            return
        while body:
            speed = self.server.hub.bytes_per_second
            step = max(1, int(speed / 50)) if speed else len(body)
            self.wfile.write(body[:step])
            self.request_seen.sent += len(body[:step])
            body = body[step:]
            if speed:
                time.sleep(1 / 50)

    def _api(self, path: str) -> None:
        hub = self.server.hub
        rest = path.removeprefix("/api/models").strip("/")
        repo, _, revision = rest.partition("/revision/")
        repos = {name for name, _ in hub.files}
        if rest and repo not in repos:
            self._refuse(404, "RepoNotFound")
            return
        found = [self._info(name) for name in sorted(repos) if name == repo or not rest]
        if revision not in ("", "main", *(info["sha"] for info in found)):
            self._refuse(404, "RevisionNotFound")
            return
        words = parse_qs(urlsplit(self.path).query).get("search", [""])[0].lower().split()
        found = [info for info in found if all(word in info["id"].lower() for word in words)]
        body = json.dumps(found[0] if rest else found).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _info(self, repo: str) -> dict[str, Any]:
        files = {file: held for (name, file), held in self.server.hub.files.items() if name == repo}
        return {
            "id": repo,
            "modelId": repo,
            "sha": next(iter(files.values())).commit,
            "private": False,
            "gated": "manual" if repo in self.server.hub.gated else False,
            "downloads": 1,
            "likes": 0,
            "tags": ["gguf", "license:apache-2.0"],
            "siblings": [
                {
                    "rfilename": file,
                    "size": self.server.hub.sizes.get((repo, file), len(held.content)),
                    "lfs": {"sha256": held.sha256, "size": len(held.content), "pointerSize": 134},
                }
                for file, held in files.items()
            ],
        }


@contextmanager
def running_hub(tls: ssl.SSLContext | None = None) -> Iterator[LoopbackHub]:
    """Run a hub on a free port of this machine until the block ends; with `tls`, over https."""
    hub = LoopbackHub()
    server = _Server(hub)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    hub.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
