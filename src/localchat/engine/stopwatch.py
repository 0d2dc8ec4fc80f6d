"""A loaded model against the clock: how long it reads, answers, saves and restores in a window of its own.

The batches are those of the engine: prompts in micro-batches with logits for the last token only, answers a token at a
time. Choosing a token from its logits is left out. All durations are seconds.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import tempfile
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from localchat.engine.context import Context
from localchat.engine.llama import api
from localchat.engine.model import Model
from localchat.errors import EngineFailed
from localchat.hardware import available_memory
from localchat.tuning import Tuning

_TEXT = (
    "The harbour was quiet when the first boats came home. Nobody on the pier spoke of the storm; they counted the "
    "masts, tied the ropes, and carried 27 baskets of fish up the stone steps. In the evening there would be soup, "
    "and somebody would ask what the sea had been like. "
)
"""What is read, again and again: in a mixture of experts the text decides which of them compute."""

_MEASURED, _ASIDE = 0, 1
"""The sequence that is timed, and one for copies."""


class Stopwatch:
    """A model in a window of `n_ctx` tokens. Raises as `Context` does."""

    def __init__(self, model: Model, n_ctx: int, threads: int, tuning: Tuning) -> None:
        self.context = Context(model, n_ctx, threads, tuning)
        self._text = _tokens(model)
        self._is_plain = not model.is_stateful
        self._length = 0
        self._states: dict[int, ctypes.Array[ctypes.c_uint8]] = {}

    def close(self) -> None:
        """Give the window's memory back."""
        self._states.clear()
        self.context.close()

    def warm_up(self) -> None:
        """Compute once, so that all weights are in memory."""
        self.clear()
        self.read(32)
        self.answer(1)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        for sequence in range(self.context.sequences):
            self.context.forget(sequence)
        self._length = 0

    def read(self, tokens: int) -> float:
        """Read so many tokens after those in the window; tokens/s."""
        began, first = time.perf_counter(), self._length
        end = first + tokens
        while self._length < end:
            stop = min(end, self._length + self.context.batch_size)
            self.context.begin()
            self.context.add(self._slice(self._length, stop), self._length, _MEASURED, output=stop == end)
            self.context.decode()
            self._length = stop
        return (self._length - first) / (time.perf_counter() - began)

    def answer(self, tokens: int, seconds: float = math.inf) -> float:
        """Say so many tokens after those in the window, or as many as there is time for; tokens/s."""
        return self.answer_together(1, tokens, seconds)

    def answer_together(self, sequences: int, tokens: int, seconds: float = math.inf) -> float:
        """Say so many tokens in each of several sequences alike, a token of each in every batch; tokens/s of all."""
        began, first = time.perf_counter(), self._length
        end = first + tokens
        while self._length < end:
            self.context.begin()
            for sequence in range(sequences):
                # Not the same in each: experts are chosen by token.
                place = self._length + 7 * sequence
                self.context.add(self._slice(place, place + 1), self._length, sequence, output=True)
            self.context.decode()
            self._length += 1
            if time.perf_counter() - began > seconds:
                break
        return sequences * (self._length - first) / (time.perf_counter() - began)

    def stand_at(self, depth: int) -> None:
        """Have the measured sequence hold `depth` tokens; the second time, from a copy where there is memory for it.

        Into an ordinary KV cache a short text is put behind itself until it is long enough, which takes no reading:
        no kernel's time depends on what is in there. What slides or recurs has to be read.
        """
        self.clear()
        if state := self._states.get(depth):
            self._put_back(_MEASURED, state)
        elif self.stands_quickly:
            self._pile_up(depth)
        else:
            self.clear()
            self.read(depth)
        self._length = depth
        if not state and self.context.state_bytes(_MEASURED) < available_memory() // 4:
            self._states[depth] = self.context.save(_MEASURED)

    @cached_property
    def stands_quickly(self) -> bool:
        """Whether `stand_at` need not read all that the window is to hold. Asking clears the window."""
        self.clear()
        self.read(8)
        return self._is_plain and bytes(self.context.save(_MEASURED)).count(_cells(0, 8)) == 1

    def _pile_up(self, depth: int) -> None:
        """Copies of a piece, each with the positions that come next: llama.cpp writes them cell by cell."""
        self.clear()
        piece = min(depth, self.context.batch_size)
        self.read(piece)
        state = self.context.save(_MEASURED)
        place = bytes(state).index(_cells(0, piece))
        for start in range(piece, depth, piece):
            cells = _cells(start, piece)
            ctypes.memmove(ctypes.addressof(state) + place, cells, len(cells))
            self._put_back(_ASIDE, state)
            self.context.cut(_ASIDE, depth)
            api().llama_memory_seq_cp(api().llama_get_memory(self.context.handle), _ASIDE, _MEASURED, -1, -1)
            self.context.forget(_ASIDE)

    def save(self) -> tuple[float, ctypes.Array[ctypes.c_uint8]]:
        """Save the measured sequence in memory."""
        began = time.perf_counter()
        state = self.context.save(_MEASURED)
        return time.perf_counter() - began, state

    def restore(self, state: ctypes.Array[ctypes.c_uint8]) -> float:
        """Bring a state back from memory."""
        self.clear()
        began = time.perf_counter()
        self._put_back(_MEASURED, state)
        return time.perf_counter() - began

    def through_file(self, state: ctypes.Array[ctypes.c_uint8], folder: Path) -> tuple[float, float]:
        """Write a state to a file of that folder until it is on the disk, and bring it back from there."""
        self.clear()
        size = len(state)
        # It has no name, so that nothing stays behind whatever ends this process.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            began = time.perf_counter()
            view = memoryview(state).cast("B")
            while view:
                view = view[file.write(view) or 0 :]
            os.fsync(file.fileno())
            written = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            back = (ctypes.c_uint8 * size)()
            file.seek(0)
            view = memoryview(back).cast("B")
            while view:
                got = file.readinto(view)
                if not got:
                    raise EngineFailed("a file that was just written is shorter than that: see that the disk is sound")
                view = view[got:]
            self._put_back(_MEASURED, back)
            return written, time.perf_counter() - began

    def _put_back(self, sequence: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        if not self.context.restore(sequence, state):
            raise EngineFailed("llama.cpp does not take back the state that it gave: take another model")

    def _slice(self, start: int, stop: int) -> list[int]:
        return [self._text[index % len(self._text)] for index in range(start, stop)]


def _cells(start: int, count: int) -> bytes:
    """How a state describes so many cells of one sequence: position, number of sequences, sequence."""
    return b"".join(struct.pack("<iii", start + index, 1, _MEASURED) for index in range(count))


def _tokens(model: Model) -> list[int]:
    """A text in the model's tokens, with what begins every text; any tokens where its vocabulary has none for it."""
    text = model.tokenize(_TEXT, parse_special=False) or list(range(min(64, model.n_vocab)))
    return [*([model.bos] if model.adds_bos and model.bos >= 0 else []), *text]
