"""How many of a model's layers lie on other devices than the processor, and what remains for the machine's memory.

Layers are counted as llama.cpp counts `n_gpu_layers`: from the end, the output head first, so that there is one more
than the model has blocks. The token embeddings always stay with the processor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from localchat.engine.devices import devices
from localchat.hardware import Device, room_on


class DeviceFull(Exception):
    """A device has no room for a buffer that llama.cpp asked for; fewer layers may fit."""


@dataclass(frozen=True)
class Weights:
    """Where in a model its bytes are: those of each layer, first to last, and of the output head.

    `fitting` says how many layers fit with a window of so many tokens into so many bytes of device memory. `is_tied`:
    the head is the token embeddings once more, so that a device gets a copy of it.
    """

    layers: tuple[int, ...]
    head: int
    is_tied: bool
    fitting: Callable[[int, int], int]


@dataclass(frozen=True)
class Offload:
    """So many `layers` on these `devices`; none: the model is the processor's alone, and no device is touched.

    `by_hand`: a person chose the number.
    """

    layers: int = 0
    devices: tuple[Device, ...] = ()
    weights: Weights | None = None
    by_hand: bool = False

    @property
    def freed_bytes(self) -> int:
        """Bytes of the file that need not be in the machine's memory."""
        if not self.layers or not self.weights or self._is_shared:
            return 0
        blocks = self.weights.layers[len(self.weights.layers) - self._blocks :]
        return sum(blocks) + (0 if self.weights.is_tied else self.weights.head)

    @property
    def kept_share(self) -> float:
        """The share of the KV cache that lies in the machine's memory."""
        if not self.weights or not self.weights.layers or self._is_shared:
            return 1.0
        return 1.0 - self._blocks / len(self.weights.layers)

    @property
    def _blocks(self) -> int:
        return max(0, self.layers - 1)

    @property
    def _is_shared(self) -> bool:
        return any(device.unified for device in self.devices)

    def fewer(self, context: int, why: str) -> Offload:
        """The next to try where this many do not fit beside a window of `context` tokens.

        As many as the memory that is free now allows, where that says something new; else three quarters, and none
        when little is left.
        """
        layers = self.layers * 3 // 4
        if self.weights:
            if not self.by_hand:
                fitting = self.weights.fitting(context, room_on(devices()))
                layers = fitting if fitting < self.layers else layers
            if layers <= len(self.weights.layers) // 8:
                layers = 0
        print(f"{self.layers} layers do not fit the GPU ({why}): trying {layers}", file=sys.stderr, flush=True)
        return replace(self, layers=layers) if layers else Offload(weights=self.weights, by_hand=self.by_hand)


def plan(read_weights: Callable[[], Weights] | None, wanted: int | None, context: int) -> Offload:
    """How to spread a model over the devices there are; `wanted` None: as many layers as fit with the window.

    `read_weights` reads the file's header, and is called only where there is a device to fill.
    """
    if wanted == 0 or not read_weights:
        return Offload()
    found = tuple(devices())
    if not found:
        return Offload()
    weights = read_weights()
    everything = len(weights.layers) + 1
    layers = weights.fitting(context, room_on(found)) if wanted is None else wanted
    if not layers:
        return Offload(weights=weights)
    return Offload(min(layers, everything), found, weights, by_hand=wanted is not None)
