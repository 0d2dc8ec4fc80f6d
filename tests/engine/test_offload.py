"""How many layers go to a GPU, and what happens where it has less room than it said.

The card is a fake at the level of ctypes (`fake_gpu`); how the engine answers it is the engine's own. Whoever has a
real one, or a machine with llama.cpp's RPC server, sees the same through `localchat status`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localchat.engine import context as context_module
from localchat.engine import llama, resident, running
from localchat.engine import model as model_module
from localchat.engine import offload as offload_module
from localchat.engine.job import Finished, ModelSpec
from localchat.engine.offload import Offload, Weights, plan
from localchat.engine.scheduler import Engine
from localchat.engine.text import Piece
from localchat.errors import DoesNotFit
from localchat.hardware import Device
from localchat.host.spec import spec_of
from localchat.protocol import Extras, LoadedModel, Message
from tests.engine.fake_gpu import MIB, FakeDevice, FakeGpu, install
from tests.engine.reference import Reference, chatml_tokens
from tests.engine.test_scheduler import LONG_S, ROUNDING, Ask, Held
from tests.tiny_models import LETTERS, write_model

LAYERS = 8
"""As the faked header tells it. The model itself has two: its answers hardly depend on how a computer rounds."""

CARD = Device("CUDA0", "A card", "gpu", 100, 100, False)
SHARED = Device("Vulkan0", "inside", "integrated", 100, 100, True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", context=4096, speaks=LETTERS)


@pytest.fixture
def small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows begin at 256 tokens, and room is left for 256."""
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 256)
    monkeypatch.setattr(resident, "_PLANNED_CONTEXT", 256)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


def spec(model: Path, gpu: FakeGpu) -> ModelSpec:
    return ModelSpec("tiny", model, weights=lambda: gpu.weights(LAYERS))


def loaded(engine: Engine) -> LoadedModel:
    found = engine.loaded()
    assert found
    return found


def is_right(ask: Ask) -> bool:
    """Whether the answer is the one that a plain computation of the whole text finds likeliest."""
    reference = Reference(ask.job.spec.path)
    try:
        return bool(reference.regrets(chatml_tokens(*ask.turns), list(ask.so_far.encode())).max() < ROUNDING)
    finally:
        reference.close()


# The number


def weights(fitting: Callable[[int, int], int] = lambda context, room: 3, *, is_tied: bool = False) -> Weights:
    return Weights((10, 20, 30, 40), 7, is_tied, fitting)


def never() -> Weights:
    raise AssertionError("the file's header need not be read")


def test_what_leaves_the_machines_memory() -> None:
    # From the end: the head, then the last blocks.
    cases = {0: (0, 1.0), 1: (7, 1.0), 2: (47, 0.75), 3: (77, 0.5), 5: (107, 0.0)}
    for layers, (freed, share) in cases.items():
        offload = Offload(layers, (CARD,), weights())
        assert (offload.freed_bytes, offload.kept_share) == (freed, share), layers
        shared = dataclasses.replace(offload, devices=(SHARED,))
        assert (shared.freed_bytes, shared.kept_share) == (0, 1.0)
        assert Offload(layers, (CARD,), weights(is_tied=True)).freed_bytes == freed - (7 if layers else 0)


def test_the_number_is_chosen_from_what_is_free_and_from_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload_module, "devices", lambda: [CARD])
    monkeypatch.setattr(offload_module, "room_on", lambda chosen: 77 if list(chosen) == [CARD] else 0)
    asked = []

    def fitting(context: int, room: int) -> int:
        asked.append((context, room))
        return 3

    assert plan(lambda: weights(fitting), None, 512) == Offload(
        3, (CARD,), plan(lambda: weights(fitting), 3, 1).weights
    )
    assert asked == [(512, 77)]


def test_a_number_by_hand_counts_and_is_never_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload_module, "devices", lambda: [CARD])
    assert plan(weights, 2, 512).layers == 2
    assert plan(weights, 999, 512).layers == 5
    assert plan(never, 0, 512) == Offload()


def test_without_devices_no_header_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload_module, "devices", list)
    assert plan(never, None, 512) == plan(never, 7, 512) == Offload()
    assert plan(None, None, 512) == Offload()


def test_each_step_down_has_fewer_and_the_last_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offload_module, "devices", lambda: [CARD])
    for by_hand in (True, False):
        offload = Offload(40, (CARD,), Weights((1,) * 39, 1, False, lambda context, room: 99), by_hand)
        steps = []
        while offload.layers:
            offload = offload.fewer(512, "cudaMalloc failed")
            steps.append(offload.layers)
        assert steps == [30, 22, 16, 12, 9, 6, 0]
        assert offload.devices == ()
        assert "40 layers do not fit the GPU (cudaMalloc failed): trying 30" in capsys.readouterr().err


def test_a_step_down_believes_what_is_free_by_then_unless_the_number_is_a_persons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offload_module, "devices", lambda: [CARD])
    header = Weights((1,) * 39, 1, False, lambda context, room: 35)
    assert Offload(40, (CARD,), header).fewer(512, "").layers == 35
    assert Offload(35, (CARD,), header).fewer(512, "").layers == 26
    assert Offload(40, (CARD,), header, by_hand=True).fewer(512, "").layers == 30


@pytest.mark.parametrize(
    "line",
    [
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.00 MiB on device 0: cudaMalloc failed: out of memory",
        "ggml_vulkan: Device memory allocation of size 9 failed. vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "ggml_metal_log_allocated_size: error: failed to allocate buffer, size =     9.00 MiB",
        "llama_model_load: error loading model: unable to allocate Vulkan0 buffer",
        "alloc_tensor_range: failed to allocate RPC0[127.0.0.1:50052] buffer of size 94371840",
        "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
    ],
)
def test_the_ways_in_which_backends_say_that_memory_is_short(line: str) -> None:
    llama.api()
    since = llama.lines_logged
    llama._on_log(2, b"llama_model_loader: - kv  29: tokenizer.ggml.unknown_token_id u32 = 0\n", None)
    assert llama.shortage(since) is None
    llama._on_log(4, f"{line}\n".encode(), None)
    assert llama.shortage(since) == line.partition(": ")[2]
    assert "unknown_token_id" not in llama.complaints(since)
    assert llama.shortage(llama.lines_logged) is None


def test_buffers_are_counted_for_the_device_that_they_lie_on() -> None:
    llama.api()
    since = llama.lines_logged
    for name in ("CPU", "CUDA0", "CUDA0", "CUDA_Host", "CUDA10", "MTL0_Mapped", "RPC0[127.0.0.1:50052]"):
        llama._on_log(2, f"load_tensors: {name:>12} model buffer size =     2.00 MiB\n".encode(), None)
    counted = llama.device_bytes(since, ["CUDA0", "CUDA1", "CUDA10", "MTL0", "RPC0"])
    assert counted == {"CUDA0": 4 * MIB, "CUDA10": 2 * MIB, "MTL0": 2 * MIB, "RPC0": 2 * MIB}


def test_the_header_tells_how_a_model_can_be_spread(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = spec_of("smollm2-135m").weights
    assert read
    starter = read()
    assert len(starter.layers) == 30
    assert starter.is_tied
    assert sum(starter.layers) + starter.head < 98_362_432
    install(monkeypatch, FakeDevice("CUDA0", free=8 << 30))
    assert plan(read, None, 4096).layers == 31
    install(monkeypatch, FakeDevice("CUDA0", free=600 << 20))
    assert 0 < plan(read, None, 8192).layers < 31
    install(monkeypatch, FakeDevice("CUDA0", free=100 << 20))
    assert plan(read, None, 4096).layers == 0


# The engine with a card


def test_a_model_that_fits_lies_on_the_card_and_status_says_so(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(1000 * MIB)
    gpu.install(monkeypatch)
    ask = Ask(engine, spec(tiny, gpu), "hello", max_tokens=20)
    ask.end()
    assert is_right(ask)
    model = loaded(engine)
    assert (model.gpu_layers, model.layers) == (LAYERS + 1, 3)
    assert [(device.name, device.description) for device in model.devices] == [("CUDA0", "A card")]
    assert model.devices[0].bytes == 90 * MIB + 9 * 4096 * 1024
    assert (gpu.loads, gpu.windows) == ([9], [9])
    engine.close()
    assert not any(gpu.used.values())


def test_a_model_that_fits_partly_is_split(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(100 * MIB)
    gpu.install(monkeypatch)
    ask = Ask(engine, spec(tiny, gpu), "hello", max_tokens=20)
    ask.end()
    assert is_right(ask)
    # Room is left for a window of twice the first size.
    assert gpu.loads == [100 // (10 + 8)] == [loaded(engine).gpu_layers]


def test_a_card_that_has_less_than_it_says_gets_fewer_layers(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = FakeGpu(65 * MIB, told=1000 * MIB)
    gpu.install(monkeypatch)
    ask = Ask(engine, spec(tiny, gpu), "hello", max_tokens=20)
    ask.end()
    assert is_right(ask)
    # The weights of 9 do not fit; those of 6 do, but not with the window.
    assert (gpu.loads, gpu.windows) == ([9, 6, 4], [6, 4])
    assert loaded(engine).gpu_layers == 4
    errors = capsys.readouterr().err
    assert "9 layers do not fit the GPU (allocating 90.00 MiB: cudaMalloc failed: out of memory): trying 6" in errors
    assert "6 layers do not fit" in errors


def test_a_card_without_any_room_leaves_the_processor(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(MIB, told=1000 * MIB)
    gpu.install(monkeypatch)
    ask = Ask(engine, spec(tiny, gpu), "hello", max_tokens=20)
    ask.end()
    assert is_right(ask)
    assert gpu.loads == [9, 6, 4, 3, 2]
    assert (loaded(engine).gpu_layers, loaded(engine).devices) == (0, [])


def test_a_window_that_grows_takes_layers_from_the_card_and_keeps_the_conversation(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, small_start: None
) -> None:
    gpu = FakeGpu(100 * MIB, token_bytes=4096)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    first = Ask(engine, model, "a" * 100, max_tokens=60)
    first.end()
    assert (loaded(engine).context, loaded(engine).gpu_layers) == (256, 9)
    then = Ask(engine, model, Message("user", "a" * 100), Message("assistant", first.text), "b" * 1000, max_tokens=60)
    assert then.end().report.cached_tokens == first.end().usage.total_tokens - 1
    assert is_right(then)
    model_now = loaded(engine)
    assert (model_now.context, model_now.gpu_layers) == (2048, 100 // (10 + 8))
    assert gpu.loads == [9, 5]


def test_an_answer_that_outgrows_its_window_goes_on_with_fewer_layers(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, small_start: None
) -> None:
    gpu = FakeGpu(100 * MIB, token_bytes=8192)
    gpu.install(monkeypatch)
    ask = Ask(engine, spec(tiny, gpu), "a" * 40, max_tokens=1500)
    assert ask.end().reason == "length"
    assert len(ask.text) == 1500
    assert is_right(ask)
    assert loaded(engine).gpu_layers < 9
    assert gpu.loads[0] > gpu.loads[-1]


def test_where_the_layers_find_no_room_elsewhere_the_old_window_stays(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, small_start: None
) -> None:
    gpu = FakeGpu(100 * MIB, token_bytes=8192)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    first = Ask(engine, model, "a" * 50, max_tokens=20)
    first.end()
    before = loaded(engine)
    # The machine has room for what it holds now, and for nothing of what lies on the card.
    monkeypatch.setattr(model_module, "available_memory", lambda: tiny.stat().st_size - 10 * before.gpu_layers * MIB)
    with pytest.raises(DoesNotFit):
        Ask(engine, model, "b" * 3000, max_tokens=20).end()
    assert loaded(engine) == before
    again = Ask(engine, model, "a" * 50, max_tokens=20)
    again.end()
    assert again.text == first.text


def test_where_not_even_the_old_window_comes_back_the_model_is_loaded_anew(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, small_start: None
) -> None:
    gpu = FakeGpu(100 * MIB, token_bytes=8192)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    Ask(engine, model, "a" * 50, max_tokens=20).end()
    with monkeypatch.context() as poor:
        poor.setattr(model_module, "available_memory", lambda: -(1 << 40))
        with pytest.raises(DoesNotFit):
            Ask(engine, model, "b" * 3000, max_tokens=20).end()
        assert engine.loaded() is None
    ask = Ask(engine, model, "a" * 50, max_tokens=20)
    ask.end()
    assert is_right(ask)


def test_what_lies_on_the_card_needs_no_memory_of_the_machine(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(1000 * MIB)
    gpu.install(monkeypatch)
    size = tiny.stat().st_size
    on_card = 9 * (size // 10)
    real = dataclasses.replace(gpu.weights(LAYERS), layers=(size // 10,) * LAYERS, head=size // 10)
    split = ModelSpec("tiny", tiny, weights=lambda: real)
    monkeypatch.setattr(model_module, "available_memory", lambda: size - on_card)
    # A window's share lies on the card too; only what is spared for buffers stays.
    monkeypatch.setattr(context_module, "available_memory", lambda: context_module.SAFETY_BYTES)
    engine.load(split).result(LONG_S)
    assert loaded(engine).gpu_layers == 9
    with pytest.raises(DoesNotFit, match="beside what the GPU takes"):
        engine.load(split, gpu_layers=5).result(LONG_S)
    with pytest.raises(DoesNotFit):
        engine.load(split, gpu_layers=0).result(LONG_S)


def test_a_computation_that_finds_no_room_goes_on_with_fewer_layers(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All are read in one step: in several, who has a token less to read overtakes the others.
    monkeypatch.setattr(running, "_MIN_BITE", 512)
    gpu = FakeGpu(1000 * MIB)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    known = Held(engine, model, "a" * 30, max_tokens=20, at=Finished)
    known.wait()
    # From here on another program has what the card needs to compute with.
    gpu.most_computed = 3
    asks = [Ask(engine, model, letter * 100, max_tokens=50) for letter in "bcd"]
    known.let_go()
    for ask in asks:
        ask.end()
        assert is_right(ask)
    # They stepped aside three times: after two, an order that is turned round each time would be the right one again.
    assert gpu.loads == [9, 6, 4, 3]
    assert loaded(engine).gpu_layers == 3
    firsts = [ask.numbers(Piece)[0] for ask in asks]
    assert firsts == sorted(firsts)
    again = Ask(engine, model, "a" * 30, max_tokens=20)
    again.end()
    assert is_right(again)


def test_a_computation_without_room_anywhere_is_a_sentence(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(1000 * MIB, most_computed=0)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    engine.load(model).result(LONG_S)
    with monkeypatch.context() as poor:
        poor.setattr(model_module, "available_memory", lambda: -(1 << 40))
        with pytest.raises(DoesNotFit):
            Ask(engine, model, "hello", max_tokens=5).end()
        assert engine.loaded() is None
    ask = Ask(engine, model, "hello", max_tokens=5)
    ask.end()
    assert loaded(engine).gpu_layers == 0


def test_a_request_can_say_how_many_and_the_model_moves_once(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(1000 * MIB)
    gpu.install(monkeypatch)
    model = spec(tiny, gpu)
    for wanted, expected in ((None, 9), (4, 4), (4, 4), (None, 4), (0, 0), (999, 9), (999, 9)):
        ask = Ask(engine, model, "hello", max_tokens=10, localchat=Extras(gpu_layers=wanted))
        ask.end()
        assert is_right(ask)
        assert loaded(engine).gpu_layers == expected, wanted
    assert gpu.loads == [9, 4, 9]


def test_a_wish_that_could_not_be_met_is_not_tried_again_with_each_question(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(80 * MIB)
    gpu.install(monkeypatch)
    for _ in range(3):
        Ask(engine, spec(tiny, gpu), "hello", max_tokens=5, localchat=Extras(gpu_layers=9)).end()
    assert gpu.loads == [9, 6, 4] or gpu.loads == [9, 6]
    assert loaded(engine).gpu_layers == gpu.loads[-1]


def test_without_a_card_a_wish_changes_nothing(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    model = ModelSpec("tiny", tiny, weights=never)
    for wanted in (None, 5, 0, 7):
        Ask(engine, model, "hello", max_tokens=5, localchat=Extras(gpu_layers=wanted)).end()
    assert loaded(engine).gpu_layers == 0
    assert llama.lines_logged  # the library did speak
    assert sum("loaded meta data" in line for line in llama.log_lines) >= 1


def test_the_engines_own_number_holds_where_a_request_has_none(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(1000 * MIB)
    gpu.install(monkeypatch)
    engine = Engine(1, gpu_layers=3)
    try:
        Ask(engine, spec(tiny, gpu), "hello", max_tokens=5).end()
        assert (loaded(engine).gpu_layers, gpu.loads) == (3, [3])
    finally:
        engine.close()
