"""How much memory a model needs at a context window, whether that fits, how much of it fits a GPU, and how fast it is.

The formulas are llama.cpp's own, for the window as the engine opens it: one KV cache shared by all sequences, sliding
layers that keep their window only, logits for one token of each sequence; micro-batches of 512 tokens and flash
attention where a tuning says nothing else.
They were held against the engine's own figures (`tests/models/test_fit.py`). Sizes are bytes, contexts tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from localchat.machine import Attention, Figures, Machine
from localchat.models.gguf_types import bytes_of, values_of
from localchat.models.shape import Layer, Shape
from localchat.tuning import MICRO_BATCH, Tuning, sequences, with_ordinary_attention

_USUAL = Tuning()

Verdict = Literal["yes", "tight", "no"]

Weights = Mapping[str, Mapping[str, int]]
"""Bytes by part of the model ("embedding", "layers", "experts", "head", as in `gguf.Header`) and tensor type."""

_GRAIN = 256  # llama.cpp makes windows in multiples of this
_FLOAT, _HALF = 4, 2
_USUAL_FEED_FORWARD = 4  # times the embedding's width, where it is not known
_MIB, _GIB = 1 << 20, 1 << 30
_NEGLIGIBLE = 0.01  # the share of a tensor type that nothing was measured for and that may be left out

# What a machine needs beside the model to stay usable: other programs grow, and files that are read often want to stay
# in memory. Below it a model still runs, but the next browser tab may push it out.
_MARGIN_LEAST, _MARGIN_SHARE = _GIB // 2, 0.05
# What the formulas may be wrong by; what a device's driver needs for itself is not in the room that it is asked about.
_DEVICE_MARGIN = 0.02


class Memory(msgspec.Struct, frozen=True):
    """What a loaded model takes, in bytes: its weights, its KV cache (states included), and its compute buffers."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute


def memory(
    shape: Shape, weights_bytes: int, context: int, *, tuning: Tuning = _USUAL, side_by_side: int | None = None
) -> Memory:
    """What a model of `shape` takes with a window of `context` tokens; `weights_bytes` is its file's size.

    `side_by_side`: sequences that the window is made for (None: as many as the engine makes it for).
    """
    count = side_by_side or _sequences(shape)
    kv = sum(_kv(layer, context, tuning, count) for layer in shape.memory_layers)
    return Memory(weights_bytes, kv, _compute(shape, context, tuning, count))


def as_made(shape: Shape, context: int, tuning: Tuning, figures: Figures) -> Tuning:
    """The tuning with the attention that the engine chooses on a processor with these figures (`engine.attention`)."""
    attention = _attention(shape, figures)
    if not (attention and attention.ordinary and shape.heads and shape.key_length == shape.value_length):
        return tuning
    kv_bytes = sum(_kv(layer, context, Tuning(), 1) for layer in shape.memory_layers)
    return with_ordinary_attention(tuning, heads=shape.heads, kv_bytes=kv_bytes, context=context)


def judge(need: int, available: int) -> Verdict:
    """Whether `need` bytes fit into `available` ones; "tight" where less than a twentieth or 512 MiB would be left."""
    if need > available:
        return "no"
    return "tight" if need + max(_MARGIN_LEAST, int(available * _MARGIN_SHARE)) > available else "yes"


def layers_on_gpu(
    shape: Shape,
    layer_bytes: Sequence[int],
    head_bytes: int,
    context: int,
    free: int,
    *,
    tuning: Tuning = _USUAL,
    side_by_side: int | None = None,
) -> int:
    """The `n_gpu_layers` that fit into `free` bytes of a device, from 0 (none) to one more than there are layers.

    llama.cpp counts from the end: 1 is the output head alone (`head_bytes`), then come the last layers with their KV
    cache (`layer_bytes` are those of each layer, first to last). The token embeddings always stay with the processor.
    """
    count = side_by_side or _sequences(shape)
    room = int(free * (1 - _DEVICE_MARGIN)) - _compute(shape, context, tuning, count)
    remembered = shape.memory_layers
    needs = [head_bytes]
    for index in reversed(range(len(layer_bytes))):
        kv = _kv(remembered[index], context, tuning, count) if index < len(remembered) else 0
        needs.append(layer_bytes[index] + kv)
    fitting = 0
    for need in needs:
        room -= need
        if room < 0:
            break
        fitting += 1
    return fitting


class Speed(msgspec.Struct, frozen=True):
    """Tokens a second that can be expected: answering (decode) and reading (prefill); None where nothing is known."""

    decode: float | None
    prefill: float | None


def speed(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    *,
    context: int = 512,
    gpu_layers: int = 0,
    device: str | None = None,
) -> Speed:
    """How fast a model answers once `context` tokens are in its window, and how fast it reads its way there.

    `weights` are a header's, or `typical_bytes`. `gpu_layers` of it (as `layers_on_gpu` counts them) lie on `device`.
    """
    share = min(1.0, gpu_layers / (shape.layers + 1)) if device else 0.0
    parts = [(machine.processor, 1 - share), (machine.device(device or ""), share)]
    decode = prefill = 0.0
    for figures, part in parts:
        if not part:
            continue
        once = _token_seconds(shape, weights, figures, context) if figures else None
        many = _reading_seconds(shape, weights, figures, context) if figures else None
        if not once or not many:
            return Speed(None, None)
        decode += once * part
        prefill += many * part
    return Speed(1 / decode, 1 / prefill)


def moved_bytes(shape: Shape, weights: Weights, context: int = 512, *, tuning: Tuning = _USUAL) -> int:
    """Bytes that the processor reads for one token of an answer: the weights it uses, and what the layers remember."""
    seen = sum(bytes_of((tuning.kv_type or "f16").upper(), layer.kv * min(context, layer.window or context))
               for layer in shape.memory_layers)  # fmt: skip
    return int(sum(_read(shape, weights).values()) + sum(_head(weights).values())) + seen


def _token_seconds(shape: Shape, weights: Weights, figures: Figures, context: int) -> float | None:
    """Seconds for one token of an answer: every weight that it uses is read, and what the layers remember."""
    read = _read(shape, weights)
    for name, head_bytes in _head(weights).items():
        read[name] = read.get(name, 0.0) + head_bytes
    resident = sum(sum(sizes.values()) for sizes in weights.values())
    # Each token goes through all weights in the same order: of what is larger than the caches, they soon hold nothing.
    cached = min(1.0, max(0.0, 2 - resident / figures.cached_bytes))
    seconds = shape.layers * figures.layer_seconds
    for name, size in read.items():
        rate = figures.rates.get(name)
        if rate:
            seconds += size * (cached / rate.cached + (1 - cached) / rate.decode)
            # Narrower rows than those measured are more of them.
            rows = values_of(name, int(size)) * (_per_row(shape) - 1 / figures.columns)
            seconds += max(0.0, rows) * rate.row_seconds
        elif size > _NEGLIGIBLE * resident:
            return None
    seen = sum(min(context, layer.window or context) for layer in shape.memory_layers if layer.kv)
    if attention := _attention(shape, figures):
        seconds += seen * _attention_width(shape) / attention.decode
    return seconds


def _reading_seconds(shape: Shape, weights: Weights, figures: Figures, context: int) -> float | None:
    """Seconds for each token of a prompt that is read in micro-batches; logits are made for its last token only."""
    read = _read(shape, weights)
    total = sum(values_of(name, int(size)) for name, size in read.items())
    seconds = shape.layers * figures.layer_seconds / MICRO_BATCH
    for name, size in read.items():
        rate = figures.rates.get(name)
        values = values_of(name, int(size))
        if rate:
            seconds += values / rate.prefill
        elif values > _NEGLIGIBLE * total:
            return None
    # On its way through the prompt a token sees half of it.
    seen = sum(min(context / 2, layer.window or context) for layer in shape.memory_layers if layer.kv)
    if attention := _attention(shape, figures):
        seconds += seen * _attention_width(shape) / attention.prefill
    return seconds


def _per_row(shape: Shape) -> float:
    """Rows for each value of a layer's matrices: most are as wide as the model, a quarter as its inner part."""
    if not shape.feed_forward or shape.experts_used:
        return 1 / shape.embedding
    return 0.75 / shape.embedding + 0.25 / shape.feed_forward


def _attention_width(shape: Shape) -> int:
    """Multiply-adds for one token that looks at one other, in one layer."""
    if not shape.heads:
        return 2 * shape.embedding
    return shape.heads * (shape.key_length + shape.value_length)


def _attention(shape: Shape, figures: Figures) -> Attention | None:
    """The figures for the size of head nearest to this model's."""
    near = min(figures.attention, key=lambda head: abs(math.log(head / max(1, shape.key_length))), default=None)
    return None if near is None else figures.attention[near]


def _read(shape: Shape, weights: Weights) -> dict[str, float]:
    """Bytes of the layers' weights that a token uses, by type: of the experts, as many as it is given to."""
    read: dict[str, float] = {**weights.get("layers", {})}
    used = shape.experts_used / shape.experts if shape.experts else 1.0
    for name, size in weights.get("experts", {}).items():
        read[name] = read.get(name, 0.0) + size * min(1.0, used)
    return read


def _head(weights: Weights) -> Mapping[str, int]:
    """The output head; where there is none, the embedding table serves as one."""
    head, embedding = weights.get("head", {}), weights.get("embedding", {})
    return embedding if sum(head.values()) < _NEGLIGIBLE * sum(embedding.values()) else head


def typical_size(label: str, parameters: int) -> int:
    """Bytes that a model of so many parameters takes in a quantization that people know by `label`: an estimate."""
    return int(parameters * _mix(label).bits / 8)


def typical_bytes(label: str, size: int, shape: Shape) -> Weights:
    """What a file of `size` bytes in that quantization has probably in it: an estimate, for `speed`.

    Of a mixture of experts only what one token uses is there.
    """
    mix = _mix(label)
    if shape.active_parameters:
        size = min(size, typical_size(label, shape.active_parameters))
    head = min(bytes_of(mix.head, shape.vocabulary * shape.embedding), size // 2)
    layers = size - head
    second = int(layers * mix.share)
    types: dict[str, int] = {}
    for name, count in ((mix.main, layers - second), (mix.second, second)):
        narrow = _of_narrow_rows(name, shape)
        # About three quarters of a layer's values lie in rows as wide as the model, the others in wider ones.
        kept = count // 4 if narrow != name and not shape.feed_forward % _K_BLOCK else 0
        for part, part_bytes in ((name, kept), (narrow, count - kept)):
            if part_bytes:
                types[part] = types.get(part, 0) + part_bytes
    return {"layers": types, "embedding": {_of_narrow_rows(mix.head, shape): head}}


def _of_narrow_rows(name: str, shape: Shape) -> str:
    """The type that llama.cpp takes instead where rows are no multiple of that one's blocks."""
    return _INSTEAD.get(name, name) if shape.embedding % _K_BLOCK else name


_K_BLOCK = 256
_INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


class _Mix(msgspec.Struct, frozen=True):
    """What llama.cpp makes of a label: bits a weight over the whole of a usual model, the type of most of the layers'
    bytes, a second type with its share of them, and the type of the output head.
    """

    bits: float
    main: str
    second: str = ""
    share: float = 0.0
    head: str = "Q6_K"


_MIXES = {
    "F32": _Mix(32.0, "F32", head="F32"),
    "F16": _Mix(16.0, "F16", head="F16"),
    "BF16": _Mix(16.0, "BF16", head="BF16"),
    "Q8_0": _Mix(8.5, "Q8_0", head="Q8_0"),
    "Q6_K": _Mix(6.6, "Q6_K"),
    "Q5_K_M": _Mix(5.7, "Q5_K", "Q6_K", 0.25),
    "Q5_K_S": _Mix(5.55, "Q5_K"),
    "Q5_1": _Mix(6.0, "Q5_1"),
    "Q5_0": _Mix(5.55, "Q5_0"),
    "Q4_K_M": _Mix(4.9, "Q4_K", "Q6_K", 0.25),
    "Q4_K_S": _Mix(4.65, "Q4_K", "Q5_K", 0.1),
    "Q4_1": _Mix(5.1, "Q4_1"),
    "Q4_0": _Mix(4.65, "Q4_0"),
    "IQ4_NL": _Mix(4.65, "IQ4_NL"),
    "IQ4_XS": _Mix(4.45, "IQ4_XS", "Q5_K", 0.1),
    "MXFP4": _Mix(4.7, "MXFP4", "Q8_0", 0.15, "Q8_0"),
    "Q3_K_L": _Mix(4.3, "Q3_K", "Q5_K", 0.4),
    "Q3_K_M": _Mix(4.0, "Q3_K", "Q4_K", 0.4),
    "Q3_K_S": _Mix(3.6, "Q3_K"),
    "Q2_K": _Mix(3.2, "Q2_K", "Q3_K", 0.4),
    "Q2_K_S": _Mix(3.0, "Q2_K"),
}
# Labels of the smallest kinds have no figures of their own here; they are read about as fast as these.
_SIMILAR = (("IQ3", "Q3_K_S"), ("IQ2", "Q2_K_S"), ("IQ1", "Q2_K_S"), ("TQ", "Q2_K_S"))


def _mix(label: str) -> _Mix:
    """The mix of a label whatever its case; one that is not known ("UD-Q4_K_XL") counts as what it begins with."""
    name = label.upper().removeprefix("UD-")
    if found := _MIXES.get(name):
        return found
    for start, other in _SIMILAR:
        if name.startswith(start):
            return _MIXES[other]
    while "_" in name:
        name = name.rpartition("_")[0]
        for candidate in (name, f"{name}_M"):
            if found := _MIXES.get(candidate):
                return found
    return _MIXES["Q4_K_M"]


def _sequences(shape: Shape) -> int:
    """How many sequences the engine makes a window for."""
    return sequences(is_stateful=any(layer.window or layer.state for layer in shape.memory_layers))


def _kv(layer: Layer, context: int, tuning: Tuning, count: int) -> int:
    """Bytes that one layer remembers."""
    cells = _cells(context, layer.window, tuning, count)
    return bytes_of((tuning.kv_type or "f16").upper(), layer.kv * cells) + layer.state * count * _FLOAT


def _compute(shape: Shape, context: int, tuning: Tuning, count: int) -> int:
    """Bytes of the compute and output buffers.

    llama.cpp lays the intermediate values of a micro-batch out as tightly as it can; at its fullest moment, in the
    feed-forward part, these are there at once. In a mixture of experts every expert's result has the model's width.
    Without flash attention every head's look at the whole window is written down.
    """
    batch = min(tuning.micro_batch or MICRO_BATCH, context)
    windows = {layer.window for layer in shape.memory_layers if layer.kv}
    masks = sum(_cells(context, window, tuning, count) for window in windows) * batch * _HALF
    feed_forward = shape.feed_forward or _USUAL_FEED_FORWARD * shape.embedding
    if shape.experts_used:
        width = 2 * (shape.experts_used * shape.embedding + feed_forward)
    else:
        width = 3 * feed_forward + 3 * shape.embedding + (shape.heads * shape.key_length or shape.embedding)
    logits = shape.vocabulary * count * _FLOAT
    attention = 0
    if tuning.flash_attention is False and windows:
        masks *= _FLOAT // _HALF
        seen = max(_cells(context, window, tuning, count) for window in windows)
        attention = batch * _FLOAT * (shape.heads * seen + 4 * (shape.heads * shape.key_length or shape.embedding))
    return masks + max(batch * width * _FLOAT, logits, attention) + logits


def _cells(context: int, window: int, tuning: Tuning, count: int) -> int:
    """Tokens for which a layer has room."""
    if window:
        # Every sequence may have its own window, and the micro-batch that is being read comes on top.
        context = min(context, window * count + (tuning.micro_batch or MICRO_BATCH))
    return -(-max(1, context) // _GRAIN) * _GRAIN
