"""Which devices count, and how much memory they have, as ggml's functions tell it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import msgspec
import pytest

from localchat import hardware
from localchat.engine import devices as devices_module
from localchat.engine.devices import devices, handles
from localchat.hardware import EngineBuild, room_on
from tests.engine.fake_gpu import ACCEL, CPU, GPU, INTEGRATED, META, FakeDevice, install

GIB = 1 << 30
MIB = 1 << 20


def names() -> list[str]:
    return [device.name for device in devices()]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 6 GiB available."""
    monkeypatch.setattr(devices_module, "available_memory", lambda: 6 * GIB)
    monkeypatch.setattr(hardware, "available_memory", lambda: 6 * GIB)


def test_only_devices_that_hold_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeDevice("BLAS", ACCEL),
        FakeDevice("CUDA0", GPU, 7 * GIB, 8 * GIB, "A card"),
        FakeDevice("META0", META),
        FakeDevice("CPU", CPU),
    )
    (card,) = devices()
    assert (card.name, card.description, card.kind) == ("CUDA0", "A card", "gpu")
    assert (card.free, card.total, card.unified) == (7 * GIB, 8 * GIB, False)


def test_without_a_device_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice("CPU", CPU))
    assert devices() == []
    assert list(handles([])) == [None]


def test_graphics_inside_the_processor_count_where_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = FakeDevice("Vulkan0", INTEGRATED, description="inside", backend="Vulkan")
    card = FakeDevice("Vulkan1", description="card", backend="Vulkan")
    remote = FakeDevice("RPC0", description="10.0.0.2:50052", backend="RPC")
    for found, expected in (
        ((inside,), ["Vulkan0"]),
        ((inside, card), ["Vulkan1"]),
        ((inside, remote), ["RPC0", "Vulkan0"]),
        ((inside, card, remote), ["RPC0", "Vulkan1"]),
    ):
        install(monkeypatch, *found)
        assert names() == expected


def test_a_card_that_two_backends_offer_counts_once_and_two_equal_cards_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeDevice("CUDA0", description="RTX"),
        FakeDevice("CUDA1", description="RTX"),
        FakeDevice("Vulkan0", description="RTX", backend="Vulkan"),
        FakeDevice("Vulkan1", description="Radeon", backend="Vulkan"),
    )
    assert names() == ["CUDA0", "CUDA1", "Vulkan1"]


def test_shared_memory_is_bounded_by_what_the_machine_has_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeDevice("Vulkan0", INTEGRATED, 16 * GIB, 16 * GIB, "one", "Vulkan"),
        FakeDevice("Vulkan1", INTEGRATED, 16 * GIB, 16 * GIB, "two", "Vulkan"),
    )
    first, second = devices()
    assert (first.free, first.unified, second.free) == (6 * GIB, True, 6 * GIB)
    assert room_on([first]) == 6 * GIB - 512 * MIB
    assert room_on([first, second]) < 6 * GIB


def test_apples_graphics_share_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice("MTL0", GPU, 12 * GIB, 12 * GIB, "Apple M2", "MTL"))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    (apple,) = devices()
    assert (apple.unified, apple.kind, apple.free) == (True, "gpu", 6 * GIB)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not devices()[0].unified


def test_a_device_that_tells_of_no_memory_has_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice("OpenCL0", GPU, 0, 0, backend="OpenCL"))
    (device,) = devices()
    assert (device.free, device.total, device.unified) == (6 * GIB, 6 * GIB, True)


def test_several_cards_add_up_and_each_keeps_something_back(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice("CUDA0", free=4 * GIB), FakeDevice("CUDA1", free=2 * GIB))
    one, two = devices()
    assert room_on([one]) == 4 * GIB - 512 * MIB
    assert room_on([one, two]) == 6 * GIB - 2 * 512 * MIB - 256 * MIB
    install(monkeypatch, FakeDevice("CUDA0", free=100 * MIB))
    assert room_on(devices()) == 0


def test_the_list_for_llama_cpp_ends_with_null(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice("CPU", CPU), FakeDevice("CUDA0"), FakeDevice("CUDA1"))
    assert list(handles(devices())) == [2, 3, None]


def test_the_build_tells_of_itself_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "localchat.engine.devices"]
    done = subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, "PYTHONWARNINGS": "error"})
    build = msgspec.json.decode(done.stdout, type=EngineBuild)
    assert done.returncode == 0
    assert build.backends["CPU"]
    assert all(value for features in build.backends.values() for value in features.values())
    assert "llama" in build.library
    assert build.offload or not build.devices


def test_the_features_of_each_backend_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"CUDA : ARCHS = 890 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX2 = 1 | RVV_VLEN = 16 | "
    install(monkeypatch)
    monkeypatch.setattr(devices_module.api(), "llama_print_system_info", lambda: said)
    assert devices_module.build().backends == {
        "CUDA": {"ARCHS": "890", "USE_GRAPHS": "1"},
        "CPU": {"SSE3": "1", "AVX2": "1", "RVV_VLEN": "16"},
    }
