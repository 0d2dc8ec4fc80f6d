"""Which devices llama.cpp can compute on beside the processor, and what this build of it was made for.

`python -m localchat.engine.devices` prints that as JSON, for whoever must not load native code into its own process.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from localchat.engine.llama import api
from localchat.errors import LocalchatError
from localchat.hardware import Device, EngineBuild, available_memory

_GPU, _INTEGRATED = 1, 2  # enum ggml_backend_dev_type; the others are the processor and what helps it (BLAS)


@cache
def _ggml() -> Any:
    """The loaded library, with the types of those functions that the binding leaves out."""
    library = api()._lib
    name, device = ctypes.c_char_p, ctypes.c_void_p
    size = ctypes.POINTER(ctypes.c_size_t)
    for function, result, arguments in (
        ("ggml_backend_dev_count", ctypes.c_size_t, []),
        ("ggml_backend_dev_get", device, [ctypes.c_size_t]),
        ("ggml_backend_dev_by_name", device, [name]),
        ("ggml_backend_dev_name", name, [device]),
        ("ggml_backend_dev_description", name, [device]),
        ("ggml_backend_dev_type", ctypes.c_int, [device]),
        ("ggml_backend_dev_memory", None, [device, size, size]),
        ("ggml_backend_dev_backend_reg", ctypes.c_void_p, [device]),
        ("ggml_backend_reg_name", name, [ctypes.c_void_p]),
    ):
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


def devices() -> list[Device]:
    """The devices that models are split over, in llama.cpp's order, with the memory that is free on them now.

    As llama.cpp chooses them: graphics inside the processor only where there is no card, and a card that two backends
    offer only once.
    """
    ggml = _ggml()
    found: list[tuple[str, Device]] = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        kind = ggml.ggml_backend_dev_type(handle)
        if kind not in (_GPU, _INTEGRATED):
            continue
        backend = _text(ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(handle)))
        device = _device(handle, kind, backend)
        if all(other == backend or device.description != known.description for other, known in found):
            found.append((backend, device))
    # A machine reached over the network comes first, and does not speak against the graphics inside this one.
    remote = [device for backend, device in found if backend == "RPC"]
    cards = [device for backend, device in found if device.kind == "gpu" and backend != "RPC"]
    integrated = [(backend, device) for backend, device in found if device.kind == "integrated"]
    return remote + (cards or [device for backend, device in integrated if backend == integrated[0][0]])


def _device(handle: int, kind: int, backend: str) -> Device:
    ggml = _ggml()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    # Apple's graphics count as a GPU. Who tells of no memory has none of its own.
    is_apple = backend in ("MTL", "Metal") and platform.machine() == "arm64"
    unified = kind == _INTEGRATED or is_apple or not total.value
    room = available_memory() if unified else free.value
    return Device(
        name=_text(ggml.ggml_backend_dev_name(handle)),
        description=_text(ggml.ggml_backend_dev_description(handle)),
        kind="integrated" if kind == _INTEGRATED else "gpu",
        free=min(free.value, room) if total.value else room,
        total=total.value or room,
        unified=unified,
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def handles(chosen: Sequence[Device]) -> ctypes.Array[ctypes.c_void_p]:
    """The NULL-terminated list that llama.cpp takes; of an empty one it makes "no device at all"."""
    ggml = _ggml()
    pointers = [ggml.ggml_backend_dev_by_name(device.name.encode()) for device in chosen]
    return (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)


def build() -> EngineBuild:
    """What this build of llama.cpp is, and which devices it sees."""
    info = _text(api().llama_print_system_info())
    # "CPU : AVX2 = 1 | … | CUDA : ARCHS = 890 | …"
    backends: dict[str, dict[str, str]] = {}
    for part in info.split("|"):
        if match := re.fullmatch(r"(?:\s*(\w+) :)?\s*(\w+) = (\S+)\s*", part):
            backend = match[1] or (list(backends)[-1] if backends else "CPU")
            backends.setdefault(backend, {})[match[2]] = match[3]
    return EngineBuild(
        library=str(api()._lib._name),
        backends=backends,
        offload=bool(api().llama_supports_gpu_offload()),
        devices=devices(),
    )


def main() -> int:
    """Print `build` as JSON; where there is none, the reason on stderr."""
    try:
        print(msgspec.json.encode(build()).decode())
    except LocalchatError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
