"""How near decoding comes to the physical limit: bytes moved a second against what this machine's memory delivers.

Each token needs all weights but the table of embeddings once, and the KV cache of what was said so far. The memory is
measured by letting as many threads as compute search 1 GiB for a byte that is not there (C's memchr reads as fast as
the processor can). `python benchmarks/bandwidth.py [ROUNDS] [MODEL.gguf …]`
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import environment, home_with_starter, interleaved, localchat, report
from decode import PROMPT
from r1_shape import r1_shape

from localchat.models.gguf import read_header

THREADS, TOKENS = 2, 96
_READ_BYTES = 1 << 30
_GB = 1e9


class Memory:
    """A gibibyte of memory to read from."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_READ_BYTES)
        ctypes.memset(self._buffer, 1, _READ_BYTES)  # untouched pages are all the same one
        self._search = ctypes.CDLL(None).memchr
        self._search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._search.restype = ctypes.c_void_p

    def gigabytes_per_second(self) -> float:
        """How fast all threads together read it once."""
        share = _READ_BYTES // THREADS
        base = ctypes.addressof(self._buffer)
        parts = [
            threading.Thread(target=self._search, args=(base + number * share, 2, share)) for number in range(THREADS)
        ]
        began = time.perf_counter()
        for part in parts:
            part.start()
        for part in parts:
            part.join()
        return _READ_BYTES / (time.perf_counter() - began) / _GB


def bytes_per_token(model: Path) -> int:
    """Bytes of weights that one token of an answer needs. (Its KV cache, some megabytes here, comes on top.)"""
    header = read_header(model)
    embeddings = sum(header.weights.get("embedding", {}).values())
    everything = sum(sum(kinds.values()) for kinds in header.weights.values())
    return everything if header.is_tied else everything - embeddings


def main(rounds: int, models: list[Path]) -> None:
    home, starter = home_with_starter()
    (home / "settings.toml").write_text(f"threads = {THREADS}\ndrafts = false\n")
    env = environment(home)
    memory = Memory()

    def decoding(model: Path) -> float:
        limits = ("-m", str(model), "--temperature", "0", "--max-tokens", str(TOKENS))
        done = subprocess.run(
            localchat("ask", "-n", "--json", *limits, PROMPT), env=env, check=True, stdout=subprocess.PIPE
        )
        rate: float = json.loads(done.stdout)["timings"]["tokens_per_second"]
        return rate * bytes_per_token(model) / _GB

    contestants = {"reading memory": memory.gigabytes_per_second}
    for model in models or [starter, r1_shape(starter)]:
        contestants[f"decoding {model.name}"] = lambda model=model: decoding(model)
    results = interleaved(contestants, rounds)
    subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
    ratios = [(name, "reading memory") for name in results if name != "reading memory"]
    report(f"Bytes moved while decoding, {THREADS} threads", "GB/s", results, ratios)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdecimal() else 5,
        [Path(word) for word in sys.argv[1:] if word.endswith(".gguf")],
    )
