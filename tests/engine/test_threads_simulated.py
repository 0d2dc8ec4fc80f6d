"""The thread controller on simulated machines: it finds the best number, keeps it, and comes back within a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from simulated_machine import Others, SimulatedMachine, answer, linear

_SECONDS = 10.0


def bursts(share: float, length: float = 0.02) -> Others:
    """One program that computes for a random `share` of all moments of that length."""
    source = random.Random(3)
    is_on = [source.random() < share for _ in range(2000)]
    return lambda at: int(is_on[int(at / length) % len(is_on)])


def every_second(busy: float) -> Others:
    """A program that takes a core for so long at the start of each second."""
    return lambda at: int(at % 1 < busy)


CONSTANT: dict[str, tuple[float, Callable[[], SimulatedMachine]]] = {
    "two quiet cores": (0.99, lambda: SimulatedMachine(2)),
    "eight quiet cores": (0.98, lambda: SimulatedMachine(8, step_s=0.05)),
    "twelve quiet cores": (0.98, lambda: SimulatedMachine(12, step_s=0.08)),
    "a slow model": (0.97, lambda: SimulatedMachine(4, step_s=0.8)),
    "one of two cores taken": (0.97, lambda: SimulatedMachine(2, lambda at: 1)),
    "both cores taken": (0.97, lambda: SimulatedMachine(2, lambda at: 2)),
    "three of eight cores taken": (0.97, lambda: SimulatedMachine(8, lambda at: 3)),
    "a core taken from a slow model": (0.9, lambda: SimulatedMachine(4, lambda at: 1, step_s=0.8)),
    "a program of low priority": (0.98, lambda: SimulatedMachine(2, lambda at: 1, niced=True)),
    "bursts of a sixth": (0.95, lambda: SimulatedMachine(2, bursts(0.15))),
    "bursts of a third": (0.92, lambda: SimulatedMachine(2, bursts(0.3))),
    "a memory that is no faster for eight": (0.97, lambda: SimulatedMachine(8, speed_up=lambda n: min(n, 3.0))),
    "a memory that is no faster for two": (0.97, lambda: SimulatedMachine(2, speed_up=lambda n: 1.0)),
    "too many threads are slower": (0.93, lambda: SimulatedMachine(6, speed_up=lambda n: linear(n) - 0.07 * n * n)),
    "a quota of 1.1": (0.94, lambda: SimulatedMachine(2, quota=1.1)),
    "a quota of 1.5": (0.97, lambda: SimulatedMachine(2, quota=1.5)),
    "no processor times": (0.97, lambda: SimulatedMachine(2, counts=False)),
    "no processor times, a core taken": (0.93, lambda: SimulatedMachine(2, lambda at: 1, counts=False)),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_a_constant_load_finds_nearly_the_best_fixed_number(case: str) -> None:
    share, machine = CONSTANT[case]
    cores = machine().cores
    fixed = range(1, cores + 1) if cores <= 4 else (1, 3, cores // 2, cores - 3, cores - 1, cores)
    best = max(answer(machine(), 3.0, threads).rate(0, 3) for threads in fixed)
    assert answer(machine(), _SECONDS).rate(0, _SECONDS) >= share * best


@pytest.mark.parametrize("case", [case for case in CONSTANT if "bursts" not in case])
def test_under_a_constant_load_the_number_stays(case: str) -> None:
    _, machine = CONSTANT[case]
    run = answer(machine(), 24.0)
    # One trial is two changes, and each next one waits at least twice as long.
    assert run.changes_between(4, 24) <= 10
    assert run.changes_between(12, 24) <= 6


def test_bursts_do_not_make_it_flutter() -> None:
    for share in (0.15, 0.3, 0.45, 0.6):
        run = answer(SimulatedMachine(2, bursts(share)), 20.0)
        assert run.changes_between(5, 20) < 40, share


def test_a_core_that_is_taken_is_left_within_a_fifth_of_a_second() -> None:
    run = answer(SimulatedMachine(2, lambda at: int(at >= 2.0)), 4.0)
    left = next(at for at, threads in run.changes if at >= 2.0 and threads == 1)
    assert left < 2.2
    assert run.changes[-1][1] == 1


@pytest.mark.parametrize("quiet_from", [0.5, 3.0, 20.05])
@pytest.mark.parametrize(("cores", "taken"), [(2, 1), (2, 2), (8, 3)])
def test_full_speed_is_back_within_a_second(quiet_from: float, cores: int, taken: int) -> None:
    machine = SimulatedMachine(cores, lambda at: taken if at < quiet_from else 0)
    run = answer(machine, quiet_from + 2.5)
    full = answer(SimulatedMachine(cores), 2.0, cores).rate(0, 1)
    assert run.rate(quiet_from + 1, quiet_from + 2.5) >= 0.95 * full


def test_after_bursts_full_speed_is_back_within_a_second_too() -> None:
    fluttering = bursts(0.5)
    run = answer(SimulatedMachine(2, lambda at: fluttering(at) if at < 15 else 0), 17.5)
    assert run.rate(16, 17.5) >= 0.95 * answer(SimulatedMachine(2), 2.0, 2).rate(0, 1)


@pytest.mark.parametrize("busy", [0.3, 0.5])
def test_a_load_that_comes_and_goes_is_followed(busy: float) -> None:
    fixed = [len(answer(SimulatedMachine(2, every_second(busy)), 20.0, threads).tokens) for threads in (1, 2)]
    run = answer(SimulatedMachine(2, every_second(busy)), 20.0)
    assert len(run.tokens) >= 0.97 * max(fixed)
    # What could be had by knowing beforehand: two threads in each quiet moment, one in each other.
    perfect = (linear(2) * (1 - busy) + busy) * 20 / 0.016
    assert len(run.tokens) >= 0.8 * perfect


def test_where_stalls_are_worst_hardly_more_than_one_step_is_lost() -> None:
    machine = SimulatedMachine(2, lambda at: int(at >= 2.0), stalled=0.005)
    run = answer(machine, 12.0)
    stalls = [after - before for before, after in pairwise(run.tokens) if after - before > 0.5]
    assert len(stalls) <= 1
    assert run.rate(7, 12) > 0.95 / 0.016


def test_a_growing_conversation_is_no_reason_for_fewer_threads() -> None:
    run = answer(SimulatedMachine(2), 30.0, grows=0.002)
    trials = [after - before for (before, one), (after, _) in pairwise(run.changes) if one == 1]
    assert run.changes[-1][1] == 2
    assert len(trials) <= 4
    assert sum(trials) < 0.6


def test_the_load_is_known_before_the_first_step() -> None:
    """As after a start: the host takes a sample, loads for a moment, and computes."""
    machine = SimulatedMachine(2, lambda at: 1)
    controller = machine.controller()
    controller.update()
    machine.step(1, tokens=20)
    assert controller.update() == (1, 1)


def test_reading_and_answering_have_numbers_of_their_own() -> None:
    """Answering gains nothing from a second thread here, reading does."""
    machine = SimulatedMachine(2)
    controller = machine.controller()
    for _ in range(150):
        for tokens, fixed in ((1, 1.0), (64, None)):
            count = controller.update()[tokens > 1]
            machine.speed_up = linear if fixed is None else lambda n: 1.0
            controller.took(tokens, machine.step(count, tokens=tokens, reads=0.2 if tokens > 1 else 1.0))
    decode, prefill = controller.update()
    assert (decode, prefill) == (1, 2)


def test_batches_of_other_sizes_are_not_compared() -> None:
    """Small batches cost more a token than large ones, whatever the number of threads."""
    machine = SimulatedMachine(2)
    controller = machine.controller()
    at_one = 0
    for number in range(400):
        tokens, cost = ((4, 0.9), (256, 0.02))[number // 3 % 2]
        count = controller.update()[1]
        at_one += count == 1
        controller.took(tokens, machine.step(count, tokens=tokens, reads=cost))
    assert controller.update()[1] == 2
    assert at_one < 40


def test_being_stopped_and_continued_says_nothing() -> None:
    """SIGSTOP for half a minute in the middle of a step, while another program has a core before and after."""
    machine = SimulatedMachine(2, lambda at: 1)
    controller = machine.controller()
    for _ in range(100):
        controller.took(1, machine.step(controller.update()[0]))
    assert controller.threads == 1
    machine.others = lambda at: 0
    began = machine.at
    machine.wait(30)
    machine.others = lambda at: 1
    controller.took(1, machine.at - began)
    for _ in range(100):
        count = controller.update()[0]
        assert count == 1
        controller.took(1, machine.step(count))


def test_a_stop_on_a_quiet_machine_costs_no_thread() -> None:
    machine = SimulatedMachine(2)
    controller = machine.controller()
    numbers = []
    for number in range(300):
        numbers.append(controller.update()[0])
        taken = machine.step(numbers[-1])
        if number == 100:
            machine.wait(20)
            taken += 20
        controller.took(1, taken)
    assert numbers[102:].count(1) < 8
    assert numbers[-1] == 2
