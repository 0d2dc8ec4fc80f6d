"""Whether flash attention is the faster one on this processor, for heads of a model's size.

llama.cpp takes it wherever it can. But its kernel for processors multiplies in blocks of as many values as the
registers of this build hold (128 with AVX512-FP16, 64 with AVX-512, 32 with AVX2), and what is left of a head one value
at a time: heads of 64 then run ten times slower than heads of 128, and a small model answers at a third of its speed
once some thousand tokens are in its window. Ordinary attention has no such step, but writes a table of scores.
"""

from __future__ import annotations

from functools import cache

import msgspec

from localchat.engine.ggml import library
from localchat.engine.model import Model
from localchat.tuning import MICRO_BATCH, Tuning

_CPU_DEVICE = 0  # enum ggml_backend_dev_type
_CELLS, _HEADS, _LEAST_S = 512, 4, 0.001
_TOO_SLOW = 1.5  # below that, not to write the scores down is worth more

_SCORES_BYTES, _SCORES_SHARE = 128 << 20, 4
"""What the table of scores may take: so many bytes, or such a part of the KV cache. Where it would be larger, prompts
are read in smaller bites."""

_SMALLEST_BITE = 32


def chosen(model: Model, n_ctx: int, tuning: Tuning) -> Tuning:
    """`tuning` with attention and micro-batch as they are fastest for a window of `n_ctx` tokens; what a person or a
    measurement has decided stays, and so does llama.cpp's own choice wherever a GPU takes part.
    """
    decides = tuning.flash_attention is None and tuning.kv_type in (None, "f16") and not model.offload.layers
    if not (decides and model.head_size and _is_slow(model.head_size)):
        return tuning
    most = max(_SCORES_BYTES, model.kv_bytes_estimate(n_ctx) // _SCORES_SHARE)
    bite = min(tuning.micro_batch or MICRO_BATCH, n_ctx)
    while bite > _SMALLEST_BITE and scores_bytes(model, n_ctx, bite) > most:
        bite //= 2
    if scores_bytes(model, n_ctx, bite) > most:
        return tuning
    return msgspec.structs.replace(tuning, micro_batch=bite, flash_attention=False)


def scores_bytes(model: Model, n_ctx: int, bite: int) -> int:
    """Bytes of the scores that so many tokens give all others in one layer, without flash attention."""
    return model.heads * n_ctx * bite * 4


@cache
def _is_slow(head: int) -> bool:
    """Whether flash attention of one token takes far longer than ordinary one, with heads of this size."""
    from localchat.engine.measure import Bench

    # One thread, timed by the processor time that it had: another program's load does not count.
    bench = Bench(library().ggml_backend_dev_by_type(_CPU_DEVICE), 1, 0)
    try:
        flash, ordinary = (
            bench.attention(_CELLS, _HEADS, 1, head, 1, flash=flash, least_s=_LEAST_S) for flash in (True, False)
        )
        return flash > _TOO_SLOW * ordinary
    finally:
        bench.close()
