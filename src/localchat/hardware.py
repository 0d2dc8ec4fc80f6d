"""What this machine offers: cores that this process may use, memory that is available, devices beside the processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

_CGROUP = Path("/sys/fs/cgroup")

_RUNTIME_BYTES = 512 << 20
"""What is left to a GPU's runtime on top of the buffers that llama.cpp asks for beforehand; it aborts the process where
it finds no room in the middle of a computation (for the work space of a large matrix product, say)."""

_COMPUTE_BYTES = 256 << 20
"""The compute buffers of each device beyond the first, whose own are part of what is fitted."""


class Device(msgspec.Struct, frozen=True):
    """A device that the engine can compute on besides the processor; `free` and `total` are bytes.

    `name` is llama.cpp's short one ("CUDA0"), `description` the maker's. `unified`: it has no memory of its own but
    shares the machine's (Apple's processors, graphics inside a processor): what lies there is not available twice.
    """

    name: str
    description: str
    kind: Literal["gpu", "integrated"]
    free: int
    total: int
    unified: bool


class EngineBuild(msgspec.Struct, frozen=True):
    """What a build of llama.cpp is: where it lies, what each of its backends was made for, which devices it sees.

    `backends` maps a backend ("CPU", "CUDA") to what it says of itself ("AVX2": "1"). `offload`: whether it can compute
    anywhere but on the processor.
    """

    library: str
    backends: dict[str, dict[str, str]]
    offload: bool
    devices: list[Device]


def usable_cores() -> int:
    """Physical cores that this process may use: affinity and cgroup quota respected, at least 1.

    Two hardware threads of one core share its arithmetic units, so a second compute thread there gains nothing; on
    virtual machines the kernel often hides that, and every processor it shows counts.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_of(cpu) for cpu in allowed}
    return max(1, min(len(cores), _cgroup_quota()))


def _core_of(cpu: int) -> str:
    """The kernel's list of the hardware threads that share a core with `cpu`."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cgroup_quota() -> int:
    """Whole processors that the cgroup's quota pays for; many where there is no quota."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16


def available_memory() -> int:
    """Bytes that can be used without swapping: the system's estimate, or what the cgroup still allows."""
    available = _system_memory()
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text()) - _cached_files()
        available = min(available, max(0, limit - max(0, used)))
    return available


def _cached_files() -> int:
    """Bytes of files that the cgroup keeps in memory: they count as used there, and give way when needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("active_file ", "inactive_file ")))
    except (OSError, ValueError, IndexError):
        return 0


def _system_memory() -> int:
    # Linux's own figure first: psutil computes the same and takes 20 ms of an engine's start to import.
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    import psutil

    return int(psutil.virtual_memory().available)


def room_on(chosen: Sequence[Device]) -> int:
    """Bytes that a model's weights, cache and compute buffers may take on all of `chosen` together.

    Something is left to each device's own runtime; the machine's memory, where devices share it, is counted once.
    """
    rooms = {device.name: max(0, device.free - min(_RUNTIME_BYTES, device.total // 8)) for device in chosen}
    own = sum(rooms[device.name] for device in chosen if not device.unified)
    shared = sum(rooms[device.name] for device in chosen if device.unified)
    if shared:
        shared = min(shared, available_memory())
    return max(0, own + shared - _COMPUTE_BYTES * (len(chosen) - 1))
