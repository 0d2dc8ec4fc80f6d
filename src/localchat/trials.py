"""What `localchat bench` and `localchat tune` found out about models on this machine, kept in one file.

A finding belongs to one model (by the hash of its content), one build of the engine and one processor with so many
cores; any other ignores it. The engine process reads this on its way to the first token: nothing heavy is imported
where nothing is kept, and an unchanged file is not read again. Speeds are tokens/s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec

from localchat.paths import paths, write_private
from localchat.settings import settings
from localchat.tuning import KvType, Tuning

PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]

BUSY = 0.1
"""The share of the processors' time that others may have before what was measured meanwhile is too low to be used."""

_VERSION = 1
_KEPT = 300
"""Models that are remembered, the latest."""
_LARGEST_FILE = 8 << 20

_TURN_READ, _TURN_ANSWERED = 300, 300
"""A turn to compare by: a question with some context, and an answer (tokens)."""

# By how much a prediction may be corrected: what is further off than this has another reason than the machine.
_CORRECTION_LEAST, _CORRECTION_MOST = 0.5, 2.0


def turn_seconds(prefill: float, decode: float) -> float:
    """What a usual turn takes at these tokens/s."""
    return _TURN_READ / prefill + _TURN_ANSWERED / decode


class Speeds(msgspec.Struct, frozen=True):
    """Tokens/s: reading a prompt, and answering after it."""

    prefill: PositiveFloat
    decode: PositiveFloat


class AtThreads(Speeds, frozen=True):
    """The speeds with so many threads."""

    threads: PositiveInt


class AtDepth(Speeds, frozen=True):
    """The speeds once so many tokens are in the window."""

    tokens: Count


class SideBySide(msgspec.Struct, frozen=True):
    """Tokens/s of so many answers together, a token of each in every batch."""

    sequences: PositiveInt
    decode: PositiveFloat


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """Bringing back what a model read, against reading it again: seconds for so many `tokens`, a state of `bytes`.

    `save` and `restore` are within memory, `write` and `load` to a file and back (its bytes are on the disk in between,
    not in the system's cache, where the system can be told so).
    """

    tokens: PositiveInt
    bytes: PositiveInt
    read: PositiveFloat
    save: PositiveFloat
    restore: PositiveFloat
    write: PositiveFloat
    load: PositiveFloat


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What `localchat bench` measured of a model: medians of `rounds` in which all that is compared took turns.

    `threads` holds the speeds of a prompt of `read_tokens` and an answer of `answer_tokens` after it.
    """

    threads: Annotated[tuple[AtThreads, ...], msgspec.Meta(min_length=1)]
    used_threads: PositiveInt
    """As many as the engine computes with; all but `threads` was measured with these."""
    used_prefill_threads: PositiveInt
    depths: tuple[AtDepth, ...] = ()
    batches: tuple[SideBySide, ...] = ()
    restored: Restored | None = None
    read_tokens: PositiveInt
    answer_tokens: PositiveInt
    rounds: PositiveInt
    others: Share = 0.0
    """The share of the processors' time that other programs had meanwhile."""
    tuning: Tuning = Tuning()
    gpu_layers: Count = 0
    measured: str = ""
    """When, as an ISO date and time."""
    predicted: Speeds | None = None
    """What the machine's measured kernels had promised."""

    @property
    def was_busy(self) -> bool:
        """Whether the speeds are too low, because others computed at the same time."""
        return self.others > BUSY

    @property
    def speeds(self) -> Speeds:
        """With as many threads as the engine takes by itself."""

        def of(threads: int) -> AtThreads:
            return next((one for one in self.threads if one.threads == threads), self.threads[-1])

        return Speeds(of(self.used_prefill_threads).prefill, of(self.used_threads).decode)


class Turn(Speeds, frozen=True):
    """The speeds of a short conversation, and of an answer once `depth` tokens are in the window (0: not measured)."""

    depth: Count = 0
    decode_at_depth: PositiveFloat | None = None


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that `localchat tune` tried, with the speeds that were measured for it."""

    setting: str
    value: str
    prefill: PositiveFloat | None = None
    decode: PositiveFloat | None = None
    depth: Count = 0
    """Tokens that were in the window meanwhile."""
    is_default: bool = False
    taken: bool = False


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What `localchat tune` found: the best `tuning`, measured in turns with what the engine does by itself."""

    tuning: Tuning
    before: Turn
    after: Turn
    tried: tuple[Tried, ...] = ()
    others: Share = 0.0
    gpu_layers: Count = 0
    measured: str = ""

    @property
    def was_busy(self) -> bool:
        """Whether others computed meanwhile, so that what was best then says little."""
        return self.others > BUSY


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one model with one engine on one processor. `entry` is the catalogue's name for the model."""

    model: str
    engine: str
    cpu: str
    cores: PositiveInt
    name: str = ""
    entry: str = ""
    bench: Bench | None = None
    tuned: Tuned | None = None

    @property
    def tuning(self) -> Tuning:
        """How the engine computes with this model."""
        return self.tuned.tuning if self.tuned else Tuning()

    @property
    def speeds(self) -> Speeds | None:
        """What was measured last with the present tuning on a quiet machine; None: nothing was."""
        found = []
        if self.bench and self.bench.tuning == self.tuning and not self.bench.was_busy:
            found.append((self.bench.measured, self.bench.speeds))
        if self.tuned and not self.tuned.was_busy:
            found.append((self.tuned.measured, self.tuned.after))
        return max(found, key=lambda one: one[0])[1] if found else None

    @property
    def gpu_layers(self) -> int:
        """Layers that lay on GPUs when the speeds were measured."""
        return self.bench.gpu_layers if self.bench else self.tuned.gpu_layers if self.tuned else 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the measuring process (`engine.trial`) is to do with the model file at `path`.

    `threads` are the most that make sense; the `tuning` is the one that the engine uses now. `cache` is the folder
    where a state is written to and read from again. `kv_type`: the KV cache that a person chose.
    """

    path: str
    what: str
    threads: PositiveInt
    cache: str
    tuning: Tuning = Tuning()
    gpu_layers: Count = 0
    quick: bool = False
    kv_type: KvType | None = None
    max_ram: PositiveInt | None = None
    """The ceiling for the engine's memory that a person set, in bytes."""


class _File(msgspec.Struct):
    version: int = _VERSION
    models: list[msgspec.Raw] = []


def key_of(sha256: str | None, path: Path, size: int) -> str:
    """What a model goes by: the hash of its content, else its place and size."""
    # JSON holds no name that is not UTF-8.
    return sha256 or f"{path}:{size}".encode(errors="backslashreplace").decode()


def of_model(key: str) -> Kept | None:
    """What is kept of a model, for this engine and this processor."""
    return _here().get(key)


def tuned_as(name: str) -> Kept | None:
    """What is kept of a model that was tuned under this name (its path, for a file outside the store): for one that is
    no longer here. Of several, the latest.
    """
    name = os.path.abspath(name) if os.path.isabs(name) else name  # noqa: PTH100, PTH117
    return next((one for one in reversed(_here().values()) if one.tuned and one.name.lower() == name.lower()), None)


def tuning_of(key: str) -> Tuning:
    """How the engine should compute with a model: as it was tuned, but for threads that a person chose."""
    kept = of_model(key)
    if not kept or not kept.tuned:
        return Tuning()
    if settings().threads:
        return msgspec.structs.replace(kept.tuning, decode_threads=None, prefill_threads=None)
    return kept.tuning


def correction(entry: str) -> Speeds | None:
    """By what the speeds predicted for the catalogue's model `entry` are to be multiplied; None: nothing is known.

    It is what another quantization of the same model did here, against what was predicted for that: the same layers
    with the same steps between their products. To models of another shape it does not carry over.
    """
    ratios = []
    for kept in _here().values():
        bench = kept.bench
        if entry and kept.entry == entry and bench and bench.predicted and not bench.was_busy and not bench.gpu_layers:
            was, expected = bench.speeds, bench.predicted
            ratios.append((was.prefill / expected.prefill, was.decode / expected.decode))
    if not ratios:
        return None
    least, most = _CORRECTION_LEAST, _CORRECTION_MOST
    prefill, decode = median(read for read, _ in ratios), median(said for _, said in ratios)
    return Speeds(min(max(prefill, least), most), min(max(decode, least), most))


def keep(key: str, *, name: str, entry: str = "", bench: Bench | None = None, tuned: Tuned | None = None) -> None:
    """Keep what was found of a model beside what is known of it already. Raises `LocalchatError`, `OSError`."""
    engine, cpu, cores = _identity()
    before = of_model(key) or Kept(model=key, engine=engine, cpu=cpu, cores=cores)
    _write(
        msgspec.structs.replace(
            before, name=name, entry=entry, bench=bench or before.bench, tuned=tuned or before.tuned
        )
    )


def forget_tuning(key: str) -> bool:
    """Let the engine compute with a model as it does by itself; False where nothing was tuned. Raises as `keep`."""
    kept = of_model(key)
    if not kept or not kept.tuned:
        return False
    _write(msgspec.structs.replace(kept, tuned=None))
    return True


def _write(kept: Kept) -> None:
    """Put it at the end, in place of what was known. Findings of other engines and processors stay."""
    others = [one for one in _all() if not (one.model == kept.model and _is_of_here(one))]
    everything = [*others, kept][-_KEPT:]
    raw = [msgspec.Raw(msgspec.json.encode(one)) for one in everything]
    write_private(paths().tunings, msgspec.json.format(msgspec.json.encode(_File(models=raw))))


_read: tuple[object, tuple[Kept, ...], dict[str, Kept]] = (None, (), {})
"""The file's stamp when it was read last, all that was in it, and what of that is of this engine and processor."""


def _all() -> Sequence[Kept]:
    _here()
    return _read[1]


def _here() -> dict[str, Kept]:
    """What is kept for this engine and this processor, by model; read again only where the file changed."""
    global _read
    file = paths().tunings
    try:
        status = file.stat()
        stamp = (file, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        _read = (None, (), {})
        return _read[2]
    if stamp != _read[0]:
        found = _parsed(file, status)
        _read = (stamp, found, {one.model: one for one in found if _is_of_here(one)})
    return _read[2]


def _parsed(file: Path, status: os.stat_result) -> tuple[Kept, ...]:
    """Every finding in the file that can be understood; a file of another version counts as empty."""
    found = []
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = msgspec.json.decode(file.read_bytes() if status.st_size <= _LARGEST_FILE else b"", type=_File)
        for raw in content.models if content.version == _VERSION else ():
            with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.append(msgspec.json.decode(raw, type=Kept))
    return tuple(found)


def _is_of_here(kept: Kept) -> bool:
    return (kept.engine, kept.cpu, kept.cores) == _identity()


@cache
def _identity() -> tuple[str, str, int]:
    """The engine's build, the processor, and the cores that this process may use."""
    # Some milliseconds that nobody waits for who never measured anything.
    from localchat.hardware import usable_cores
    from localchat.machine import cpu_name, engine_stamp

    return engine_stamp(), cpu_name(), usable_cores()
