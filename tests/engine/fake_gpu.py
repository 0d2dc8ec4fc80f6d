"""Devices that are not there: fakes of the few functions of ggml and llama.cpp that tell of them and fill them.

What is computed is computed by the processor, so the text of an answer is the right one wherever its layers "lie".
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from localchat import hardware
from localchat.engine import devices as devices_module
from localchat.engine import llama
from localchat.engine.offload import Weights

CPU, GPU, INTEGRATED, ACCEL, META = range(5)
MIB = 1 << 20
_INFO, _ERROR = 2, 4


@dataclass
class FakeDevice:
    """One device as ggml tells of it; sizes in bytes."""

    name: str
    kind: int = GPU
    free: int = 8 << 30
    total: int = 8 << 30
    description: str = ""
    backend: str = "CUDA"


def install(patch: pytest.MonkeyPatch, *found: FakeDevice) -> None:
    """Let ggml find these devices, in this order."""

    def memory(handle: int, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = found[handle - 1].free, found[handle - 1].total

    ggml = SimpleNamespace(
        ggml_backend_dev_count=lambda: len(found),
        ggml_backend_dev_get=lambda index: index + 1,
        ggml_backend_dev_by_name=lambda name: [device.name.encode() for device in found].index(name) + 1,
        ggml_backend_dev_name=lambda handle: found[handle - 1].name.encode(),
        ggml_backend_dev_description=lambda handle: found[handle - 1].description.encode(),
        ggml_backend_dev_type=lambda handle: found[handle - 1].kind,
        ggml_backend_dev_memory=memory,
        ggml_backend_dev_backend_reg=lambda handle: handle,
        ggml_backend_reg_name=lambda handle: found[handle - 1].backend.encode(),
    )
    patch.setattr(devices_module, "_ggml", lambda: ggml)


@dataclass
class FakeGpu:
    """A card with `memory` bytes, of which each layer takes `layer_bytes` and `token_bytes` for each token of a window.

    `told`: what it says is free, where that is not the truth. `most_computed`: with more layers than this it finds no
    room as soon as it computes more than one token. `loads` and `windows`: the layers of each attempt.
    """

    memory: int
    layer_bytes: int = 10 * MIB
    token_bytes: int = 1024
    told: int | None = None
    most_computed: int = 999
    computing: int = 0
    loads: list[int] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    used: dict[int, int] = field(default_factory=dict)
    layers: dict[int, int] = field(default_factory=dict)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the card into this process."""
        device = FakeDevice("CUDA0", description="A card")
        # Nothing of a card this small is left to its runtime.
        patch.setattr(hardware, "_RUNTIME_BYTES", 0)
        install(patch, device)
        tell = devices_module._ggml().ggml_backend_dev_memory

        def memory(handle: int, free: Any, total: Any) -> None:
            device.free = self.told if self.told is not None else self.memory - sum(self.used.values())
            tell(handle, free, total)

        devices_module._ggml().ggml_backend_dev_memory = memory
        api = llama.api()
        for name, fake in (
            ("llama_model_load_from_file", self._load),
            ("llama_init_from_model", self._open),
            ("llama_model_free", self._release),
            ("llama_free", self._release),
            ("llama_decode", self._decode),
        ):
            real = getattr(api, name)
            patch.setattr(api, name, lambda *given, fake=fake, real=real: fake(real, *given))

    def weights(self, layers: int) -> Weights:
        """A model of so many layers, as its header would tell; what is free is believed to the last byte."""

        def fitting(context: int, room: int) -> int:
            return max(0, min(layers + 1, room // (self.layer_bytes + context * self.token_bytes)))

        return Weights((self.layer_bytes,) * layers, self.layer_bytes, False, fitting)

    def _load(self, real: Any, path: bytes, params: Any) -> Any:
        on_device = ctypes.c_void_p.from_address(params.devices).value is not None
        assert on_device == (params.n_gpu_layers > 0), "without layers, no device may be touched"
        layers = params.n_gpu_layers
        if on_device:
            self.loads.append(layers)
            if not self._take(0, layers * self.layer_bytes, "model"):
                _say(_ERROR, "llama_model_load: error loading model: unable to allocate CUDA0 buffer")
                return None
        nothing = (ctypes.c_void_p * 1)(None)
        params.devices, params.n_gpu_layers = ctypes.addressof(nothing), 0
        model = real(path, params)
        self._settle(model)
        self.layers[_address(model)] = layers if on_device else 0
        return model

    def _open(self, real: Any, model: Any, params: Any) -> Any:
        self.computing = layers = self.layers[_address(model)]
        if layers:
            self.windows.append(layers)
            if not self._take(0, layers * params.n_ctx * self.token_bytes, "KV"):
                _say(_ERROR, "llama_init_from_model: failed to initialize the context: failed to allocate buffer")
                return None
        context = real(model, params)
        self._settle(context)
        return context

    def _decode(self, real: Any, context: Any, batch: Any) -> int:
        if batch.n_tokens > 1 and self.computing > self.most_computed:
            _say(_ERROR, "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 1000")
            return -2
        return int(real(context, batch))

    def _take(self, holder: int, size: int, kind: str) -> bool:
        if size + sum(self.used.values()) > self.memory:
            _say(_ERROR, f"ggml_backend_cuda_buffer: allocating {size / MIB:.2f} MiB: cudaMalloc failed: out of memory")
            return False
        self.used[holder] = size
        _say(_INFO, f"load_tensors:        CUDA0 {kind} buffer size = {size / MIB:8.2f} MiB")
        _say(_INFO, f"load_tensors:    CUDA_Host {kind} buffer size = {size / MIB:8.2f} MiB")
        return True

    def _settle(self, holder: Any) -> None:
        self.used[_address(holder)] = self.used.pop(0, 0)

    def _release(self, real: Any, holder: Any) -> None:
        self.used.pop(_address(holder), None)
        real(holder)


def _address(pointer: Any) -> int:
    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0)


def _say(level: int, line: str) -> None:
    llama._on_log(level, f"{line}\n".encode(), None)
