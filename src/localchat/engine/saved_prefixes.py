"""What models have read, kept on disk: saved when nobody waits for the engine, back when a prompt begins with it.

This is the part of one context: the key of its model, and how pieces are taken out of the KV cache and put back. Only
tokens of requests that allow it are saved (`Sequence.keep`).
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from localchat.engine.context import SAFETY_BYTES, Context, State
from localchat.engine.model import Model
from localchat.engine.prefix_saver import PrefixSaver
from localchat.hardware import available_memory
from localchat.prefix_file import Entry, Header, Kind, entry_id, key_of
from localchat.prefix_index import CHUNK, WORTH
from localchat.prefixes import PrefixStore

if TYPE_CHECKING:
    from localchat.engine.job import ModelSpec
    from localchat.engine.prefix_cache import Sequence

_READ_AHEAD = 2
"""Pieces that are read and verified while the one before them goes into the KV cache."""

_LOADING_S = 0.5
"""How long a prompt waits for the list of what there is: at most while a host is starting."""

_RESCUE_MS, _RESCUE_S = 2000.0, 0.05
"""What is about to be forgotten is saved at once if reading it again would take so long, for this long."""

_CHEAP_MS = 1000.0
"""What can be read again in this time need not be kept at other requests' expense."""

_LOOK_S = 0.02

_CHECKPOINTS = 4
"""How many checkpoints of a state are saved with it."""


class _Piece(NamedTuple):
    """One thing to save: tokens `start` to `end` of a sequence, on top of the entry `parent`."""

    kind: Kind
    sequence: int
    tokens: bytes
    start: int
    end: int
    parent: str
    state: State | None = None


class SavedPrefixes:
    """What is saved of one model, for one context of it. Used on the engine's thread only.

    `read_rate`: tokens a second that the model last read (0: not known), for what is said to have been saved. `before`
    is the part of an earlier context of the model, whose sequences this one may take over.
    """

    def __init__(
        self,
        saver: PrefixSaver | None,
        spec: ModelSpec,
        model: Model,
        context: Context,
        before: SavedPrefixes | None = None,
    ) -> None:
        self.read_rate: float = before.read_rate if before else 0.0
        self.room: Callable[[], int] = available_memory
        """How many bytes a copy of a state may take now."""
        self._saver = saver if saver and saver.store.cap else None
        self._spec = spec
        self._context = context
        self._file_bytes = model.file_bytes
        self._can_cut = not model.is_stateful
        self._is_long = model.is_long(context.n_ctx)
        self._model_hash = self._key_known = ""
        # What was read before the cache was cleared must not come back, in whatever window it is now.
        self._cleared: int = before._cleared if before else saver.store.cleared if saver else 0
        self._pieces: deque[_Piece] = deque()

    def longest(self, tokens: list[int]) -> int:
        """How many of the first of `tokens` can be restored; always short of the last one."""
        store, wanted = self._store, array("i", tokens[:-1])
        if not store:
            return 0
        if self._can_cut:
            return store.index.chain(self._key, wanted)[1]
        return self._states(store, wanted)[0]

    def extend(self, sequence: Sequence, tokens: list[int], make_room: Callable[[], bool]) -> None:
        """Let a sequence that holds a prefix of `tokens` hold a longer one, if that is worth it; note how many of its
        tokens came from the disk, and what reading all of them would have taken.

        `make_room` frees cells of the KV cache, False where it cannot. What went wrong may cost the sequence all that
        it held.
        """
        store, wanted, restored_ms = self._store, array("i", tokens[:-1]), 0.0
        if store and self.longest(tokens) >= len(sequence.tokens) + WORTH:
            restore = self._restore_chunks if self._can_cut else self._restore_state
            sequence.restored, restored_ms = restore(store, wanted, sequence, make_room)
            if restored_ms and not self.read_rate:
                self.read_rate = 1000 * sequence.restored / restored_ms
        sequence.saved_ms = restored_ms + self._cost(len(sequence.tokens) - sequence.restored)

    def plan(self, sequences: Collection[Sequence]) -> None:
        """Find out what of all sequences is not saved yet, for `step`."""
        self._pieces.clear()
        if not (store := self._store) or not self._saver or not store.accepts:
            return
        if (cleared := store.cleared) != self._cleared:
            # What was said before that is not saved any more, unless it is said again.
            self._cleared = cleared
            for sequence in sequences:
                sequence.keep = False
            self._saver.later(store.load)
        for sequence in sequences:
            if sequence.keep and len(sequence.tokens) >= WORTH:
                self._pieces += (self._chunks if self._can_cut else self._whole)(store, sequence)

    @property
    def is_waiting(self) -> bool:
        """Whether nothing can be saved yet, because the model's file is still being hashed."""
        return self._saver is not None and not self._key and self._saver.is_hashing(self._spec)

    def wait_until_known(self, seconds: float) -> None:
        """Wait for the hash of the model's file, without which nothing can be saved."""
        until = time.monotonic() + seconds
        while self.is_waiting and time.monotonic() < until:
            time.sleep(_LOOK_S)

    @property
    def wait_s(self) -> float | None:
        """In how many seconds `step` can do something; None where there is nothing to do."""
        if not self._pieces or not self._saver:
            return None
        return _LOOK_S if self._saver.is_full else 0.0

    def step(self) -> None:
        """Save one piece of what was planned: copy it here, write it on the other thread."""
        piece, saver = self._pieces.popleft(), self._saver
        assert saver
        if state := self._state_of(piece):
            saver.put(self._header(piece, saver.engine), memoryview(state).cast("B"), self._cleared)
        else:
            self._pieces.clear()  # what follows would be built on it

    def has(self, sequence: Sequence) -> bool:
        """Whether all of a sequence that is worth it can be brought back, from files that are still there."""
        store, tokens = self._store, array("i", sequence.tokens[:-1])
        if not store:
            return False
        if self._can_cut:
            chain, held = store.index.chain(self._key, tokens)
        else:
            held, *found = self._states(store, tokens)
            chain = [entry for entry in found if entry]
        return held >= len(sequence.tokens) - WORTH and store.is_there(chain)

    def is_cheap(self, tokens: int) -> bool:
        """Whether reading so many tokens again takes little time."""
        return self._cost(tokens) < _CHEAP_MS

    def flush(self, sequences: Collection[Sequence], seconds: float) -> None:
        """Save all that is not saved yet of all sequences, for at most so long."""
        self.plan(sequences)
        self._finish(seconds)

    def _finish(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._pieces and self._saver and self._saver.wait(until - time.monotonic()):
            if time.monotonic() > until:
                break
            self.step()
        self._pieces.clear()

    def rescue(self, sequence: Sequence) -> None:
        """Save a sequence that is about to be forgotten, if it is dear and that takes no noticeable time."""
        if self._cost(len(sequence.tokens)) < _RESCUE_MS or not self._saver or self._saver.is_full:
            return
        if self._saver.store.cleared == self._cleared:
            self.plan([sequence])
            if self._cost(sum(piece.end - piece.start for piece in self._pieces)) >= _RESCUE_MS:
                self._finish(_RESCUE_S)
            self._pieces.clear()

    # What follows is for this class alone.

    @property
    def _store(self) -> PrefixStore | None:
        """The store, once its list is read and the key is known."""
        return self._saver.store if self._saver and self._key and self._saver.loaded.wait(_LOADING_S) else None

    @property
    def _key(self) -> str:
        """The key of all that is saved with this model as it is set up now; "" while its hash is not known."""
        if not self._key_known and self._saver and (sha256 := self._saver.sha256(self._spec)):
            tuning = self._context.tuning
            self._model_hash = sha256
            self._key_known = key_of(
                model=sha256,
                file_bytes=self._file_bytes,  # of all parts, of which the hash is the first one's
                engine=self._saver.engine,
                kv_type=tuning.kv_type,
                flash_attention=tuning.flash_attention,
                is_long=self._is_long,
            )
        return self._key_known

    def _cost(self, tokens: int) -> float:
        """What reading so many tokens takes, in milliseconds; 0 where that is not known."""
        return 1000 * tokens / self.read_rate if self.read_rate else 0.0

    def _header(self, piece: _Piece, engine: str) -> Header:
        return Header(
            key=self._key,
            model=self._model_hash,
            engine=engine,
            kind=piece.kind,
            parent=piece.parent,
            start=piece.start,
            tokens=piece.tokens,
            read_ms=self._cost(piece.end - piece.start),
        )

    def _chunks(self, store: PrefixStore, sequence: Sequence) -> Iterator[_Piece]:
        """The chunks of a sequence that are not saved, if they are worth it."""
        tokens = array("i", sequence.tokens)
        chain, covered = store.index.chain(self._key, tokens)
        while not store.is_there(chain):  # somebody has emptied the folder
            chain, covered = store.index.chain(self._key, tokens)
        if len(tokens) - covered < WORTH:
            return
        # A chunk that goes on otherwise, or is not full, stays as it is; this conversation gets one of its own.
        if chain and (chain[-1].end > covered or len(chain[-1].tokens) < CHUNK):
            chain.pop()
        start, parent = (chain[-1].end, chain[-1].id) if chain else (0, "")
        for begin in range(start, len(tokens), CHUNK):
            part = tokens[begin : begin + CHUNK].tobytes()
            yield _Piece("chunk", sequence.id, part, begin, min(begin + CHUNK, len(tokens)), parent)
            parent = entry_id(self._key, "chunk", parent, part)

    def _whole(self, store: PrefixStore, sequence: Sequence) -> Iterator[_Piece]:
        """The state of a sequence, if it is worth it, and its last checkpoints: from those other prompts go on."""
        tokens = array("i", sequence.tokens)
        tip = store.index.longest(self._key, "whole", tokens)
        if tip and store.is_there([tip]) and len(tokens) - tip.end < WORTH:
            return
        yield _Piece("whole", sequence.id, tokens.tobytes(), 0, len(tokens), "")
        for checkpoint in sequence.checkpoints[-_CHECKPOINTS:]:
            part = tokens[: checkpoint.length]
            if checkpoint.length < len(tokens) and not store.index.has(self._key, "checkpoint", part):
                yield _Piece("checkpoint", sequence.id, part.tobytes(), 0, len(part), "", checkpoint.state)

    def _state_of(self, piece: _Piece) -> State | None:
        """A copy of a piece of the KV cache; None where it is not what it should be, or memory is short."""
        if piece.kind != "chunk":
            return piece.state or self._copied(piece.sequence)
        context, scratch = self._context, self._context.scratch
        context.forget(scratch)
        context.share(piece.sequence, scratch, piece.end, piece.start)
        try:
            if context.positions(scratch) != (piece.start, piece.end - 1):
                return None
            return self._copied(scratch)
        finally:
            context.forget(scratch)

    def _copied(self, sequence: int) -> State | None:
        if self._context.state_bytes(sequence) > self._spare():
            return None
        return self._context.save(sequence)

    def _spare(self) -> int:
        """Bytes that copies of states may take for a moment."""
        return min(self.room(), available_memory() - SAFETY_BYTES)

    def _restore_chunks(
        self, store: PrefixStore, tokens: array[int], sequence: Sequence, make_room: Callable[[], bool]
    ) -> tuple[int, float]:
        """How many tokens the sequence was given, and what reading them had taken in milliseconds."""
        context, scratch = self._context, self._context.scratch
        chain, covered = store.index.chain(self._key, tokens)
        before = held = len(sequence.tokens)
        restored_ms = 0.0
        new = [entry for entry in chain if entry.end > held]
        for entry, payload in _read_ahead(store, new, self._spare()) if new else ():
            if payload is None or not self._put_back(scratch, payload, make_room):
                break
            is_right = context.positions(scratch) == (entry.header.start, entry.end - 1)
            if is_right:
                end = min(entry.end, covered)
                context.share(scratch, sequence.id, end, held)
                restored_ms += entry.header.read_ms * (end - held) / len(entry.tokens)
                held = end
            context.forget(scratch)
            if not is_right:
                break
        self._touch(store, reversed(chain))
        sequence.tokens += tokens[before:held].tolist()
        return held - before, restored_ms

    def _states(self, store: PrefixStore, tokens: array[int]) -> tuple[int, Entry | None, Entry | None]:
        """How many of `tokens` a saved state brings back, by way of one of its checkpoints if need be; and both."""
        whole = store.index.longest(self._key, "whole", tokens)
        if checkpoint := store.index.longest(self._key, "checkpoint", tokens):
            around = store.index.beginning_with(self._key, "whole", checkpoint.tokens)
            if around and checkpoint.end > (whole.end if whole else 0):
                return checkpoint.end, around, checkpoint
        return (whole.end if whole else 0), whole, None

    def _restore_state(
        self, store: PrefixStore, tokens: array[int], sequence: Sequence, make_room: Callable[[], bool]
    ) -> tuple[int, float]:
        """The same with a whole state, which takes the place of all that the sequence held."""
        length, whole, checkpoint = self._states(store, tokens)
        used = [entry for entry in (whole, checkpoint) if entry]
        if not whole or sum(entry.size for entry in used) > self._spare():
            return 0, 0.0
        payloads = [payload for entry in used if (payload := store.payload(entry)) is not None]
        if len(payloads) < len(used):
            return 0, 0.0
        context = self._context
        is_back = self._put_back(sequence.id, payloads[0], make_room)
        if is_back and checkpoint:
            is_back = context.restore(sequence.id, _as_state(payloads[1]), partial=True)
            is_back = is_back and context.cut(sequence.id, length)
        if not is_back:
            context.forget(sequence.id)
            sequence.tokens = []
            return 0, 0.0
        self._touch(store, used[::-1])
        sequence.tokens = tokens[:length].tolist()
        return length, whole.header.read_ms * length / whole.end

    def _put_back(self, sequence: int, payload: memoryview, make_room: Callable[[], bool]) -> bool:
        while not self._context.restore(sequence, _as_state(payload)):
            if not make_room():
                return False
        return True

    def _touch(self, store: PrefixStore, entries: Iterable[Entry]) -> None:
        used = list(entries)
        assert self._saver
        self._saver.later(lambda: store.touch(used))


def _as_state(payload: memoryview) -> State:
    return (ctypes.c_uint8 * len(payload)).from_buffer(payload)


def _read_ahead(store: PrefixStore, entries: list[Entry], room: int) -> Iterator[tuple[Entry, memoryview | None]]:
    """Entries with their payloads, which are read and verified while those before them are put back; no more of them
    at a time than `room` bytes hold, and none where that is not even one.
    """
    largest = max(entry.size for entry in entries)
    if largest > room:
        return
    most_ahead = min(_READ_AHEAD, room // largest - 1)
    if len(entries) < 2 or not most_ahead:
        yield from ((entry, store.payload(entry)) for entry in entries)
        return
    with ThreadPoolExecutor(most_ahead) as pool:
        ahead: deque[tuple[Entry, Future[memoryview | None]]] = deque()
        for entry in entries:
            ahead.append((entry, pool.submit(store.payload, entry)))
            if len(ahead) > most_ahead:
                first, payload = ahead.popleft()
                yield first, payload.result()
        for first, payload in ahead:
            yield first, payload.result()
