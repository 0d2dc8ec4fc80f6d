"""What this machine offers: cores that this process may use, memory that is available, devices beside the processor."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

_CGROUP = Path("/sys/fs/cgroup")
_CGROUPS_OF_THIS_PROCESS = Path("/proc/self/cgroup")

_CPUS = Path("/sys/devices/system/cpu")
_INTEL_FAST = Path("/sys/devices/cpu_core/cpus")

_FAST = 2 / 3
"""A core of this share of the fastest one's capacity still counts as fast."""

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


def usable_cpus() -> frozenset[int]:
    """Processors, as the kernel numbers them, that this process may run on (affinity and cpusets)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many cores are worth a compute thread, at least 1: physical ones, within affinity and cgroup quota.

    Two hardware threads of one core share its arithmetic units, so a second compute thread there gains nothing; on
    virtual machines the kernel often hides that, and every processor it shows counts. Of a processor with fast and slow
    cores only the fast ones count: at each of a token's hundreds of barriers all threads wait for the slowest.
    """
    quota = _cgroup_quota()
    cores = physical_cores(_fast(usable_cpus()))
    # Threads beyond the quota are stopped together for the rest of each period. Measured with two threads: as fast as
    # one with a quota of 1.1 to 1.3 processors, and a quarter faster with 1.5.
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))


def physical_cores(cpus: frozenset[int]) -> int:
    """How many physical cores these processors belong to."""
    if sys.platform == "linux":
        return len({_core_of(cpu) for cpu in cpus})
    if sys.platform == "darwin":
        # The first performance level is that of the fast cores; processors of Intel have only one, without this name.
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or len(cpus)
    import psutil

    return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))


def _core_of(cpu: int) -> str:
    """The kernel's list of the hardware threads that share a core with `cpu`."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _fast(cpus: frozenset[int]) -> frozenset[int]:
    """The faster ones of these processors where there are two kinds, else all."""
    with suppress(OSError, ValueError):  # Intel's two kinds
        return cpus & _cpu_list(_INTEL_FAST.read_text()) or cpus
    capacities = {}
    for cpu in cpus:
        with suppress(OSError, ValueError):  # Arm's
            capacities[cpu] = int((_CPUS / f"cpu{cpu}" / "cpu_capacity").read_text())
    if len(capacities) < len(cpus):
        return cpus
    return frozenset(cpu for cpu, capacity in capacities.items() if capacity >= _FAST * max(capacities.values()))


def _cpu_list(text: str) -> frozenset[int]:
    """The kernel's notation for a set of processors: "0-7,16". Raises `ValueError` for anything else."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cpus)


def _sysctl(name: str) -> int | None:
    """A number that macOS tells of itself."""
    libc = ctypes.CDLL(None)
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return value.value


def _cgroup_quota() -> float | None:
    """Processors that the strictest cgroup's quota pays for, in parts too; None where there is no quota."""
    quotas = [_quota_of(folder) for folder in cgroup_folders("cpu")]
    return min((quota for quota in quotas if quota), default=None)


def _quota_of(cgroup: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):  # ("max" is no number)
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):  # version 1, which says -1 for none
        quota_us = int((cgroup / "cpu.cfs_quota_us").read_text())
        return max(0, quota_us) / int((cgroup / "cpu.cfs_period_us").read_text()) or None
    return None


def cgroup_folders(controller: str) -> list[Path]:
    """The folders of the cgroups that limit this process, its own first, then those around it up to the root.

    `controller` ("memory", "cpu") is the name of the hierarchy of version 1, where each controller has one of its own;
    in version 2 all share one. A container often sees its own cgroup as the root, whatever the kernel calls it.
    """
    paths = ["/"]
    root = _CGROUP
    with suppress(OSError):
        for line in _CGROUPS_OF_THIS_PROCESS.read_text().splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controller in controllers.split(","):
                root, paths = _CGROUP / controller, [path]
                break
            if number == "0" and not controllers:
                paths = [path]
    inside = PurePosixPath(paths[0].lstrip("/"))
    folders = [root / step for step in (inside, *inside.parents)]
    return [folder for folder in folders if ".." not in folder.parts and folder.is_dir()]


def available_memory() -> int:
    """Bytes that can be used without swapping: the system's estimate, or what the strictest cgroup still allows."""
    allowed = [_left_in(folder) for folder in cgroup_folders("memory")]
    return min([_system_memory(), *(room for room in allowed if room is not None)])


def _left_in(cgroup: Path) -> int | None:
    """Bytes that a cgroup still allows; None where it has no limit."""
    limit = _number(cgroup / "memory.max", cgroup / "memory.limit_in_bytes")
    used = _number(cgroup / "memory.current", cgroup / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    return max(0, limit - max(0, used - _cached_files(cgroup)))


def _number(*files: Path) -> int | None:
    """The number in the first of these files that has one ("max" is none)."""
    for file in files:
        with suppress(OSError, ValueError):
            return int(file.read_text())
    return None


def _cached_files(cgroup: Path) -> int:
    """Bytes of files that a cgroup keeps in memory: they count as used there, and give way when needed."""
    try:
        sizes = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # Version 1 counts the cgroups inside under names of their own.
        names = [f"total_{kind}" if f"total_{kind}" in sizes else kind for kind in ("active_file", "inactive_file")]
        return sum(int(sizes.get(name, 0)) for name in names)
    except (OSError, ValueError):
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


def resident_memory(pid: int | None = None) -> int:
    """Bytes that a process (this one where none is named) has in memory, with the files that it maps; 0: it is gone."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    import psutil

    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


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
