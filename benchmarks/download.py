"""Downloads from a server on this machine: many connections against one where each is capped, and against `curl`.

`python benchmarks/download.py [ROUNDS]`. The server is a process of its own that sends with `sendfile`, on the same
cores. localchat's time ends when the file is verified, flushed to the disk and in its place; `curl` flushes nothing, so
that `sha256sum` after it reads what the system still has in memory.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import child_json, environment, interleaved, report

CAP = 20e6
"""Bytes per second of each capped connection."""
CAPPED_SIZE = 256 << 20
LARGE_SIZE = 1 << 30

LOCALCHAT = """
import hashlib, json, resource, sys, time
from pathlib import Path
from localchat.models import records
from localchat.models.transfer import ranges
from localchat.models.transfer.download import download
from localchat.models.transfer.partial import Partial, Pin
from localchat.models.transfer.progress import Meter
url, folder, sha256, size, connections = sys.argv[1:]
ranges.CONNECTIONS = int(connections)
began = time.perf_counter()
partial = Partial(Path(folder) / "model.gguf", Pin(sha256, int(size)))
partial.open(lambda done: None, None)
download(url, {}, partial, Meter("", int(size), None), explain=lambda reply: str(reply.status), cancelled=None)
partial.close()
records.publish(partial.path, partial.final)
partial.discard()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def serve(path: str, cap: float) -> None:
    """Answer GET with ranges for one file until killed; print the port first."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    file = os.open(path, os.O_RDONLY)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, file, cap), daemon=True).start()


def answer(connection: socket.socket, file: int, cap: float) -> None:
    size = os.fstat(file).st_size
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    try:
        while True:
            while b"\r\n\r\n" not in received:
                if not (more := connection.recv(1 << 16)):
                    return
                received += more
            head, _, received = received.partition(b"\r\n\r\n")
            asked = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d*)", head)
            at = int(asked[1]) if asked else 0
            end = int(asked[2]) + 1 if asked and asked[2] else size
            status = b"206 Partial Content" if asked else b"200 OK"
            connection.sendall(
                b'HTTP/1.1 %s\r\nETag: "benchmark"\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n\r\n'
                % (status, end - at, at, end - 1, size)
            )
            began, sent = time.perf_counter(), 0
            while at < end:
                count = os.sendfile(connection.fileno(), file, at, min(end - at, int(cap / 50) if cap else 16 << 20))
                at, sent = at + count, sent + count
                if cap:
                    time.sleep(max(0.0, sent / cap - (time.perf_counter() - began)))
    except OSError:
        return
    finally:
        connection.close()


@contextmanager
def serving(path: Path, cap: float = 0) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "serve", str(path), str(cap)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/model.gguf"
    finally:
        process.kill()


def made(folder: Path, size: int) -> tuple[Path, str]:
    """A file of random bytes that begins like a model, and its sha256."""
    path = folder / f"{size}.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF")
        while (left := size - file.tell()) > 0:
            file.write(os.urandom(min(left, 1 << 24)))
    return path, subprocess.check_output(["sha256sum", str(path)], text=True).split()[0]


def main(rounds: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="localchat-benchmark-"))
    env = environment(folder)
    peaks: list[float] = []

    def localchat(url: str, sha256: str, size: int, connections: int) -> float:
        target = folder / "localchat"
        target.mkdir()
        result = child_json(LOCALCHAT, env, url, str(target), sha256, str(size), str(connections))
        shutil.rmtree(target)
        peaks.append(result["peak"])
        return result["seconds"]

    def curl(url: str, *hashing: str) -> float:
        target = str(folder / "curl")
        began = time.perf_counter()
        subprocess.run(["curl", "-s", "-o", target, url], check=True)
        if hashing:
            subprocess.run([*hashing, target], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        os.unlink(target)  # noqa: PTH108
        return seconds

    try:
        path, sha256 = made(folder, CAPPED_SIZE)
        with serving(path, CAP) as url:
            capped = interleaved(
                {
                    "one connection": lambda: localchat(url, sha256, CAPPED_SIZE, 1),
                    "eight connections": lambda: localchat(url, sha256, CAPPED_SIZE, 8),
                },
                rounds,
            )
        title = f"{CAPPED_SIZE >> 20} MiB from a server that caps each connection at {CAP / 1e6:.0f} MB/s"
        report(title, "s", capped, [("one connection", "eight connections")])
        path, sha256 = made(folder, LARGE_SIZE)
        with serving(path) as url:
            large = interleaved(
                {
                    "localchat": lambda: localchat(url, sha256, LARGE_SIZE, 8),
                    "curl, sha256sum": lambda: curl(url, "sha256sum"),
                    "curl, openssl": lambda: curl(url, "openssl", "dgst", "-sha256"),
                    "curl alone": lambda: curl(url),
                },
                rounds,
            )
        others = [(name, "localchat") for name in large if name != "localchat"]
        report(f"{LARGE_SIZE >> 20} MiB from a server without a cap", "s", large, others)
        print(f"- peak memory of localchat: {max(peaks):.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], float(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
