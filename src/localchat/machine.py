"""How fast this machine computes: measured once by `engine.measure`, kept in a file, read by whoever predicts a speed.

The figures belong to one build of the engine, one processor and one number of threads; when any of them changes they
are measured anew. Nothing native is loaded here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from localchat.errors import LocalchatError
from localchat.hardware import usable_cores
from localchat.paths import paths, write_private
from localchat.settings import settings

PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]


class Rate(msgspec.Struct, frozen=True):
    """How fast matrices of one tensor type are computed with."""

    decode: PositiveFloat
    """Bytes of weights a second, one token at a time, in a matrix much larger than the caches."""
    cached: PositiveFloat
    """The same in one that the caches hold."""
    prefill: PositiveFloat
    """Multiply-adds a second, a whole micro-batch of tokens at a time."""
    row_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """What each row of a matrix costs a token beyond its bytes: in a narrow matrix, about as much as those."""


class Attention(msgspec.Struct, frozen=True):
    """Multiply-adds a second of attention to a 16-bit KV cache: one token at a time, and a micro-batch.

    `ordinary`: flash attention is so much slower with one token that the engine takes the ordinary one.
    """

    decode: PositiveFloat
    prefill: PositiveFloat
    ordinary: bool = False


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one device computes; `name` is llama.cpp's ("CPU", "CUDA0")."""

    name: str
    bandwidth: PositiveFloat
    """Bytes a second that it reads from its memory."""
    layer_seconds: PositiveFloat
    """What each layer costs a token beyond its matrices: many small steps, at each of which the threads meet."""
    cached_bytes: PositiveInt
    streamed_bytes: PositiveInt
    """The sizes at which `Rate.cached` and `Rate.decode` were measured, in rows of `columns` values."""
    columns: PositiveInt = 2048
    rates: dict[str, Rate]
    """By tensor type."""
    attention: dict[PositiveInt, Attention]
    """By the size of a head: kernels are slow with sizes that they were not made for."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a machine. `engine` and `cpu` say which build and processor they hold for, `threads` how many."""

    engine: str
    system: str
    """What llama.cpp says of its build and the instructions it uses."""
    cpu: str
    threads: int
    processor: Figures
    devices: tuple[Figures, ...] = ()
    measured: str = ""
    """When, as an ISO date and time."""
    was_busy: bool = False
    """Others computed at the time, so what one thread could do was measured and the rest concluded from that."""
    is_guess: bool = False
    """Nothing was measured: figures of the usual order for so many cores."""

    def device(self, name: str) -> Figures | None:
        """The figures of a GPU by llama.cpp's name."""
        return next((device for device in self.devices if device.name == name), None)


def compute_threads() -> int:
    """Threads that the engine computes with on a quiet machine: the person's choice, else one for each core."""
    return settings().threads or usable_cores()


def _file() -> Path:
    return paths().state / "machine.json"


def load() -> Machine | None:
    """What was measured; None where nothing was, or where engine, processor or threads are others by now."""
    try:
        machine = msgspec.json.decode(_file().read_bytes(), type=Machine)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    same = (machine.engine, machine.cpu, machine.threads) == (engine_stamp(), cpu_name(), compute_threads())
    return machine if same else None


def save(machine: Machine) -> None:
    """Keep it for `load`. Where that is not possible it is measured again the next time."""
    with suppress(OSError, LocalchatError):
        write_private(_file(), msgspec.json.format(msgspec.json.encode(machine)))


@cache
def engine_stamp() -> str:
    """What changes when the engine library is another: its files' names, sizes and times. "" where there is none."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = []
    for folder in folders:
        for file in sorted(Path(folder, "lib").glob("*")):
            with suppress(OSError):
                status = file.stat()
                found.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16] if found else ""


@cache
def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Hardware", "cpu model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# For a machine that was not measured: what two cores of a server of 2023 do, a thread at a time. Desktop processors are
# within a factor of two of it.
_GUESSED_BANDWIDTH, _GUESSED_BANDWIDTH_MOST = 8e9, 40e9
_GUESSED_CACHED = 10e9
_GUESSED_PREFILL = 40e9
_GUESSED_LAYER_SECONDS = 40e-6
_GUESSED_ATTENTION = 5e9
# Types whose kernels are slower than the others' on most processors.
_SLOW = {"Q4_1": 0.5, "Q5_0": 0.6, "Q5_1": 0.5, "F32": 0.6}
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS")


def guess() -> Machine:
    """Figures of the usual order for so many cores, marked as a guess."""
    threads = compute_threads()
    bandwidth = min(_GUESSED_BANDWIDTH * threads, _GUESSED_BANDWIDTH_MOST)
    rates = {
        name: Rate(
            decode=min(bandwidth, _GUESSED_CACHED * threads * _SLOW.get(name, 1.0)),
            cached=_GUESSED_CACHED * threads * _SLOW.get(name, 1.0),
            prefill=_GUESSED_PREFILL * threads * _SLOW.get(name, 1.0),
        )
        for name in (*_TYPES, "Q3_K", "Q2_K", "MXFP4")
    }
    processor = Figures(
        name="CPU",
        bandwidth=bandwidth,
        layer_seconds=_GUESSED_LAYER_SECONDS,
        cached_bytes=32 << 20,
        streamed_bytes=256 << 20,
        rates=rates,
        attention={128: Attention(_GUESSED_ATTENTION * threads, 3 * _GUESSED_ATTENTION * threads)},
    )
    return Machine(
        engine=engine_stamp(), system="", cpu=cpu_name(), threads=threads, processor=processor, is_guess=True
    )
