"""The engine as it was built, against the processor and the GPUs that the machine has.

Its native code is asked in a process of its own: a build for another processor dies of its first instruction.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from localchat.cli.doctor.report import Finding
from localchat.cli.progress import size
from localchat.client.measured import REBUILD
from localchat.hardware import EngineBuild
from localchat.machine import cpu_name

# llama.cpp's name for a set of instructions, then those of the Linux kernel and of macOS (with "hw.optional." before).
_INSTRUCTIONS = {
    "x86": {
        "SSE3": ("pni", "sse3"),
        "SSSE3": ("ssse3", "supplementalsse3"),
        "AVX": ("avx", "avx1_0"),
        "AVX2": ("avx2", "avx2_0"),
        "F16C": ("f16c", "f16c"),
        "FMA": ("fma", "fma"),
        "BMI2": ("bmi2", "bmi2"),
        "AVX_VNNI": ("avx_vnni", "avx_vnni"),
        "AVX512": ("avx512f", "avx512f"),
        "AVX512_VBMI": ("avx512vbmi", "avx512vbmi"),
        "AVX512_VNNI": ("avx512_vnni", "avx512vnni"),
        "AVX512_BF16": ("avx512_bf16", "avx512bf16"),
        "AMX_INT8": ("amx_int8", ""),
    },
    "arm": {
        "NEON": ("asimd", "neon"),
        "FP16_VA": ("asimdhp", "arm.FEAT_FP16"),
        "DOTPROD": ("asimddp", "arm.FEAT_DotProd"),
        "MATMUL_INT8": ("i8mm", "arm.FEAT_I8MM"),
        "SVE": ("sve", ""),
    },
}
_NEVER_MISSED = {"AMX_INT8", "AVX_VNNI", "SVE"}
"""Declined on purpose; of no use beside AVX512_VNNI; no faster than NEON on most processors that have it."""

# Where the kernel tells of GPUs, whether or not a library can use them.
_DRM, _NVIDIA, _AMD = Path("/sys/class/drm"), Path("/proc/driver/nvidia/gpus"), Path("/dev/kfd")
# The makers by their PCI numbers; others (of virtual and server displays) compute nothing.
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_BUILDS = {"NVIDIA": "CUDA", "AMD": "HIP", "Intel": "VULKAN", "Apple": "METAL"}


def processor(build: EngineBuild) -> Iterator[Finding]:
    """The processor's instructions against those that the engine uses."""
    family = "arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86"
    has, known = _instructions(family), _INSTRUCTIONS[family]
    uses = {name for name in build.backends.get("CPU", {}) if name in known}
    version = importlib.metadata.version("llama-cpp-python")
    engine = f"llama-cpp-python {version}, for {', '.join(name for name in known if name in uses) or 'any processor'}"
    yield Finding("ok", "processor", cpu_name() or platform.machine())
    if not has:
        yield Finding("ok", "engine", f"{engine} (which instructions the processor has is not known)")
        return
    lacking, missed = uses - has - {"AMX_INT8"}, has - uses - _NEVER_MISSED
    if lacking:
        yield Finding("problem", "engine", f"{engine}: this processor has no {_listed(lacking, known)}", REBUILD)
    elif missed:
        yield Finding(
            "warning",
            "engine",
            f"{engine}: it leaves {_listed(missed, known)} unused and is slower for it",
            f"compile it for this processor, with SOURCE_DATE_EPOCH unset: {REBUILD}",
        )
    else:
        amx = "; AMX is declined on purpose, as it would double the memory" if "AMX_INT8" in has else ""
        yield Finding("ok", "engine", engine + amx)


def _listed(names: set[str], known: dict[str, tuple[str, str]]) -> str:
    return ", ".join(name for name in known if name in names)


def _instructions(family: str) -> set[str]:
    """What the processor can, in llama.cpp's names; nothing where the system does not tell."""
    known = _INSTRUCTIONS.get(family, {})
    if sys.platform == "darwin":
        names = dict(zip([names[1].lower() for names in known.values()], known, strict=True))
        said = subprocess.run(["sysctl", "hw.optional"], capture_output=True, text=True, timeout=5).stdout
        lines = (line.removeprefix("hw.optional.").split(":") for line in said.splitlines() if ":" in line)
        return {names[key.lower()] for key, value in lines if value.strip() == "1" and key.lower() in names}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                return {name for name, (flag, _) in known.items() if flag in flags}
    return set()


def gpus(build: EngineBuild) -> Iterator[Finding]:
    """The GPUs that the engine can use, and those that it cannot."""
    for device in build.devices:
        shared = ", shared with the processor" if device.unified else ""
        yield Finding(
            "ok",
            "gpu",
            f"{device.name} ({device.description}): {size(device.free)} free of {size(device.total)}{shared}",
        )
    if build.devices:
        return
    there = sorted(_present())
    backends = [name for name in build.backends if name != "CPU"]
    if not there:
        yield Finding("ok", "gpu", "none found: models run on the processor")
    elif build.offload or backends:
        yield Finding(
            "warning",
            "gpu",
            f"the engine was built for {', '.join(backends) or 'GPUs'} and sees none of {', '.join(there)}",
            "see that the maker's driver is installed and that this user may use it",
        )
    else:
        flag = _BUILDS[there[0]]
        other = " (or -DGGML_VULKAN=ON)" if flag not in ("VULKAN", "METAL") else ""
        yield Finding(
            # Small graphics inside a processor read the same memory, and win little.
            "ok" if there == ["Intel"] else "warning",
            "gpu",
            f"there is one of {', '.join(there)}, and the engine was built without it",
            f"CMAKE_ARGS=-DGGML_{flag}=ON{other} {REBUILD}",
        )


def _present() -> set[str]:
    """The makers of the GPUs that the machine seems to have."""
    found = set()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.add("Apple")
    for vendor in _DRM.glob("card*/device/vendor"):
        with suppress(OSError):
            maker = _VENDORS.get(vendor.read_text().strip())
            found |= {maker} if maker else set()
    if any(_NVIDIA.glob("*")):
        found.add("NVIDIA")
    if _AMD.exists():
        found.add("AMD")
    return found
