"""llama-cpp-python's own OpenAI-compatible server, as a server that localchat did not write."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import wait_for

# On some virtual machines the processor offers AMX and the library dies of it; a small signal stack makes the kernel
# refuse it (localchat.engine.llama tells the story).
_START = """
import ctypes, os, runpy, sys
if sys.platform == "linux" and os.uname().machine == "x86_64":
    class Stack(ctypes.Structure):
        _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
    memory = ctypes.create_string_buffer(64 << 10)
    ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory) + (56 << 10), 0, 8 << 10)), None)
runpy.run_module("llama_cpp.server", run_name="__main__")
"""

MISSING = [
    name for name in ("fastapi", "sse_starlette", "starlette_context", "pydantic_settings") if not find_spec(name)
]
"""Packages that the server needs and that are not installed here."""


@contextmanager
def running_peer(model: Path, *, context: int = 512) -> Iterator[str]:
    """Its base URL, for as long as the block runs."""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", str(model), "--port", str(port), "--n_ctx", str(context), "--model_alias", "peer"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([sys.executable, "-c", _START, *options], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"

            def answers() -> bool:
                log.seek(0)
                assert server.poll() is None, log.read().decode(errors="replace")[-2000:]
                try:
                    return urllib.request.urlopen(f"{url}/v1/models", timeout=5).status == 200
                except (urllib.error.URLError, OSError):
                    return False

            wait_for(answers, seconds=60)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=20)
