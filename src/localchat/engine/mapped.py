"""The mapped file of a model: what of it was copied elsewhere need not stay in this process's memory too.

llama.cpp maps the whole file, and copies the tensors for which it has a faster layout, or which lie on another device.
Without this such a model would be in memory twice.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

_DONTNEED = 4  # MADV_DONTNEED, of Linux


def let_go_of_mapped(path: Path) -> None:
    """Take the pages of a mapped file (and of its shards) out of this process; what is still used comes back at once.

    They stay in the system's cache, so nothing is read from the disk again as long as there is room for them there.
    """
    if sys.platform != "linux":
        return  # elsewhere the advice has another meaning
    with suppress(OSError, ValueError, AttributeError):
        folder = f"{path.resolve().parent}/"
        advise = ctypes.CDLL(None).madvise
        for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
            if ".gguf" in line and folder in line:
                start, end = (int(side, 16) for side in line.split(maxsplit=1)[0].split("-"))
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
