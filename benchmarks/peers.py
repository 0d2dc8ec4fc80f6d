"""The peers that need an environment of their own: `xllamacpp`, which carries llama.cpp's server."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from common import NO_AMX

_SERVER = (
    NO_AMX
    + """
import json, sys
import xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = given["model"]
params.n_ctx, params.n_parallel = given["context"], given["parallel"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
params.port = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
)


def xllamacpp_python() -> str:
    """The Python of a virtual environment with `xllamacpp`, made the first time."""
    folder = Path(tempfile.gettempdir()) / "localchat-benchmarks-xllamacpp"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "xllamacpp"], check=True, stdout=sys.stderr)
    return str(python)


@contextmanager
def xllamacpp_server(model: Path, *, context: int, threads: int, parallel: int = 1) -> Iterator[str]:
    """The address of a running server with the model loaded; it ends with the block."""
    given = json.dumps({"model": str(model), "context": context, "threads": threads, "parallel": parallel})
    process = subprocess.Popen(
        [xllamacpp_python(), "-c", _SERVER, given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit(f"the server of xllamacpp does not start with {model}")
        yield address
    finally:
        process.kill()
        process.wait()


def first_token_s(address: str, body: dict[str, object]) -> float:
    """Seconds from a streamed request to the first text of its answer, of any OpenAI-compatible server."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    began = time.perf_counter()
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps({**body, "stream": True}),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    try:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:]).get("choices", []):
                if choice["delta"].get("content"):
                    return time.perf_counter() - began
    finally:
        connection.close()
    raise SystemExit(f"{address} answered {response.status} without a word")
