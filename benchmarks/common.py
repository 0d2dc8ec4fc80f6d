"""What the benchmarks share: interleaved runs, medians and ratios, and a table with the machine and the date.

Machines are noisy: every figure is a median over rounds in which the contestants take turns, and what counts is the
ratio within a round.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTER = "smollm2-135m"

# Some virtual machines offer AMX tiles and kill who uses them. localchat declines them; so that the peers can be
# measured on such a machine at all, they get the same treatment: a signal stack too small for tiles (engine/llama.py).
NO_AMX = """
import ctypes, platform, sys
if sys.platform == "linux" and platform.machine() == "x86_64":
    class Stack(ctypes.Structure):
        _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
    memory = ctypes.create_string_buffer(65536)
    ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory) + 57344, 0, 8192)), None)
"""


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of every contestant: compiled modules kept, as on a person's machine."""
    slowing = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    clean = {key: value for key, value in os.environ.items() if key not in slowing}
    return {**clean, "LOCALCHAT_HOME": str(home), "LOCALCHAT_OFFLINE": "", **extra}


def home_with_starter() -> tuple[Path, Path]:
    """A LOCALCHAT_HOME in the temporary folder with the starter in it, kept between runs; and the model's path."""
    home = Path(tempfile.gettempdir()) / "localchat-benchmarks"
    script = f"from localchat.models.fetch import ensure; print(ensure({STARTER!r}).path)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(home), check=True, stdout=subprocess.PIPE, text=True
    )
    return home, Path(done.stdout.strip())


def localchat(*arguments: str) -> list[str]:
    """The command line of `localchat`, as installed next to this Python."""
    installed = Path(sys.executable).with_name("localchat")
    return [str(installed) if installed.exists() else shutil.which("localchat") or "localchat", *arguments]


def first_byte(command: list[str], env: dict[str, str]) -> float:
    """Seconds from the start of a process to its first byte on stdout; the process then runs to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env, bufsize=0
    )
    assert process.stdout
    got = process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.stdout.read()
    if process.wait() != 0 or not got:
        raise SystemExit(f"failed: {command}")
    return seconds


def child_json(code: str, env: dict[str, str], *arguments: str) -> dict[str, float]:
    """Run Python code in a process of its own; the last line that it prints is its result."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=env, check=True, capture_output=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def interleaved(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contestant once a round, in turn; a first round that does not count fills caches."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            value = run()
            if number:
                results[name].append(value)
            print(f"round {number}/{rounds} {name}: {value:.3f}", file=sys.stderr)
    return results


def report(title: str, unit: str, results: dict[str, list[float]], ratios: list[tuple[str, str]]) -> None:
    """Print medians, and the medians of the ratios within rounds, as Markdown."""
    print(f"\n### {title}\n")
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}, {len(next(iter(results.values())))} rounds\n")
    print(f"| | median {unit} | min | max |\n|---|---|---|---|")
    for name, values in results.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    print()
    for left, right in ratios:
        pairs = [a / b for a, b in zip(results[left], results[right], strict=True)]
        print(f"- {left} / {right}: **{statistics.median(pairs):.2f}** ({min(pairs):.2f} to {max(pairs):.2f})")


def machine() -> str:
    """What runs this, in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{os.cpu_count()} CPUs ({model}), Python {platform.python_version()}"
