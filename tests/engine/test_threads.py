"""The thread controller and its meter, fed with a machine's load that the test makes up."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localchat.engine import load as load_module
from localchat.engine.load import NOTHING_KNOWN, LoadMeter, Sample, others_since, read_sample
from localchat.engine.threads import ThreadController
from localchat.hardware import usable_cpus


class Machine:
    """Two or more cores, of which others use some; time passes when the test says so."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.at = 50.0
        self.own = self.idle = self.niced = 0.0

    def passes(self, seconds: float, *, own: float, others: float, niced: float = 0.0) -> None:
        """`own`, `others` and `niced` are cores in use."""
        assert own + others + niced <= self.cores
        self.at += seconds
        self.own += own * seconds
        self.niced += niced * seconds
        self.idle += (self.cores - own - others - niced) * seconds

    def sample(self) -> Sample:
        return Sample(self.at, self.own, self.idle, self.niced)

    def controller(self) -> ThreadController:
        controller = ThreadController(
            self.cores, sample=self.sample, clock=lambda: self.at, cpus=self.cores, cores=self.cores
        )
        assert controller.update() == (self.cores, self.cores)
        return controller


@pytest.fixture
def machine() -> Machine:
    return Machine(2)


def test_a_quiet_machine_gives_every_core(machine: Machine) -> None:
    controller = machine.controller()
    for _ in range(5):
        machine.passes(0.3, own=2, others=0)
        assert controller.update() == (2, 2)


def test_a_core_that_another_program_takes_is_left_to_it(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.1, own=1.3, others=0.7)  # three compute-bound threads share two cores
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=1)
    assert controller.update() == (1, 1)


def test_a_core_that_is_free_again_is_used_again(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.4, own=1.2, others=0.8)
    assert controller.update() == (1, 1)
    machine.passes(0.1, own=1, others=0.05)
    assert controller.update() == (2, 2)


def test_a_little_load_changes_nothing_in_either_direction(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.3, own=1.7, others=0.3)
    assert controller.update() == (2, 2)
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=0.5)
    assert controller.update() == (1, 1)


def test_load_while_the_engine_rests_does_not_count(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.2, own=2, others=0)
    controller.rest()
    machine.passes(0.3, own=0.05, others=1.5)  # a client that is starting
    assert controller.update() == (2, 2)
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)


def test_what_was_learned_before_a_rest_is_where_the_next_answer_starts(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)
    controller.rest()
    machine.passes(60, own=0, others=0)
    assert controller.update() == (1, 1)
    machine.passes(0.1, own=1, others=0)
    assert controller.update() == (2, 2)


def test_too_short_a_time_says_nothing(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.06, own=1, others=1)
    assert controller.update() == (2, 2)
    machine.passes(0.06, own=1, others=1)
    assert controller.update() == (1, 1)


def test_many_cores_follow_at_once() -> None:
    eight = Machine(8)
    controller = eight.controller()
    eight.passes(0.3, own=5, others=3)
    assert controller.update() == (5, 5)
    eight.passes(0.3, own=5, others=0)
    assert controller.update() == (8, 8)
    eight.passes(0.3, own=1, others=7)
    assert controller.update() == (1, 1)


def test_a_program_of_low_priority_may_give_way(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.3, own=1, others=1)
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=0, niced=1)
    assert controller.update() == (2, 2)


def test_one_thread_is_never_measured() -> None:
    def never() -> Sample:
        raise AssertionError("measured")

    controller = ThreadController(1, sample=never)
    for _ in range(3):
        assert controller.update() == (1, 1)
        controller.took(1, 0.01)


def test_another_model_has_its_own_most(machine: Machine) -> None:
    controller = machine.controller()
    machine.passes(0.3, own=1, others=1)
    assert controller.update() == (1, 1)
    controller.most(None, 2)
    assert controller.update() == (1, 1)
    controller.most(1, 4)
    assert controller.update() == (1, 4)
    machine.passes(0.3, own=1, others=1)
    assert controller.update() == (1, 1)
    controller.most(None, None)
    assert controller.update() == (2, 2)


@pytest.mark.parametrize("seconds", [3600.0, 1.1])
def test_a_gap_in_which_nothing_was_computed_says_nothing(machine: Machine, seconds: float) -> None:
    meter = LoadMeter(2, machine.sample)
    meter.measure(machine.at)
    machine.passes(seconds, own=0.005, others=0)
    assert meter.measure(machine.at) is None
    machine.passes(0.1, own=1, others=1)
    load = meter.measure(machine.at)
    assert load
    assert load.now == pytest.approx(1.0)


def test_a_long_step_is_no_gap(machine: Machine) -> None:
    meter = LoadMeter(2, machine.sample)
    meter.measure(machine.at)
    machine.passes(3.0, own=1, others=1)
    load = meter.measure(machine.at)
    assert load
    assert (load.now, load.lately, load.others) == pytest.approx((1.0, 1.0, 1.0))


def test_a_step_that_hardly_gets_a_core_is_no_gap(machine: Machine) -> None:
    """Many programs on two cores: a step with two threads takes seconds, of which little is ours."""
    controller = machine.controller()
    machine.passes(4.0, own=0.15, others=1.85)
    assert controller.update() == (1, 1)


def test_a_clock_that_goes_back_says_nothing(machine: Machine) -> None:
    meter = LoadMeter(2, machine.sample)
    meter.measure(machine.at)
    machine.at -= 30
    assert meter.measure(machine.at + 60) is None


def test_without_processor_times_nothing_is_known() -> None:
    load = LoadMeter(2, lambda: None).measure(5.0)
    assert load is NOTHING_KNOWN
    assert load.now == math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_processors_that_are_shown_under_other_numbers_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some containers do: of four processors only two would be counted, and the others seem taken."""
    stat = tmp_path / "stat"
    stat.write_text("cpu 0 0 0 0\n" + "".join(f"cpu{cpu} 10 0 0 1000 0 0 0 0 0 0\n" for cpu in range(4)))
    monkeypatch.setattr(load_module, "_STAT", stat)
    monkeypatch.setattr(load_module, "usable_cpus", lambda: frozenset({2, 3, 4, 5}))
    assert read_sample() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_the_kernels_counts_are_read_for_the_allowed_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  1 1 1 1 1 1 1 1 0 0\n"
        "cpu0 100 200 300 400 50 0 0 7 0 0\n"
        "cpu1 9999 9999 9999 9999 9999 0 0 0 0 0\n"
        "cpu10 1 2 3 400 50 0 0 0 0 0\n"
        "intr 5 0\n"
    )
    monkeypatch.setattr(load_module, "_STAT", stat)
    monkeypatch.setattr(load_module, "usable_cpus", lambda: frozenset({0, 10}))
    monkeypatch.setattr(load_module, "_TICKS", 100)
    sample = read_sample()
    assert sample
    assert (sample.idle, sample.niced) == (9.0, 2.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
@pytest.mark.parametrize("content", ["cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n", "", None])
def test_a_sandbox_that_counts_nothing_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(load_module, "_STAT", tmp_path / "stat")
    if content is not None:
        (tmp_path / "stat").write_text(content)
    assert read_sample() is None


def test_this_machine_counts() -> None:
    first = read_sample()
    assert first
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = read_sample()
        assert now
        if now.idle + now.own > first.idle + first.own:
            return
    raise AssertionError("neither our time nor idle time grew")


def _spins(choice: dict[str, str]) -> str:
    code = "import os; from localchat.engine.llama import api; api(); print(os.environ.get('GOMP_SPINCOUNT'))"
    kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **choice}, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="only set there")
def test_waiting_threads_sleep_soon_unless_the_person_chose_otherwise() -> None:
    assert _spins({}) == "20000"
    assert _spins({"GOMP_SPINCOUNT": "7"}) == "7"
    assert _spins({"OMP_WAIT_POLICY": "passive"}) == "None"


def test_what_others_have_had_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = len(usable_cpus())
    before = Sample(at=10.0, own=1.0, idle=5.0, niced=0.0)

    def others(now: Sample | None) -> float:
        monkeypatch.setattr(load_module, "read_sample", lambda: now)
        return others_since(before)

    # Ten seconds of each processor: half for us, a quarter for nobody.
    assert others(Sample(at=20.0, own=1.0 + 5 * cpus, idle=5.0 + 2.5 * cpus, niced=0.0)) == pytest.approx(0.25)
    assert others(Sample(at=20.0, own=1.0 + 9 * cpus, idle=5.0 + 2 * cpus, niced=0.0)) == 0.0
    assert others(None) == others(before) == others_since(None) == 0.0
