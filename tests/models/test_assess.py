"""What is promised of a GPU is what the engine will do with it."""

from __future__ import annotations

import msgspec
import pytest

from localchat import machine as machines
from localchat.engine import offload, resident
from localchat.hardware import Device
from localchat.models import assess, fit
from localchat.models.assess import Circumstances
from localchat.models.shape import Shape

GIB = 1 << 30
SHAPE = Shape(
    layers=32, embedding=4096, heads_kv=8, key_length=128, value_length=128, vocabulary=128_000, heads=32,
    feed_forward=14_336,
)  # fmt: skip
LAYER, HEAD = 140 << 20, 420 << 20
WEIGHTS = {"layers": {"Q4_K": 32 * LAYER}, "head": {"Q6_K": HEAD}}


@pytest.mark.parametrize("free", [GIB, 3 * GIB, 4 * GIB, 24 * GIB])
def test_as_many_layers_as_the_engine_takes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    card = Device("CUDA0", "A card", "gpu", free, 24 * GIB, unified=False)
    guess = machines.guess()
    machine = msgspec.structs.replace(guess, devices=(msgspec.structs.replace(guess.processor, name="CUDA0"),))
    found = assess.assess(
        Circumstances(machine, 16 * GIB, assess.USUAL_CONTEXT, (card,)),
        label="Q4_K_M",
        size=32 * LAYER + HEAD,
        shape=SHAPE,
        trained=131_072,
        weights=WEIGHTS,
    )

    def fitting(context: int, room: int) -> int:
        return fit.layers_on_gpu(SHAPE, [LAYER] * 32, HEAD, context, room)

    monkeypatch.setattr(offload, "devices", lambda: [card])
    weights = offload.Weights((LAYER,) * 32, HEAD, False, fitting)
    planned = offload.plan(lambda: weights, None, resident._PLANNED_CONTEXT)
    assert planned.layers == (found.gpu.layers if found.gpu else 0)
