"""The figures of this machine: kept, forgotten when something changed, guessed where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from localchat import machine as machines
from localchat.client import measured
from localchat.machine import Machine
from localchat.paths import paths


def kept(home: Path) -> Machine:
    machine = msgspec.structs.replace(machines.guess(), is_guess=False, measured="2026-01-01T00:00:00")
    machines.save(machine)
    return machine


def test_what_was_kept_is_there_again(empty_home: Path) -> None:
    assert machines.load() is None
    machine = kept(empty_home)
    assert machines.load() == machine == measured.machine(may_measure=False) == measured.quick()
    file = paths().state / "machine.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [one for one in file.parent.iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize("change", [{"engine": "another"}, {"cpu": "another"}, {"threads": 99}])
def test_figures_of_another_machine_do_not_count(empty_home: Path, change: dict[str, object]) -> None:
    machines.save(msgspec.structs.replace(kept(empty_home), **change))
    assert machines.load() is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"engine": 3}', b"{" * 100])
def test_a_damaged_file_counts_as_none(empty_home: Path, content: bytes) -> None:
    kept(empty_home)
    (paths().state / "machine.json").write_bytes(content)
    assert machines.load() is None


def test_a_guess_is_marked_and_has_all_that_is_needed(empty_home: Path) -> None:
    guess = measured.quick()
    assert guess.is_guess and guess.threads >= 1
    assert {"F16", "Q8_0", "Q4_K", "Q4_0"} <= set(guess.processor.rates)
    assert machines.load() is None  # a guess nobody asked to keep


def test_the_engine_stamp_is_that_of_the_library() -> None:
    assert len(machines.engine_stamp()) == 16
    assert machines.cpu_name()


FAILING = "raise SystemExit(7)"
ABORTING = 'import os; print(\'{"done": 1, "total": 4}\', flush=True); os.abort()'
CHATTING = "print('not ours'); print('{\"done\": 4, \"total\": 4}'); print(MACHINE)"


Instead = Callable[[str], None]


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Instead:
    """Puts other code into the place of the measuring process."""
    return lambda code: monkeypatch.setattr(measured, "_MEASURE", ("-c", code))


@pytest.mark.parametrize("code", [FAILING, ABORTING])
def test_a_failed_measurement_leaves_a_guess_that_is_kept(empty_home: Path, instead: Instead, code: str) -> None:
    fractions: list[float] = []
    instead(code)
    machine = measured.machine(on_progress=fractions.append)
    assert machine and machine.is_guess
    assert fractions == ([0.25] if code == ABORTING else [])
    assert machines.load() == machine  # not tried again with the same engine


def test_a_measurement_that_hangs_is_ended(empty_home: Path, instead: Instead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_TIMEOUT_S", 0.5)
    instead("import time; time.sleep(600)")
    machine = measured.machine()
    assert machine and machine.is_guess


def test_interrupting_ends_the_measurement_and_keeps_nothing(empty_home: Path, instead: Instead) -> None:
    instead("import os, time; print('{\"done\": 1, \"total\": ' + str(os.getpid()) + '}', flush=True); time.sleep(600)")
    seen: list[float] = []

    def interrupt(fraction: float) -> None:
        seen.append(fraction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured.machine(on_progress=interrupt)
    assert machines.load() is None
    with pytest.raises(ProcessLookupError):
        os.kill(round(1 / seen[0]), 0)


def test_what_the_process_prints_is_kept(empty_home: Path, instead: Instead) -> None:
    expected = msgspec.structs.replace(machines.guess(), is_guess=False, system="AVX = 1")
    line = msgspec.json.encode({"machine": expected}).decode()
    instead(CHATTING.replace("MACHINE", repr(line)))
    assert measured.machine() == expected == machines.load()


def test_asking_imports_nothing_heavy() -> None:
    code = "import sys, localchat.client.measured as m; m.machine(may_measure=False); m.quick(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert modules & {"llama_cpp", "numpy", "localchat.engine", "localchat.models", "psutil", "rich"} == set()
