"""The shape of a model: the few numbers that decide how much memory it takes and how fast it can be.

A GGUF header has them; the catalogue has them for models that are not here yet. Knows nothing of files or machines.
What a header leaves out because llama.cpp knows it by the architecture's name stands here too, as in llama-cpp-python
0.3.36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from localchat.models.gguf_types import values_of

if TYPE_CHECKING:
    from localchat.models.gguf import Header

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class Layer(msgspec.Struct, frozen=True):
    """What one layer remembers."""

    kv: int
    """Values that one token leaves in the KV cache, keys and values together."""
    window: int = 0
    """The last tokens that it sees; 0: all of them."""
    state: int = 0
    """32-bit values that it keeps for each sequence, however long that is."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The numbers behind a model's memory and speed, as its makers' configuration names them.

    `layers` are transformer blocks, `embedding` is the hidden size, `heads_kv` the key-value heads of a layer,
    `key_length` and `value_length` values per head. Where some layers see only the last `window` tokens, or keep a
    state of fixed size instead of keys and values, `full_layers` counts those that do see everything.
    """

    layers: Positive
    embedding: Positive
    heads_kv: Count
    key_length: Count
    value_length: Count
    vocabulary: Positive
    window: Count = 0
    """Tokens that a sliding layer sees; 0: there are none."""
    full_layers: Count | None = None
    """Layers that see the whole context; None: all of them."""
    active_parameters: Positive | None = None
    """Parameters that one token uses, in a mixture of experts; None: all of them."""
    state: Count = 0
    """32-bit values that a layer without keys and values keeps for each sequence."""
    heads: Count = 0
    """Query heads of a layer; 0: not known."""
    feed_forward: Count = 0
    """The width that a token passes through in a layer's feed-forward part (of all experts that it uses)."""
    experts: Count = 0
    experts_used: Count = 0
    """Experts of a layer, and how many of them a token uses; 0: there are none."""
    each: tuple[Layer, ...] = ()
    """Layer by layer, where a header told it."""

    @property
    def memory_layers(self) -> tuple[Layer, ...]:
        """What each layer remembers; those that see everything are spread evenly where nothing says which they are."""
        if self.each:
            return self.each
        full = self.layers if self.full_layers is None else min(self.full_layers, self.layers)
        kv = self.heads_kv * (self.key_length + self.value_length)
        seeing_all = Layer(kv)
        other = Layer(kv, window=self.window) if self.window else Layer(0, state=self.state)
        return tuple(
            seeing_all if (index + 1) * full // self.layers > index * full // self.layers else other
            for index in range(self.layers)
        )


# Every how many layers one sees everything, where the file does not say; the second number: whether that is the first
# of them rather than the last; the third: the window where the file does not say that either.
_SLIDING: dict[str, tuple[int, bool, int]] = {
    "afmoe": (4, False, 0),
    "cohere2": (4, False, 0),
    "cohere2moe": (4, True, 0),
    "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 4096),
    "gemma2": (2, False, 4096),
    "gemma3": (6, False, 0),
    "gemma3n": (5, False, 0),
    "gpt-oss": (2, False, 0),
    "laguna": (4, True, 0),
    "llama4": (4, False, 8192),
    "mellum": (4, False, 0),
    "muse-glimmer": (4, False, 0),
    "olmo2": (4, False, 0),
    "plamo3": (8, False, 0),
    "smallthinker": (4, True, 4096),
}
# These say a window in their files and llama.cpp does not use it.
_WINDOW_IGNORED = {"phi3", "phimoe"}
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
# Every how many layers one has keys and values, where the file does not say; the others are recurrent.
_HYBRID_EVERY = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "minimax-01": 8}
_GEMMA3N_LAYERS_WITH_KV = 20


def of_header(header: Header) -> Shape:
    """The shape that a GGUF header tells, layer by layer. What it does not tell counts as 0."""
    fields = _Fields(header)
    # The layers that only guess further tokens ahead are not used.
    layers = max(0, header.n_layer - fields.number("nextn_predict_layers"))
    each = tuple(_layer(fields, index, layers) for index in range(layers))
    return Shape(
        layers=layers,
        embedding=header.embedding,
        heads_kv=header.n_head_kv,
        key_length=header.key_length,
        value_length=header.value_length,
        vocabulary=header.vocabulary or fields.number("vocab_size"),
        window=max((layer.window for layer in each), default=0),
        full_layers=sum(bool(layer.kv) and not layer.window for layer in each),
        active_parameters=_active(header, fields),
        state=max((layer.state for layer in each), default=0),
        heads=header.n_head,
        feed_forward=_feed_forward(fields, layers),
        experts=fields.number("expert_count"),
        experts_used=max((fields.number("expert_used_count", index) for index in range(layers)), default=0),
        each=each,
    )


class _Fields:
    """The numbers of a header under its architecture's name; of those that differ by layer, one layer's."""

    def __init__(self, header: Header) -> None:
        self.architecture = header.architecture
        self.embedding = header.embedding
        self.n_layer = header.n_layer
        self._metadata = header.metadata

    def has(self, key: str) -> bool:
        """Whether the file says this at all."""
        return f"{self.architecture}.{key}" in self._metadata

    def number(self, key: str, layer: int = 0, default: int = 0) -> int:
        """A whole number that is not negative, of this layer where each has its own."""
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, tuple):
            value = value[layer] if layer < len(value) else default
        return max(0, value) if isinstance(value, int) else default

    def is_list(self, key: str) -> bool:
        """Whether each layer has its own."""
        return isinstance(self._metadata.get(f"{self.architecture}.{key}"), tuple)


def _layer(fields: _Fields, index: int, layers: int) -> Layer:
    heads = fields.number("attention.head_count", index)
    heads_kv = fields.number("attention.head_count_kv", index, heads)
    is_recurrent = _is_recurrent(fields, index, layers, heads_kv)
    state = _state(fields) if is_recurrent else 0
    if (is_recurrent and fields.architecture != "falcon-h1") or not _has_own_kv(fields, index):
        return Layer(0, state=state)
    window = _window(fields, index)
    # As llama.cpp: the width of a head comes from the first layer's heads where the file does not say it.
    usual = fields.embedding // max(1, fields.number("attention.head_count"))
    key = fields.number("attention.key_length", default=usual)
    value = fields.number("attention.value_length", default=usual)
    if window:
        key = fields.number("attention.key_length_swa", default=key)
        value = fields.number("attention.value_length_swa", default=value)
    if fields.number("attention.key_length_mla"):
        # Keys and values are kept together in one compressed row.
        value = 0
    return Layer(heads_kv * (key + value), window, state)


def _is_recurrent(fields: _Fields, index: int, layers: int, heads_kv: int) -> bool:
    name = fields.architecture
    if name in _RECURRENT or name == "falcon-h1":
        return True
    if fields.has("attention.recurrent_layers"):
        return bool(fields.number("attention.recurrent_layers", index))
    if name in _HYBRID_EVERY:
        return (index + 1) % max(1, fields.number("full_attention_interval", default=_HYBRID_EVERY[name])) != 0
    has_state = any(map(fields.has, ("ssm.state_size", "shortconv.l_cache", "kda.head_dim")))
    # Where a layer has neither attention nor a state, it has a feed-forward part of its own.
    lone_feed_forward = fields.is_list("feed_forward_length") and fields.number("feed_forward_length", index) > 0
    return has_state and heads_kv == 0 and not (name.startswith("nemotron_h") and lone_feed_forward)


def _state(fields: _Fields) -> int:
    """32-bit values that a recurrent layer keeps for one sequence: its convolution's and its own."""
    embedding = fields.embedding
    if head := fields.number("wkv.head_size"):
        return embedding * (fields.number("token_shift_count", default=2) + head)
    if cache := fields.number("shortconv.l_cache"):
        return embedding * (cache - 1)
    kernel, heads = fields.number("ssm.conv_kernel"), fields.number("attention.head_count")
    if head := fields.number("kda.head_dim"):
        return heads * head * (3 * max(0, kernel - 1 if kernel else 3) + head)
    if fields.architecture == "minimax-01":
        return heads * fields.number("attention.key_length") ** 2
    inner, size = fields.number("ssm.inner_size"), fields.number("ssm.state_size")
    return max(0, kernel - 1) * (inner + 2 * fields.number("ssm.group_count") * size) + size * inner


def _has_own_kv(fields: _Fields, index: int) -> bool:
    """Whether a layer keeps keys and values of its own, rather than looking into an earlier layer's."""
    if fields.architecture == "gemma3n":
        return index < _GEMMA3N_LAYERS_WITH_KV
    return index < fields.n_layer - fields.number("attention.shared_kv_layers")


def _window(fields: _Fields, index: int) -> int:
    """Tokens that this layer sees, 0 where it sees all."""
    name = fields.architecture
    every, first, usual = _SLIDING.get(name, (1, False, 0))
    window = fields.number("attention.sliding_window", default=usual)
    if name == "llama4" and window:
        window = usual  # llama.cpp takes no other
    # Of this family only the large one slides.
    if name in _WINDOW_IGNORED or not window or (name == "exaone4" and fields.n_layer != 64):
        return 0
    if name.startswith("lfm2"):
        return window
    pattern = "attention.sliding_window_pattern"
    if fields.is_list(pattern):
        return window if fields.number(pattern, index) else 0
    every = fields.number(pattern, default=every)
    place = index % every if every else 1
    sees_all = place == (0 if first else every - 1)
    return 0 if sees_all else window


def _feed_forward(fields: _Fields, layers: int) -> int:
    """The widest feed-forward part of any layer: of the experts that a token uses, where there are experts."""

    def width(index: int) -> int:
        experts = fields.number("expert_used_count", index) * fields.number("expert_feed_forward_length", index)
        return experts + fields.number("expert_shared_feed_forward_length") if experts else dense(index)

    def dense(index: int) -> int:
        used = max(1, fields.number("expert_used_count", index))
        return used * fields.number("feed_forward_length", index)

    return max(map(width, range(layers)), default=0)


def _active(header: Header, fields: _Fields) -> int | None:
    """Parameters that one token uses where it uses some of the experts only."""
    count, used = fields.number("expert_count"), fields.number("expert_used_count")
    experts = sum(values_of(name, size) for name, size in header.weights.get("experts", {}).items())
    if not experts or not count or not used:
        return None
    return max(1, header.parameters - experts + experts * min(used, count) // count)
