"""What the measuring process could print, for tests that are about what is done with it."""

from __future__ import annotations

import msgspec
import pytest

from localchat import machine as machines
from localchat.client import trials
from localchat.paths import paths, private_folder
from localchat.settings import settings
from localchat.trials import AtDepth, AtThreads, Bench, Restored, SideBySide, Speeds, Tried, Tuned, Turn
from localchat.tuning import Tuning

BENCH = Bench(
    threads=(AtThreads(80.0, 45.0, 1), AtThreads(150.0, 70.0, 2)),
    used_threads=2,
    used_prefill_threads=2,
    depths=(AtDepth(120.0, 35.0, 1024), AtDepth(60.0, 10.0, 4096)),
    batches=(SideBySide(1, 70.0), SideBySide(16, 150.0)),
    restored=Restored(tokens=512, bytes=12 << 20, read=3.4, save=0.01, restore=0.005, write=0.03, load=0.02),
    read_tokens=512,
    answer_tokens=64,
    rounds=3,
    measured="2026-01-02T00:00:00",
)

TUNED = Tuned(
    tuning=Tuning(decode_threads=1, micro_batch=128, flash_attention=False),
    before=Turn(100.0, 40.0, 2048, 10.0),
    after=Turn(110.0, 50.0, 2048, 30.0),
    tried=(
        Tried(setting="threads", value="1", prefill=80.0, decode=50.0, taken=True),
        Tried(setting="threads", value="2", prefill=100.0, decode=40.0, is_default=True),
        Tried(setting="micro-batch", value="128", prefill=110.0, taken=True),
        Tried(setting="flash attention", value="off", prefill=90.0, decode=30.0, depth=2048, taken=True),
    ),
    measured="2026-01-02T00:00:00",
)


def measured_machine(threads: int | None = None) -> None:
    """Have the machine's kernels measured: with figures that make it no guess. `threads`: the person's choice."""
    if threads:
        private_folder(paths().config)
        paths().settings.write_text(f"threads = {threads}\n")
        settings.cache_clear()
    machines.save(msgspec.structs.replace(machines.guess(), is_guess=False, measured="2026-01-01T00:00:00"))


def prints(monkeypatch: pytest.MonkeyPatch, *lines: object, then: str = "") -> None:
    """Put a process into the place of the measuring one that prints these lines and goes on with some code."""
    code = "import json, os, sys, time\n" + "".join(
        f"print({msgspec.json.encode(line).decode()!r}, flush=True)\n" for line in lines
    )
    monkeypatch.setattr(trials, "_TRIAL", ("-c", code + then))


def faster(speeds: Speeds, factor: float) -> Speeds:
    """So many times the speeds."""
    return Speeds(speeds.prefill * factor, speeds.decode * factor)
