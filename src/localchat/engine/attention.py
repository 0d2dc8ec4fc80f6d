"""Whether flash attention is the faster one on this processor, for heads of a model's size.

llama.cpp takes it wherever it can. But its kernel for processors multiplies in blocks of as many values as the
registers of this build hold (128 with AVX512-FP16, 64 with AVX-512, 32 with AVX2), and what is left of a head one value
at a time: heads of 64 then run five times slower than heads of 128, and a small model answers at a third of its speed
once some thousand tokens are in its window. Ordinary attention has no such step, but writes a table of scores.
"""

from __future__ import annotations

import math
from functools import cache

from localchat.engine.ggml import library
from localchat.engine.model import Model
from localchat.tuning import SLOW_ATTENTION, Tuning, with_ordinary_attention

_CPU_DEVICE = 0  # enum ggml_backend_dev_type
_CELLS, _HEADS, _LEAST_S = 512, 4, 0.001
_ROUNDS = 3
"""Each is timed so often, in turns, and its shortest time counts: the choice must not depend on the moment, because
what was saved under one is of no use under the other."""


def chosen(model: Model, n_ctx: int, tuning: Tuning) -> Tuning:
    """`tuning` with attention and micro-batch as they are fastest for a window of `n_ctx` tokens; what a person or a
    measurement has decided stays, and so does llama.cpp's own choice wherever a GPU takes part.
    """
    if model.offload.layers or not model.head_size or not _is_slow(model.head_size):
        return tuning
    kv_bytes = model.kv_bytes_estimate(n_ctx)
    return with_ordinary_attention(tuning, heads=model.heads, kv_bytes=kv_bytes, context=n_ctx)


@cache
def _is_slow(head: int) -> bool:
    """Whether flash attention of one token takes far longer than ordinary one, with heads of this size."""
    from localchat.engine.measure import Bench

    # One thread, timed by the processor time that it had: another program's load does not count.
    bench = Bench(library().ggml_backend_dev_by_type(_CPU_DEVICE), 1, 0)
    try:
        shortest = {True: math.inf, False: math.inf}
        for flash in (True, False) * _ROUNDS:
            seconds = bench.attention(_CELLS, _HEADS, 1, head, 1, flash=flash, least_s=_LEAST_S)
            shortest[flash] = min(shortest[flash], seconds)
        return shortest[True] > SLOW_ATTENTION * shortest[False]
    finally:
        bench.close()
