"""What a model would be like on this machine: the memory it needs, whether it fits, how fast it is. And which to take.

Brings together a model's shape and sizes, the machine's measured figures and the memory that is free. Knows nothing of
where files are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from localchat import machine as machines
from localchat.hardware import Device, available_memory, room_on
from localchat.machine import Machine
from localchat.models import fit
from localchat.models.fit import Memory, Speed, Verdict, Weights
from localchat.models.shape import Shape
from localchat.settings import max_ram, settings
from localchat.trials import Kept, Speeds, turn_seconds
from localchat.tuning import Tuning

USUAL_CONTEXT = 4096
"""Tokens for which memory is computed where nobody says otherwise: what the engine begins with."""

_PLANNED_CONTEXT = 2 * USUAL_CONTEXT  # for which the engine leaves room on a GPU

COMFORTABLE_DECODE = 15.0
"""Tokens/s from which on a person does not wait for an answer, so that quality decides and no longer speed."""
COMFORTABLE_PREFILL = 150.0
READABLE_DECODE = 7.0
"""Tokens/s at which an answer appears about as fast as one reads."""

# Speeds this close are the same, measured on a machine that does other things too.
_SAME_SPEED = 1.1

_ENGINE_BYTES = 110 << 20
"""What the engine takes beside weights, window and buffers; under a ceiling that counts too."""

_QUALITY = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K_L": 6.7, "Q6_K": 6.6, "Q5_K_L": 5.8, "Q5_K_M": 5.7,
    "Q5_K_S": 5.5, "Q5_1": 5.5, "Q5_0": 5.3, "Q4_K_L": 4.95, "Q4_K_XL": 4.95, "Q4_K_M": 4.9, "MXFP4": 4.8,
    "Q4_K_S": 4.7, "IQ4_NL": 4.65, "IQ4_XS": 4.6, "Q4_1": 4.5, "Q4_0": 4.4, "Q3_K_L": 4.0, "Q3_K_M": 3.8, "IQ3_M": 3.8,
    "IQ3_S": 3.6, "Q3_K_S": 3.4, "IQ3_XS": 3.3, "IQ3_XXS": 3.2, "Q2_K_L": 3.0, "Q2_K": 2.8, "IQ2_M": 2.7, "IQ2_S": 2.5,
    "IQ2_XS": 2.4, "IQ2_XXS": 2.1, "IQ1_M": 1.8, "IQ1_S": 1.6,
}  # fmt: skip
"""An order of the quantizations by how much of the model they keep, roughly their bits per weight."""
_FOUR_BITS, _FIVE_BITS, _SIXTEEN_BITS = 4.4, 5.0, 16.0


@dataclass(frozen=True)
class Circumstances:
    """The machine as it is now: its figures, the memory that can be had (bytes), and the context wanted (tokens).

    `devices` are the GPUs that the engine would split a model over.
    """

    machine: Machine
    available: int
    context: int
    devices: tuple[Device, ...] = ()

    @classmethod
    def now(
        cls,
        *,
        machine: Machine | None = None,
        context: int | None = None,
        freed: int = 0,
        devices: Sequence[Device] = (),
    ) -> Circumstances:
        """What holds now; `freed` bytes would come free (an engine's, which makes room for the next model)."""
        return cls(
            machine or machines.load() or machines.guess(),
            min(available_memory() + freed, _allowed()),
            context or settings().context or USUAL_CONTEXT,
            tuple(devices),
        )


def _allowed() -> int:
    """What the person's ceiling leaves for a model beside the engine itself; very much where there is none."""
    most = max_ram()
    return 1 << 62 if most is None else max(0, most - _ENGINE_BYTES)


def is_capped(available: int) -> bool:
    """Whether the person's ceiling is what decided how much memory is available."""
    return max_ram() is not None and available == _allowed()


@dataclass(frozen=True)
class OnGpu:
    """How a model would do with `layers` of it (of `of`, the output head counts as one) on GPUs."""

    layers: int
    of: int
    speed: Speed


@dataclass(frozen=True)
class Assessment:
    """How a model would do. `memory` and `fits` are None where not even its size is known.

    `speed` is the processor's alone. `estimated`: a size or shape was not known and stands for what is usual.
    `measured`: the speed was measured with this very model on this machine, not concluded from its kernels.
    """

    memory: Memory | None
    fits: Verdict | None
    speed: Speed
    context: int
    estimated: bool = False
    gpu: OnGpu | None = None
    measured: bool = False

    @property
    def best_speed(self) -> Speed:
        """What a person will see: with the GPU, where there is one to use."""
        return self.gpu.speed if self.gpu and self.gpu.speed.decode else self.speed


def assess(
    circumstances: Circumstances,
    *,
    label: str,
    size: int | None,
    shape: Shape | None,
    parameters: int | None = None,
    trained: int | None = None,
    weights: Weights | None = None,
    kept: Kept | None = None,
    correction: Speeds | None = None,
) -> Assessment:
    """Judge one file: its quantization `label`, `size` in bytes, and what else is known of it.

    `weights` are those of its header, where that was read; `trained` is the context that the model was made for.
    `kept` is what `localchat bench` and `tune` found out about it: then speeds are measured, and memory is that of its
    tuning. `correction` is what a prediction for the processor is multiplied by (`trials.correction`).
    """
    context = min(circumstances.context, trained or circumstances.context)
    estimated = size is None or shape is None
    if size is None and parameters:
        size = fit.typical_size(label, parameters)
    if size is None:
        return Assessment(None, None, Speed(None, None), context, estimated=True)
    if shape is None:
        memory = Memory(size, size // 20, 200 << 20)
        return Assessment(memory, fit.judge(memory.total, circumstances.available), Speed(None, None), context, True)
    tuning = kept.tuning if kept else Tuning()
    made = fit.as_made(shape, context, tuning, circumstances.machine.processor)
    memory = fit.memory(shape, size, context, tuning=made)
    weights = weights or fit.typical_bytes(label, size, shape)
    speed = corrected(fit.speed(shape, weights, circumstances.machine), correction)
    planned = max(context, min(_PLANNED_CONTEXT, trained or _PLANNED_CONTEXT))
    gpu, moved = _on_gpu(circumstances, shape, size, weights, planned, tuning)
    verdict = fit.judge(memory.total - moved, circumstances.available)
    found = kept.speeds if kept else None
    if kept and found and not kept.gpu_layers:
        speed = Speed(found.decode, found.prefill)
    elif kept and found and gpu and gpu.layers == kept.gpu_layers:
        gpu = OnGpu(gpu.layers, gpu.of, Speed(found.decode, found.prefill))
    else:
        found = None
    return Assessment(memory, verdict, speed, context, estimated, gpu, measured=found is not None)


def corrected(speed: Speed, correction: Speeds | None) -> Speed:
    """A prediction, multiplied by what another one was wrong by."""
    if not correction or not speed.decode or not speed.prefill:
        return speed
    return Speed(speed.decode * correction.decode, speed.prefill * correction.prefill)


def _on_gpu(
    circumstances: Circumstances, shape: Shape, size: int, weights: Weights, context: int, tuning: Tuning
) -> tuple[OnGpu | None, int]:
    """How it would do on the GPUs, and the bytes that need not be in the machine's memory then."""
    device = next((one for one in circumstances.devices if circumstances.machine.device(one.name)), None)
    if not device:
        return None, 0
    head = min(size, sum(weights.get("head", {}).values()))
    # Layers are nearly alike; the header tells exactly, and the engine goes by that.
    each = (size - head) // shape.layers
    room = room_on(circumstances.devices)
    layers = fit.layers_on_gpu(shape, [each] * shape.layers, head, context, room, tuning=tuning)
    if not layers:
        return None, 0
    speed = fit.speed(shape, weights, circumstances.machine, gpu_layers=layers, device=device.name)
    moved = 0 if device.unified else head + (layers - 1) * each
    return OnGpu(layers, shape.layers + 1, speed), moved


T = TypeVar("T")


def choose(candidates: Sequence[tuple[T, str, Assessment]]) -> tuple[T, str] | None:
    """The candidate (thing, label, assessment) that suits this machine best, with the reason; None where none fits.

    What fits well goes before what fits tightly. Where everything is fast, the best quality wins; else the fastest of
    the four-bit kinds, which answer nearly alike; fewer bits only where nothing else fits.
    """
    for verdict in ("yes", "tight"):
        fitting = [one for one in candidates if one[2].fits == verdict]
        if fitting:
            return _best(fitting, verdict)
    unknown = [one for one in candidates if one[2].fits is None]
    return (unknown[0][0], "its size is not known beforehand") if unknown else None


def _best(fitting: Sequence[tuple[T, str, Assessment]], verdict: str) -> tuple[T, str]:
    tight = "" if verdict == "yes" else ", tightly"
    usual = [one for one in fitting if quality(one[1]) < _SIXTEEN_BITS] or list(fitting)
    enough = [one for one in usual if quality(one[1]) >= _FOUR_BITS]
    if not enough:
        thing, label, _ = max(usual, key=lambda one: quality(one[1]))
        return thing, f"{label} is the best that fits{tight}; fewer than four bits cost quality"
    fast = [one for one in enough if _is_comfortable(one[2].best_speed)]
    if fast:
        thing, label, _ = max(fast, key=lambda one: quality(one[1]))
        return thing, f"{label} is the best quality that fits{tight} and answers without a wait"
    four = [one for one in enough if quality(one[1]) < _FIVE_BITS]
    timed = [(one, seconds) for one in four if (seconds := _turn_seconds(one[2].best_speed)) is not None]
    if not timed:
        (thing, label, _), reason = (four or enough)[0], "the usual choice"
        return thing, f"{label} is {reason} and fits{tight}"
    least = min(seconds for _, seconds in timed)
    close = [one for one, seconds in timed if seconds <= least * _SAME_SPEED]
    thing, label, _ = max(close, key=lambda one: quality(one[1]))
    fastest = " and is the fastest of the four-bit kinds on this machine" if len(timed) > 1 else ""
    return thing, f"{label} fits{tight}{fastest}"


def quality(label: str) -> float:
    """Where a quantization stands among the others; one that is not known stands below them."""
    label = label.upper().removeprefix("UD-").removeprefix("UD_")
    return _QUALITY.get(label, 0.0)


def _turn_seconds(speed: Speed) -> float | None:
    if not speed.decode or not speed.prefill:
        return None
    return turn_seconds(speed.prefill, speed.decode)


def _is_comfortable(speed: Speed) -> bool:
    return (speed.decode or 0) >= COMFORTABLE_DECODE and (speed.prefill or 0) >= COMFORTABLE_PREFILL
