"""The thread controller, fed with a machine's load that the test makes up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localchat.engine import threads
from localchat.engine.threads import ThreadController


class Machine:
    """Two or more cores, of which others use some; time passes when the test says so."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.at = self.own = self.idle = 0.0

    def passes(self, seconds: float, *, own: float, others: float) -> None:
        """`own` and `others` are cores in use."""
        assert own + others <= self.cores
        self.at += seconds
        self.own += own * seconds
        self.idle += (self.cores - own - others) * seconds

    def sample(self) -> threads._Sample:
        return threads._Sample(self.at, self.own, self.idle)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    two = Machine(2)
    monkeypatch.setattr(threads.time, "monotonic", lambda: two.at)
    yield two


def controller_on(machine: Machine) -> ThreadController:
    controller = ThreadController(machine.cores, machine.sample)
    assert controller.update()[0] == machine.cores
    return controller


def test_a_quiet_machine_gives_every_core(machine: Machine) -> None:
    controller = controller_on(machine)
    for _ in range(5):
        machine.passes(0.3, own=2, others=0)
        assert controller.update() == (2, 2)


def test_a_core_that_another_program_takes_is_left_to_it(machine: Machine) -> None:
    controller = controller_on(machine)
    machine.passes(0.3, own=1.3, others=0.7)  # three compute-bound threads share two cores
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=1)
    assert controller.update() == (1, 1)


def test_a_core_that_is_free_again_is_used_again(machine: Machine) -> None:
    controller = controller_on(machine)
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=0.05)
    assert controller.update() == (2, 2)


def test_a_little_load_changes_nothing_in_either_direction(machine: Machine) -> None:
    controller = controller_on(machine)
    machine.passes(0.3, own=1.7, others=0.3)
    assert controller.update() == (2, 2)
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)
    machine.passes(0.3, own=1, others=0.35)
    assert controller.update() == (1, 1)


def test_load_while_the_engine_rests_does_not_count(machine: Machine) -> None:
    controller = controller_on(machine)
    machine.passes(0.2, own=2, others=0)
    controller.rest()
    machine.passes(0.3, own=0.05, others=1.5)  # a client that is starting
    assert controller.update() == (2, 2)
    machine.passes(0.3, own=1.2, others=0.8)
    assert controller.update() == (1, 1)


def test_the_load_is_not_measured_at_every_step(machine: Machine) -> None:
    controller = controller_on(machine)
    machine.passes(0.1, own=1, others=1)
    assert controller.update() == (2, 2)
    machine.passes(0.2, own=1, others=1)
    assert controller.update() == (1, 1)


def test_many_cores_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = Machine(8)
    monkeypatch.setattr(threads.time, "monotonic", lambda: eight.at)
    controller = controller_on(eight)
    eight.passes(0.3, own=5, others=3)
    assert controller.update() == (5, 5)
    eight.passes(0.3, own=5, others=0)
    assert controller.update() == (8, 8)
    eight.passes(0.3, own=1, others=7)
    assert controller.update() == (1, 1)


def test_one_thread_is_never_measured(machine: Machine) -> None:
    def never() -> threads._Sample:
        raise AssertionError("measured")

    controller = ThreadController(1, never)
    assert controller.update() == (1, 1)
