"""One ceiling for all that the engine takes: itself, weights, KV cache, buffers, and what it keeps of prompts.

What a model would take is asked of llama.cpp before a byte of it is taken: it can load a file without its weights and
make windows without their memory, and says in its log how large they would be.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localchat.engine.context import Context
from localchat.engine.model import Model
from localchat.engine.offload import Offload
from localchat.errors import DoesNotFit
from localchat.hardware import resident_memory
from localchat.tuning import Tuning

SMALLEST_CONTEXT = 256
"""llama.cpp makes windows in multiples of so many tokens."""

_SETTLED_BYTES = 84 << 20
"""The host without a model, as it is once it has answered many: Python, the HTTP server, the library of the engine,
sixteen requests, and the process of the templates. Measured (67 MiB), with some to spare."""

_CANDIDATE_BYTES = 12  # what a sampler holds for each token of the vocabulary (`llama_token_data`)


_KEPT_SHARE = 8
"""Beside a window that is larger than the smallest, so large a part of it is left for what is kept of prompts."""

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Plan:
    """What a model takes under a ceiling of `most` bytes: `fixed` whatever its window is, and the window, of which
    `largest` tokens are the most that fit.
    """

    most: int
    fixed: int
    largest: int

    def spare(self, window: int) -> int:
        """Bytes that are left beside a window of `window` bytes for what is kept of prompts, and for copies."""
        return max(0, self.most - self.fixed - window)


def plan(path: Path, name: str, tuning: Tuning, offload: Offload, most: int, others: int) -> Plan:
    """How a model that is to lie as `offload` says gets on with `most` bytes, of which `others` are other processes'.

    No weights may be in memory. Raises `DoesNotFit` with what would do where the smallest window is already too large,
    and what `Model.load` raises.
    """
    _give_back_freed()
    before = resident_memory()
    model = Model(path, offload=offload, weightless=True)
    try:
        # The vocabulary stays in memory with the weights.
        vocabulary = max(0, resident_memory() - before)
        smallest, sequences = _window(model, tuning, SMALLEST_CONTEXT)
        samplers = sequences * model.n_vocab * _CANDIDATE_BYTES
        fixed = max(_SETTLED_BYTES, before + others) + vocabulary + samplers + model.processor_bytes
        if fixed + smallest > most:
            need = f"{name.rpartition('/')[2]} needs {_up(fixed + smallest)} with the smallest window"
            raise DoesNotFit(
                f"{need} and the ceiling is {in_words(most)}: "
                f"`localchat models --max-ram {_typed(most)}` shows what fits, or raise --max-ram"
            )
        low, high = 1, max(1, -(-model.n_ctx_train // SMALLEST_CONTEXT))
        while low < high:
            middle = (low + high + 1) // 2
            window, _ = _window(model, tuning, middle * SMALLEST_CONTEXT)
            if fixed + window + window // _KEPT_SHARE <= most:
                low = middle
            else:
                high = middle - 1
        return Plan(most, fixed, low * SMALLEST_CONTEXT)
    finally:
        model.close()
        _give_back_freed()


def _window(model: Model, tuning: Tuning, n_ctx: int) -> tuple[int, int]:
    """The bytes of a window in this machine's memory, and for how many sequences it is."""
    context = Context(model, n_ctx, 1, tuning)
    try:
        return context.processor_bytes, context.sequences
    finally:
        context.close()


def _give_back_freed() -> None:
    """Let the C library give freed memory back to the system, so that what is measured is what is used."""
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _up(count: float) -> str:
    """A size that is enough, a hundredth more than measured: the next measurement may differ by a little."""
    count *= 1.01
    return f"{-(-count // _MIB):.0f} MiB" if count < _GIB else f"{-(-count * 10 // _GIB) / 10:.1f} GiB"


def in_words(count: int) -> str:
    """A ceiling for people: never more than it is."""
    return f"{count // _MIB} MiB" if count < _GIB else f"{count * 10 // _GIB / 10:.1f} GiB"


def _typed(count: int) -> str:
    """A size as a person would type it."""
    return f"{count // _MIB}M" if count % _GIB else f"{count // _GIB}G"
