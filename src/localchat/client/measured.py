"""What the engine is on this machine, for whoever must not load it: its build, its devices, and measured speeds.

Measuring loads the engine's native code, which can abort: it happens in a process of its own, for some seconds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec

from localchat import machine as machines
from localchat.client.child import Child
from localchat.errors import EngineFailed
from localchat.hardware import Device, EngineBuild
from localchat.machine import Machine
from localchat.safe_text import safe_line

_TIMEOUT_S = 90.0
"""Many times what it takes: on a machine that is busy with something else it takes longer."""


# -P: a file of the folder that the person is in must not be taken for a module.
_MEASURE = ("-P", "-m", "localchat.engine.measure")


_LOADS_IN_S = 30.0

REBUILD = (
    f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-binary llama-cpp-python llama-cpp-python"
)
"""Compiles the engine for the processor that it is installed on."""


class _Line(msgspec.Struct):
    """What the measuring process prints: how far it is, or at last the figures."""

    done: int = 0
    total: int = 0
    machine: Machine | None = None


def machine(
    *, may_measure: bool = True, anew: bool = False, on_progress: Callable[[float], None] | None = None
) -> Machine | None:
    """The figures of this machine, as kept; where there are none they are measured, which takes some seconds.

    `on_progress` gets fractions from 0 to 1 meanwhile. Without `may_measure`, None where nothing is kept. Where
    measuring fails, a guess is kept, so that it is not tried again before the engine is another, or `anew` is wanted.
    """
    if not anew and (kept := machines.load()):
        return kept
    if not may_measure:
        return None
    found = _measure(on_progress or (lambda _fraction: None)) or machines.guess()
    machines.save(found)
    return found


def quick() -> Machine:
    """What is kept, or else a guess from the number of cores (`is_guess`); takes no time."""
    return machines.load() or machines.guess()


def _measure(on_progress: Callable[[float], None]) -> Machine | None:
    """Run the measuring process; None where it fails or takes too long. Whatever ends us, ends it."""
    found: Machine | None = None
    with Child(_MEASURE, _Line, _TIMEOUT_S) as child:
        for line in child:
            found = line.machine or found
            if line.total:
                on_progress(min(1.0, line.done / line.total))
    return found


def ask_build() -> EngineBuild:
    """What the engine says of itself. Raises `EngineFailed` with the reason and the next step where it cannot."""
    command = [sys.executable, "-P", "-m", "localchat.engine.devices"]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LOADS_IN_S)
    except subprocess.TimeoutExpired:
        raise EngineFailed(
            f"llama.cpp does not load within {_LOADS_IN_S:.0f} s: try again on a quieter machine"
        ) from None
    if done.returncode == -signal.SIGILL:
        raise EngineFailed(f"llama.cpp was built for another processor than this one: compile it here: {REBUILD}")
    if done.returncode < 0:
        raise EngineFailed(
            f"llama.cpp died as it was loaded ({signal.Signals(-done.returncode).name}): install it again: {REBUILD}"
        )
    try:
        return msgspec.json.decode(done.stdout, type=EngineBuild)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise EngineFailed(safe_line(said[-1]) if said else f"llama.cpp does not load: {REBUILD}") from None


def gpus() -> list[Device]:
    """The devices beside the processor that the engine can use, with the memory free on them; none where it cannot."""
    try:
        return ask_build().devices
    except EngineFailed:
        return []
