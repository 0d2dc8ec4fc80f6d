"""Measuring, on this machine: every figure is there and possible, and the parts measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from localchat.engine import measure
from localchat.engine.ggml import library
from localchat.engine.measure import TYPES, Bench
from localchat.machine import Attention, Figures, Machine, Rate, guess
from localchat.models.gguf_types import TENSOR_TYPES


def test_the_types_are_those_of_the_files() -> None:
    for name, (number, block, size) in TYPES.items():
        assert TENSOR_TYPES[number] == (name, block, size)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the measuring process prints, with weights that are small and figures that are quick."""
    code = (
        "from localchat.engine import measure; measure._STREAMED_BYTES = 64 << 20; measure._SECONDS = 0.005; "
        "raise SystemExit(measure.main())"
    )
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir())  # whoever asked keeps it
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_process_says_how_far_it_is(printed: list[dict[str, object]]) -> None:
    *steps, last = printed
    assert [step["done"] for step in steps] == list(range(1, len(steps) + 1))
    assert {step["total"] for step in steps} == {len(steps)}
    assert set(last) == {"machine"}


def test_every_figure_is_there_and_possible(printed: list[dict[str, object]]) -> None:
    machine = msgspec.convert(printed[-1]["machine"], Machine, strict=False)
    assert not machine.is_guess and machine.threads >= 1 and "=" in machine.system
    figures = machine.processor
    assert set(figures.rates) == set(TYPES)
    for rate in figures.rates.values():
        assert 1e6 < rate.decode < 1e13 and 1e6 < rate.cached < 1e13
        assert 1e7 < rate.prefill < 1e15
    for attention in figures.attention.values():
        assert 1e6 < attention.decode < 1e14 and 1e6 < attention.prefill < 1e15
    assert 1e-8 < figures.layer_seconds < 1
    assert figures.bandwidth == max(rate.decode for rate in figures.rates.values())


def test_a_start_over_counts_no_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who compute meanwhile are noticed after some steps; the bar must not go beyond its end."""
    figures = guess().processor

    def three_steps(name: str, device: object, threads: int, room: int, on_step: Callable[[], None]) -> Figures:
        for number in range(5):
            if threads > 1 and number == 3:
                raise measure._Disturbed
            on_step()
        return figures

    monkeypatch.setattr(measure, "measure", three_steps)
    steps: list[None] = []
    found, was_busy = measure._processor(None, 2, lambda: steps.append(None))
    assert was_busy and found.bandwidth > figures.bandwidth and len(steps) == 5


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(measure, "_STREAMED_BYTES", 64 << 20)
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    made = Bench(library().ggml_backend_dev_by_type(0), 1, 1 << 30)
    yield made
    made.close()


def test_weights_lie_where_the_engine_would_put_them(bench: Bench, starter: Path) -> None:
    """As the engine's own log of a load says: whatever it repacks, it repacks here too."""
    from localchat.engine import llama as log
    from localchat.engine.model import Model

    before = log.lines_logged
    Model(starter).close()  # Q4_1 and Q8_0
    repacked = any("REPACK" in line and "buffer size" in line for line in log._lines_since(before))
    special = [bench.buffer_type(TYPES[name][0]) in bench._special for name in ("Q4_1", "Q8_0")]
    assert any(special) == repacked
    assert bench.buffer_type(TYPES["F16"][0]) == bench._plain


def test_many_threads_are_concluded_from_one() -> None:
    one = Figures(
        name="CPU",
        bandwidth=10.0,
        layer_seconds=1.0,
        cached_bytes=1,
        streamed_bytes=2,
        rates={"Q8_0": Rate(10.0, 20.0, 30.0)},
        attention={64: Attention(1.0, 2.0)},
    )
    assert measure._scaled(one, 1) == one
    eight = measure._scaled(one, 8)
    assert eight.rates["Q8_0"].decode == eight.bandwidth == 30.0
    assert 6 * 20 < eight.rates["Q8_0"].cached < 8 * 20 and 6 * 30 < eight.rates["Q8_0"].prefill < 8 * 30
    assert 6 * 1 < eight.attention[64].decode < 8 * 1


def test_all_of_the_weights_are_computed_with(bench: Bench) -> None:
    plain = bench.buffer_type(TYPES["F16"][0])
    _, few_bytes, few = bench.products("F16", plain, 4 << 20, 1024, 1)
    _, many_bytes, many = bench.products("F16", plain, 64 << 20, 1024, 1)
    assert (few, many) == (1, 16)
    assert (few_bytes, many_bytes) == (4 << 20, 64 << 20)
