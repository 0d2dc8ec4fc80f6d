"""The shape of a model: the few numbers that decide how much memory it takes and how fast it can be.

A GGUF header has them; the catalogue has them for models that are not here yet. Knows nothing of files or machines.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The numbers behind a model's memory and speed, as its makers' configuration names them.

    `layers` are transformer blocks, `embedding` is the hidden size, `heads_kv` the key-value heads of a layer,
    `key_length` and `value_length` values per head. Where some layers see only the last `window` tokens, or keep a
    state of fixed size instead of keys and values, `full_layers` counts those that do see everything.
    """

    layers: Positive
    embedding: Positive
    heads_kv: Positive
    key_length: Positive
    value_length: Positive
    vocabulary: Positive
    window: Count = 0
    """Tokens that a sliding layer sees; 0: there are none."""
    full_layers: Positive | None = None
    """Layers that see the whole context; None: all of them."""
    active_parameters: Positive | None = None
    """Parameters that one token uses, in a mixture of experts; None: all of them."""
