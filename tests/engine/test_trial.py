"""Trying a model: every figure is there for models of every kind, and what is compared is what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from localchat.engine import trial as trials
from localchat.engine import tuner
from localchat.engine.model import Model
from localchat.engine.stopwatch import Stopwatch
from localchat.engine.trial import Trial
from localchat.engine.tuner import NOISE, Tuner
from localchat.errors import DoesNotFit
from localchat.trials import Bench, Order, Tuned, Turn
from localchat.tuning import Tuning
from tests.tiny_models import Architecture, write_model

Lines = list[dict[str, object]]


def order(path: Path, folder: Path, what: str = "bench", threads: int = 2, **values: object) -> Order:
    return Order(path=str(path), what=what, threads=threads, cache=str(folder), quick=True, **values)


def run(order: Order) -> tuple[int, Lines]:
    """Run the measuring process as clients do; its exit code and the lines that it printed."""
    command = [sys.executable, "-P", "-m", "localchat.engine.trial", msgspec.json.encode(order).decode()]
    # Threads that sleep while they wait: two that spin would stop each other on a machine that does other things too.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba"])
def test_a_bench_has_every_figure(architecture: Architecture, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", architecture=architecture, template=None, context=2048)
    folder = tmp_path / "cache"
    threads = 2 if architecture == "llama" else 1
    code, lines = run(order(model, folder, threads=threads))
    assert code == 0, lines
    bench = msgspec.convert(lines[-1]["bench"], Bench, strict=False)
    assert [one.threads for one in bench.threads] == [1, 2][:threads]
    assert [one.tokens for one in bench.depths] == [1024]
    together = [1, 2, 4, 8] if architecture != "llama" else [1, 2, 4, 8, 16]
    assert [one.sequences for one in bench.batches] == together
    assert bench.restored and bench.restored.tokens == bench.read_tokens
    assert bench.used_threads == threads and bench.speeds.decode == bench.threads[-1].decode
    assert 0 <= bench.others <= 1 and bench.measured > "2020"
    assert not list(folder.iterdir())  # what was written there is gone
    shares = [float(str(line["share"])) for line in lines[:-1]]
    assert shares == sorted(shares) and shares[-1] <= 1


def test_a_model_of_a_small_window_is_measured_within_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", context=128)
    code, lines = run(order(model, tmp_path, threads=1))
    assert code == 0, lines
    bench = msgspec.convert(lines[-1]["bench"], Bench, strict=False)
    assert not bench.depths and bench.read_tokens + bench.answer_tokens <= 128


def test_what_cannot_be_loaded_is_said(tmp_path: Path, starter: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(starter.read_bytes()[: 1 << 20])
    code, lines = run(order(damaged, tmp_path))
    assert code == 8 and lines[-1]["code"] == "damaged_file"
    assert "damaged.gguf" in str(lines[-1]["error"])


@pytest.fixture
def stopwatch(tmp_path: Path) -> object:
    model = Model(write_model(tmp_path / "tiny.gguf", context=2048))
    made = Stopwatch(model, 1536, 1, Tuning())
    yield made
    made.close()
    model.close()


def test_a_window_is_filled_without_being_read(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    decode = stopwatch.context.decode
    monkeypatch.setattr(stopwatch.context, "decode", lambda: (computed.append(1), decode()))
    stopwatch.stand_at(1200)
    assert stopwatch.context.positions(0) == (0, 1199)
    assert len(computed) <= 2  # a few tokens to see how a state is written, and one micro-batch
    stopwatch.answer(3)
    stopwatch.stand_at(1200)
    assert stopwatch.context.positions(0) == (0, 1199) and len(computed) <= 5


def test_a_state_goes_through_memory_and_file(stopwatch: Stopwatch, tmp_path: Path) -> None:
    stopwatch.clear()
    stopwatch.read(100)
    _, state = stopwatch.save()
    assert stopwatch.restore(state) > 0 and stopwatch.context.positions(0) == (0, 99)
    assert min(stopwatch.through_file(state, tmp_path)) > 0 and stopwatch.context.positions(0) == (0, 99)
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_takes_too_long_is_cut_short(stopwatch: Stopwatch) -> None:
    stopwatch.clear()
    stopwatch.answer(1000, seconds=0.0)
    assert stopwatch.context.positions(0) == (0, 0)


def test_a_window_that_does_not_fit_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lines, windows = trials.Stopwatch, Lines(), list[int]()

    def only_small(model: Model, n_ctx: int, threads: int, tuning: Tuning) -> Stopwatch:
        if n_ctx > 1500:
            raise DoesNotFit("no memory")
        windows.append(n_ctx)
        return made(model, n_ctx, threads, tuning)

    monkeypatch.setattr(trials, "Stopwatch", only_small)
    trial = Trial(
        msgspec.structs.replace(order(write_model(tmp_path / "tiny.gguf"), tmp_path), threads=1), lines.append
    )
    assert trials.bench(trial).threads
    assert windows == [1152] and [line for line in lines if "notice" in line]
    monkeypatch.setattr(trials, "Stopwatch", lambda *_: (_ for _ in ()).throw(DoesNotFit("no memory")))
    with pytest.raises(DoesNotFit):
        trials.bench(trial)
    trial.model.close()


def test_the_counts_of_threads_are_doublings_and_what_is_used(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    trial = Trial(order(model, tmp_path), lambda _: None)
    trial.model.close()
    trial.order = msgspec.structs.replace(trial.order, threads=6, quick=False, tuning=Tuning(decode_threads=3))
    assert trial.thread_counts() == [1, 2, 3, 4, 6]
    trial.order = msgspec.structs.replace(trial.order, threads=1)
    assert trial.thread_counts() == [1, 3]


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_tune_tries_what_the_model_can_have(architecture: Architecture, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", architecture=architecture, width=128)
    threads, kv_type = (2, "q8_0") if architecture == "llama" else (1, None)
    code, lines = run(order(model, tmp_path, "tune", threads, kv_type=kv_type))
    assert code == 0, lines
    tuned = msgspec.convert(lines[-1]["tuned"], Tuned, strict=False)
    tried = {(one.setting, one.value) for one in tuned.tried}
    assert {("micro-batch", "128"), ("micro-batch", "512")} <= tried
    assert {one for one in tried if one[0] == "threads"} == {("threads", str(one)) for one in (1, 2) if threads == 2}
    if architecture == "llama":
        # A person chose it: it is taken whatever it costs, and nothing else rounds what is remembered.
        assert tuned.tuning.kv_type == "q8_0" and tuned.tuning.flash_attention is None
        assert [one.value for one in tuned.tried if one.taken and one.setting == "kv cache"] == ["q8_0"]
    else:
        assert tuned.tuning.kv_type is None


class _Fake:
    """A stopwatch by which each tuning has a speed of its own, whatever the machine does."""

    speeds: dict[str, tuple[float, float]]

    def __init__(self, model: Model, n_ctx: int, threads: int, tuning: Tuning) -> None:
        self._tuning, self._threads = tuning, (tuning.decode_threads or threads, tuning.prefill_threads or threads)
        self.context = self
        # As the engine would make the window: with ordinary attention, where that is the faster one.
        ordinary = "flash" in self.speeds and tuning.flash_attention is None and not tuning.kv_type
        self.tuning = msgspec.structs.replace(tuning, flash_attention=False) if ordinary else tuning
        self.batch_size = 512
        self.stands_quickly = True

    def _speed(self) -> tuple[float, float]:
        reads, says = 100.0, 20.0
        kind = {False: "no flash", True: "flash", None: self._tuning.kv_type or ""}[self._tuning.flash_attention]
        for name in (kind, f"mb {self._tuning.micro_batch}", f"reading {self._threads[1]}"):
            reads *= self.speeds.get(name, (1, 1))[0]
        for name in (kind, f"answering {self._threads[0]}"):
            says *= self.speeds.get(name, (1, 1))[1]
        return reads, says

    def use_threads(self, decode: int, prefill: int) -> None:
        self._threads = (decode, prefill)

    def read(self, tokens: int) -> float:
        return self._speed()[0]

    def answer(self, tokens: int, seconds: float = 0.0) -> float:
        return self._speed()[1]

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({}, Tuning()),
        ({"reading 1": (1.01, 1), "answering 1": (1, 1.02), "mb 128": (1.02, 1), "no flash": (1.0, 1.02)}, Tuning()),
        ({"answering 1": (1, 1.5)}, Tuning(decode_threads=1)),
        ({"reading 1": (1.5, 1), "answering 1": (1, 0.5)}, Tuning(prefill_threads=1)),
        ({"mb 128": (1.5, 1), "mb 64": (1.2, 1)}, Tuning(micro_batch=128)),
        ({"no flash": (1.0, 2.0)}, Tuning(flash_attention=False)),
        ({"flash": (1.0, 2.0)}, Tuning(flash_attention=True)),
        ({"flash": (1.0, 0.5), "no flash": (2.0, 2.0)}, Tuning()),
        ({"q8_0": (3.0, 3.0)}, Tuning()),  # it rounds: never by itself
    ],
    ids=["nothing", "noise", "answering", "reading", "micro-batch", "attention", "flash", "same", "rounding"],
)
def test_only_what_gains_is_taken(
    speeds: dict[str, tuple[float, float]], expected: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "Stopwatch", _Fake)
    monkeypatch.setattr(_Fake, "speeds", speeds, raising=False)
    asked = msgspec.structs.replace(order(write_model(tmp_path / "tiny.gguf"), tmp_path, "tune"), quick=False)
    trial = Trial(asked, lambda _: None)
    found = Tuner(trial).find()
    trial.model.close()
    assert found.tuning == expected
    names = {"decode_threads": "threads", "prefill_threads": "threads", "micro_batch": "micro-batch"}
    changed = {name for name, value in msgspec.structs.asdict(expected).items() if value is not None}
    assert {one.setting for one in found.tried if one.taken} == {names.get(one, "flash attention") for one in changed}
    assert tuner._turn(found.before) >= tuner._turn(found.after) * (NOISE if speeds and expected != Tuning() else 1)


def test_without_flash_attention_the_buffers_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(order(write_model(tmp_path / "tiny.gguf", context=8192), tmp_path), lambda _: None)
    assert Tuner(trial)._without_flash_attention() == Tuning(flash_attention=False)  # 4 heads
    monkeypatch.setattr(tuner, "_ATTENTION_BYTES", 4 * 8192 * 128 * 4)
    assert Tuner(trial)._without_flash_attention() == Tuning(flash_attention=False, micro_batch=128)
    trial.model.close()


def test_a_turn_is_half_early_and_half_late() -> None:
    assert tuner._turn(Turn(300.0, 300.0)) == pytest.approx(2.0)
    assert tuner._turn(Turn(300.0, 300.0, 2048, 150.0)) == pytest.approx(2.5)


def test_nothing_is_left_where_the_cache_folder_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, lines = run(order(write_model(tmp_path / "tiny.gguf"), tmp_path / "file"))
    assert code == 1 and "cannot use the folder" in str(lines[-1]["error"])


def test_a_ceiling_is_respected(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    code, lines = run(order(model, tmp_path, threads=1, max_ram=1 << 20))
    assert code == 5 and "tiny.gguf" in str(lines[-1]["error"])
    code, lines = run(order(model, tmp_path, threads=1, max_ram=1 << 30))
    assert code == 0, lines


@pytest.mark.parametrize("trained", [256, 400])
def test_a_window_below_the_usual_micro_batch_is_tuned(trained: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", context=trained)
    made = Trial(order(model, tmp_path, "tune", threads=1), lambda line: None)
    made.order = msgspec.structs.replace(made.order, quick=False)
    try:
        tuned = tuner.tune(made)
        assert "micro-batch" not in {one.setting for one in tuned.tried}
    finally:
        made.model.close()


def test_memory_that_becomes_short_on_the_way_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Trial(
        order(write_model(tmp_path / "tiny.gguf", context=2048), tmp_path, "tune", threads=1), lambda line: None
    )
    made_windows: list[Tuning] = []

    def only_so_often(model: Model, n_ctx: int, threads: int, tuning: Tuning) -> Stopwatch:
        made_windows.append(tuning)
        if len(made_windows) > 5:
            raise DoesNotFit("the memory is full")
        return Stopwatch(model, n_ctx, threads, tuning)

    monkeypatch.setattr(trials, "Stopwatch", only_so_often)
    try:
        with pytest.raises(DoesNotFit, match="the memory is full"):
            tuner.tune(made)
    finally:
        made.model.close()


def test_a_disk_that_is_full_costs_a_bench_nothing_but_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Stopwatch, state: object, folder: Path) -> tuple[float, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stopwatch, "through_file", full)
    lines: Lines = []
    made = Trial(order(write_model(tmp_path / "tiny.gguf", context=2048), tmp_path, threads=1), lines.append)
    try:
        bench = trials.bench(made)
    finally:
        made.model.close()
    assert bench.restored is None and bench.batches and bench.threads
    notices = [str(line["notice"]) for line in lines if "notice" in line and "restoring" in str(line["notice"])]
    assert notices == [f"restoring is left out: nothing can be kept in {tmp_path} (No space left on device)"]
