"""How the engine is set up for one model: what can be tuned, what was found to be fastest here, and its fixed sizes.

Nothing native is loaded here: `engine` obeys a tuning, and who measures or predicts reads the same sizes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MICRO_BATCH = 512
"""Tokens that llama.cpp computes at once where nothing else was found to be faster; a batch of ours is never larger."""

SEQUENCES = 16
"""Conversations that the KV cache can hold side by side; they share its cells, so more of them cost nothing."""

SEQUENCES_WITH_STATE = 8
"""The same where layers keep something for each sequence: a sliding window, or a state of fixed size."""

KvType = Literal["f16", "q8_0", "q5_1", "q4_0"]
"""Tensor types of the KV cache. All but f16 need flash attention for the values, and round what they keep."""

Threads = Annotated[int, msgspec.Meta(ge=1, le=512)]


class Tuning(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the engine computes with one model; None is what it would do by itself.

    Threads are the most that compute on a quiet machine; on a busy one fewer do (`engine.threads`).
    """

    decode_threads: Threads | None = None
    prefill_threads: Threads | None = None
    micro_batch: Annotated[int, msgspec.Meta(ge=32, le=4096)] | None = None
    """Tokens that are computed at once."""
    kv_type: KvType | None = None
    flash_attention: bool | None = None
    """None: where it is not slow with the model's heads (`with_ordinary_attention`); on a GPU, llama.cpp decides."""


SLOW_ATTENTION = 2.2
"""By how much flash attention must be slower than the ordinary one, for one token, before that is taken.

It is one step of a layer instead of several, reads prompts by tiles, and skips the cells of other conversations: where
its kernel takes 1.6 times as long (AVX2, heads of 64) answers are as fast all the same, prompts a third faster, sixteen
answers together half as fast again. At 2.6 (AVX2, heads of 80) answers are slower by a third to a half.
"""

_SCORES_BYTES, _SCORES_SHARE = 128 << 20, 4
"""What the table of scores may take: so many bytes, or such a part of the KV cache. Where it would be larger, prompts
are read in smaller bites."""

_SMALLEST_BITE = 32


def with_ordinary_attention(tuning: Tuning, *, heads: int, kv_bytes: int, context: int) -> Tuning:
    """`tuning` for a model whose heads flash attention is slow with, in a window of `context` tokens.

    `kv_bytes` is what their KV cache takes. What a person or a measurement has decided stays, and where the table of
    scores would be too large, flash attention does.
    """
    if tuning.flash_attention is not None or tuning.kv_type not in (None, "f16"):
        return tuning
    most = max(_SCORES_BYTES, kv_bytes // _SCORES_SHARE)
    bite = min(tuning.micro_batch or MICRO_BATCH, context)
    while bite > _SMALLEST_BITE and scores_bytes(heads, context, bite) > most:
        bite //= 2
    if scores_bytes(heads, context, bite) > most:
        return tuning
    return msgspec.structs.replace(tuning, micro_batch=bite, flash_attention=False)


def scores_bytes(heads: int, context: int, bite: int) -> int:
    """Bytes of the scores that so many tokens give all others in one layer, without flash attention."""
    return heads * context * bite * 4


def sequences(*, is_stateful: bool) -> int:
    """How many sequences a context is made for; `is_stateful`: a layer slides or keeps a state for each of them."""
    return SEQUENCES_WITH_STATE if is_stateful else SEQUENCES
