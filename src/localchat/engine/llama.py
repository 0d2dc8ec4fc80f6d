"""The ctypes surface of llama.cpp, and how this process is set up for it. Nobody else imports llama_cpp.

Only the low-level API is used: `llama_cpp`'s own package module imports numpy and more and costs a quarter of a second,
so it is replaced by a bare package through which `llama_cpp.llama_cpp` is imported alone.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
import types
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from localchat.errors import EngineFailed

_LOG_LINES_KEPT = 400
_DEBUG, _WARN, _ERROR, _CONTINUED = 1, 3, 4, 5  # enum ggml_log_level

# What llama.cpp says when a computation was stopped on purpose, or its cache is full: no news, and misleading in a log.
_EXPECTED = re.compile(
    r"failed with error 1$|compute status: 1$|removing memory module entries|failed to decode, ret = 2$"
    r"|failed to find a memory slot"
)

log_lines: deque[str] = deque(maxlen=_LOG_LINES_KEPT)
"""The last lines that llama.cpp wrote, debug output left out; warnings and errors go to this process's stderr too."""

lines_logged = 0
"""How many lines llama.cpp has written so far, those that are no longer kept included."""

_last_level = 0

_kept_alive: list[Any] = []
"""C objects that llama.cpp points to for as long as this process lives."""


@cache
def api() -> Any:
    """The module `llama_cpp.llama_cpp`, imported and initialised once. Raises `EngineFailed` where it cannot be."""
    # A crash must not fork a debugger onto somebody's terminal.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    _avoid_amx()
    _limit_spinning()
    try:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("llama-cpp-python is not installed")
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules.setdefault("llama_cpp", package)
        module = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineFailed(
            f"the engine library cannot be loaded ({error}): reinstall it with "
            f"`{sys.executable} -m pip install --force-reinstall llama-cpp-python`"
        ) from error
    callback = module.llama_log_callback(_on_log)
    _kept_alive.append(callback)
    module.llama_log_set(callback, None)
    if module._lib.ggml_backend_reg_count() == 0:
        # Backends are separate libraries here, and the default search would look into the current folder too.
        load = module._lib.ggml_backend_load_all_from_path
        load.argtypes, load.restype = [ctypes.c_char_p], None
        load(os.fsencode(Path(package.__path__[0]) / "lib"))
    module.llama_backend_init()
    return module


def _on_log(level: int, text: bytes, _user_data: object) -> None:
    global lines_logged, _last_level
    if level == _CONTINUED:
        level, continues = _last_level, True
    else:
        _last_level, continues = level, False
    if level == _DEBUG:
        return
    line = text.decode(errors="replace").rstrip("\n")
    if continues and log_lines:
        log_lines[-1] += line
        return
    log_lines.append(line)
    lines_logged += 1
    if level in (_WARN, _ERROR) and not _EXPECTED.search(line):
        print(line, file=sys.stderr, flush=True)


def _lines_since(since: int) -> list[str]:
    """The lines logged after `lines_logged` was `since`, as far as they are kept."""
    return list(log_lines)[max(0, len(log_lines) - (lines_logged - since)) :]


def complaints(since: int) -> str:
    """What llama.cpp complained about after `lines_logged` was `since`, as one line for an error message.

    The first complaint says what is wrong; those that follow, only what failed because of it.
    """
    # (The listing of a file's metadata has keys such as "unknown_token_id".)
    telling = re.compile(r"^(?!.*- kv +\d+:).*(error|fail|unknown|unsupported|invalid|cannot)", re.IGNORECASE)
    first = next((line for line in _lines_since(since) if telling.search(line)), "it gave no reason")
    return re.sub(r"^\w+: (error loading model: )?", "", first.strip())


def buffer_bytes(since: int) -> dict[str, int]:
    """Bytes of the buffers that llama.cpp logged after `lines_logged` was `since`, by kind ("model", "KV", "compute"…).

    The binding offers no call for them; the log is where llama.cpp says what it allocated, on every backend.
    """
    sizes: dict[str, int] = {}
    for line in _lines_since(since):
        if match := re.search(r"(\w+) buffer size *= *([\d.]+) MiB", line):
            sizes[match[1]] = sizes.get(match[1], 0) + int(float(match[2]) * (1 << 20))
    return sizes


def device_bytes(since: int, names: list[str], kinds: str = r"\w+") -> dict[str, int]:
    """Bytes of the buffers logged after `lines_logged` was `since` that lie on the devices of these names.

    `kinds` is a regular expression for the kinds of buffers ("model", "KV", "compute"…) that count.
    """
    sizes: dict[str, int] = {}
    for line in _lines_since(since):
        match = re.search(rf"(\S+) +(?:{kinds}) buffer size *= *([\d.]+) MiB", line)
        # A buffer goes by its device's name, perhaps with something after it ("MTL0_Mapped", "RPC0[host:port]").
        for name in names:
            if match and re.fullmatch(rf"{re.escape(name)}(?!\d).*(?<!_Host)", match[1]):
                sizes[name] = sizes.get(name, 0) + int(float(match[2]) * (1 << 20))
    return sizes


def cache_bytes(since: int) -> int:
    """Bytes of the KV caches and recurrent states logged after `lines_logged` was `since`, wherever they lie.

    Unlike the sizes of their buffers these are told of a model without weights too.
    """
    found = (re.search(r": size = *([\d.]+) MiB \( *\d+ cells", line) for line in _lines_since(since))
    return sum(int(float(match[1]) * (1 << 20)) for match in found if match)


def makes_copies(since: int) -> bool:
    """Whether weights logged after `lines_logged` was `since` lie elsewhere than in the mapped file."""
    found = (re.search(r"(\S+) +model buffer size *= *([\d.]+) MiB", line) for line in _lines_since(since))
    return any(not match[1].endswith("_Mapped") and float(match[2]) > 0 for match in found if match)


_NO_ROOM = re.compile(
    r"(unable|failed) to allocate|out of memory|malloc failed|OutOf(Device|Host)Memory|insufficient memory"
)


def shortage(since: int) -> str | None:
    """Which buffer could not be allocated after `lines_logged` was `since`, in llama.cpp's words; None: all could."""
    line = next((line for line in _lines_since(since) if _NO_ROOM.search(line)), None)
    return None if line is None else re.sub(r"^\w+: ", "", line.strip())


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


def _avoid_amx() -> None:
    """Keep ggml from using AMX tiles, which it asks the Linux kernel for.

    Under AMX, ggml copies every weight into anonymous memory, twice what a small machine would spend, and on some
    virtual machines tiles are offered but kill the process (SIGILL in a worker thread, seen with llama.cpp of
    0.3.36). The kernel refuses tiles to a process with a signal stack too small to save them; 8 KiB holds all other
    registers. The room below the stack is there for a crash handler that needs more than that.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return
    declared, reserve = 8 << 10, 56 << 10
    memory = ctypes.create_string_buffer(declared + reserve)
    stack = _SignalStack(ctypes.addressof(memory) + reserve, 0, declared)
    _kept_alive.append(memory)
    ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)


def _limit_spinning() -> None:
    """Let threads that wait at a barrier sleep after a millisecond; to be set before GNU's OpenMP is loaded.

    By itself it spins some 15 ms. Where another program has a core, two of our threads can share the other one, and
    then each barrier takes as long as the waiting one spins: single tokens of 2 to 4 seconds were seen, until fewer
    threads compute (`threads`); with this it is half a second. On a quiet machine the waits are shorter, those between
    two tokens too, and it costs nothing. Measured on x86, where a turn of the loop pauses for some 50 ns; elsewhere it
    may be a nanosecond. What the person chose stays.
    """
    if sys.platform == "linux" and os.uname().machine == "x86_64" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
