"""The machine and the programs on it: cores, memory, load, speed, Python and its libraries, the terminal."""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from functools import cache

import psutil

from localchat import __version__
from localchat.cli.doctor.report import Finding
from localchat.cli.progress import ProgressLine, size
from localchat.client import measured
from localchat.hardware import available_memory, usable_cores
from localchat.machine import compute_threads

_LITTLE_MEMORY = 1 << 30
_LOAD_S = 0.5
_BUSY = 0.4
_USUAL = {"Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q4_1", "IQ4_NL"}
"""The quantizations that are met most often, of all that were measured."""


@cache
def _used_by_others() -> float:
    """The share of the processor that others use; asked first, before the doctor itself is what it sees."""
    return psutil.cpu_percent(interval=_LOAD_S) / 100


def load() -> Iterator[Finding]:
    """How much of the processor others use now."""
    share = _used_by_others()
    found = f"other programs use {share:.0%} of the processor now"
    if share > _BUSY:
        yield Finding("warning", "load", found, "answers come slower until they are done: `top` shows who it is")
    else:
        yield Finding("ok", "load", found)


def cores() -> Iterator[Finding]:
    """Cores that there are, those that this process may use, and the threads that the engine will have."""
    there, usable = psutil.cpu_count(logical=False) or os.cpu_count() or 1, usable_cores()
    threads = compute_threads()
    found = f"{there} physical, {usable} usable here; the engine computes with {threads} thread{'s'[: threads != 1]}"
    if threads > usable:
        yield Finding("warning", "cores", found, f"set threads to {usable} in settings.toml, or leave it out")
    else:
        yield Finding("ok", "cores", found)


def memory() -> Iterator[Finding]:
    """Memory and swap."""
    available, swap = available_memory(), psutil.swap_memory()
    swapped = f"{size(swap.used)} of {size(swap.total)} swap used" if swap.total else "no swap"
    found = f"{size(available)} available of {size(psutil.virtual_memory().total)}, {swapped}"
    if available < _LITTLE_MEMORY:
        yield Finding("warning", "memory", found, "close other programs: only the smallest models fit")
    else:
        yield Finding("ok", "memory", found)


def speed(anew: bool) -> Iterator[Finding]:
    """How fast the processor reads memory and the usual quantizations; measured where need be, or `anew`."""
    kept = measured.machine(may_measure=False)
    anew = anew or (kept is not None and kept.was_busy)
    with ProgressLine() as line:
        machine = measured.machine(
            anew=anew, on_progress=lambda share: line.show(f"measuring the processor's speed: {share:.0%}")
        )
    assert machine
    rates = machine.processor.rates
    fastest = sorted(_USUAL & rates.keys(), key=lambda name: -rates[name].decode)
    decode = ", ".join(f"{name} {rates[name].decode / 1e9:.1f}" for name in fastest)
    found = f"{machine.processor.bandwidth / 1e9:.1f} GB/s from memory; GB/s of weights computed with: {decode}"
    if machine.is_guess:
        yield Finding(
            "warning",
            "speed",
            "could not be measured; the usual figures for so many cores are taken",
            "`localchat doctor --measure` tries again",
        )
    elif machine.was_busy:
        yield Finding(
            "warning",
            "speed",
            f"{found}: concluded from one thread, as other programs were busy while it was measured",
            "`localchat doctor --measure` on a quieter machine",
        )
    else:
        yield Finding("ok", "speed", f"{found} (measured {machine.measured[:10]})")


def software() -> Iterator[Finding]:
    """Versions, and what SQLite can."""
    hub = importlib.metadata.version("huggingface-hub")
    yield Finding(
        "ok",
        "software",
        f"localchat {__version__}, Python {platform.python_version()} on {platform.system()}, huggingface-hub {hub}",
    )
    has_fts5 = True
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
    except sqlite3.OperationalError:
        has_fts5 = False
    finally:
        connection.close()
    found = f"SQLite {sqlite3.sqlite_version}, {'with' if has_fts5 else 'without'} full-text search (FTS5)"
    if (3, 7, 0) <= sqlite3.sqlite_version_info <= (3, 51, 2):
        found += "; its fault in resetting a WAL does not matter, as localchat keeps none"
    if has_fts5:
        yield Finding("ok", "database", found)
    else:
        yield Finding("warning", "database", found, "chats cannot be searched: take a Python whose SQLite has FTS5")


def terminal() -> Iterator[Finding]:
    """What the terminal can show."""
    if not sys.stdout.isatty():
        yield Finding("ok", "terminal", "none: the output goes elsewhere")
        return
    columns, rows = shutil.get_terminal_size()
    kind, encoding = os.environ.get("TERM", ""), locale.getpreferredencoding(False)
    full = os.environ.get("COLORTERM") in ("truecolor", "24bit")
    colours = "16 million colours" if full else "256 colours" if "256color" in kind else "a few colours"
    found = f"{kind or 'no TERM'}, {encoding}, {columns} x {rows}, {colours}"
    if kind in ("", "dumb"):
        yield Finding("warning", "terminal", found, "set TERM to what the terminal is, such as xterm-256color")
    elif encoding.lower().replace("-", "") != "utf8":
        yield Finding("warning", "terminal", found, "set LANG to a UTF-8 locale, such as C.UTF-8")
    else:
        yield Finding("ok", "terminal", found)
