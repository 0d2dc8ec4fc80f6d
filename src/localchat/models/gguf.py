"""Our own reader of GGUF headers: it stands in front of the engine, because a hostile file can abort native code.

Nothing in the file is believed: every length, count and offset is checked against the file's size before it is used,
what is kept in memory is capped, and a tensor whose data does not lie inside the file means a file cut short. Reads
versions 2 and 3, little endian, through any `Source` of bytes. Knows nothing of the store.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

import msgspec

from localchat.errors import DamagedFile, NoSuchModel
from localchat.models.gguf_types import FILE_TYPES, REMOVED_TENSOR_TYPES, TENSOR_TYPES
from localchat.models.names import split_siblings
from localchat.safe_text import safe_line

Scalar = int | float | bool | str

# Caps far above any real model (the largest vocabularies have some 260,000 tokens and twice as many merges), so that a
# crafted file costs neither minutes nor gigabytes.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_STRINGS = 1 << 22
_MAX_NAME = 1 << 16
_MAX_KEPT = 32 << 20
_MAX_KEPT_ARRAY = 1 << 12
# llama.cpp's own limits (GGML_MAX_NAME holds a closing NUL, GGML_MAX_DIMS).
_MAX_TENSOR_NAME = 63
_MAX_DIMS = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize("<" + code) for kind, code in _NUMBERS.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Source(Protocol):
    """Where the bytes come from: a file here, or (later) ranges of a file far away."""

    @property
    def size(self) -> int:
        """Bytes in the whole file."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`; fewer than `length` only at the end of the file."""


class FileSource:
    """An open file as a `Source`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`; fewer than `length` only at the end of the file."""
        self._file.seek(offset)
        return self._file.read(length)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF says about its model. Counts are 0 where the file does not say; sizes are bytes, context tokens.

    `n_head_kv` is the most that any layer has (`metadata` holds them layer by layer where they differ). `metadata`
    has every scalar and every short array of numbers; of long arrays and of those of strings only `lengths` is known.
    """

    architecture: str
    name: str
    quantization: str
    context: int
    n_layer: int
    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    embedding: int
    vocabulary: int
    parameters: int
    tensors: int
    tensor_bytes: int
    chat_template: str | None
    metadata: dict[str, Scalar | tuple[Scalar, ...]]
    lengths: dict[str, int]


def read_header(path: Path) -> Header:
    """Read and check the header of the GGUF file at `path`.

    Raises `DamagedFile` with the fault, and `NoSuchModel` where there is no file or it cannot be opened.
    """
    label = safe_line(str(path))
    try:
        with path.open("rb", buffering=0) as file:
            return parse(FileSource(file), label)
    except IsADirectoryError:
        raise NoSuchModel(f"{label} is a folder: name the .gguf file in it") from None
    except FileNotFoundError:
        raise NoSuchModel(f"there is no file {label}: check its spelling") from None
    except OSError as error:
        raise NoSuchModel(f"cannot read {label} ({error.strerror}): make it readable") from error


def shards(path: Path) -> list[Path]:
    """All parts of the (perhaps split) GGUF that `path` belongs to, in order; `DamagedFile` if one is missing."""
    found = [path.with_name(name) for name in split_siblings(path.name)]
    for sibling in found if len(found) > 1 else ():
        if not sibling.is_file():
            raise DamagedFile(
                f"{safe_line(str(path))} is one of {len(found)} parts and {safe_line(sibling.name)} is missing: "
                "put all parts into the same folder"
            )
    return found


def parse(source: Source, label: str) -> Header:
    """Read and check a header; `label` names the file in errors. Raises `DamagedFile`."""
    reader = _Reader(source, label)
    if source.size < 24:
        reader.fail("it is too short to be a GGUF file")
    if reader.take(4) != b"GGUF":
        reader.fail("it is not a GGUF file")
    version = reader.u32()
    if version in (0x02000000, 0x03000000):
        reader.fail("it is a big-endian GGUF file, which this engine does not read")
    if version not in (2, 3):
        reader.fail(f"GGUF version {version} is not one that localchat reads (2 and 3)")
    n_tensors, n_keys = reader.u64(), reader.u64()
    if n_keys > _MAX_KEYS:
        reader.fail(f"it claims to hold {n_keys} metadata keys")
    if n_tensors > _MAX_TENSORS:
        reader.fail(f"it claims to hold {n_tensors} tensors")
    metadata, lengths = _read_metadata(reader, n_keys)
    tensors = _read_tensors(reader, n_tensors, metadata.get("general.alignment", 32))
    return _summary(reader, metadata, lengths, tensors)


class _Reader:
    """A place in the file, with a window of bytes around it that is refilled as the reading moves on."""

    # Long enough that a vocabulary takes few reads, short enough for a memory that does not grow with the file.
    WINDOW = 1 << 20

    def __init__(self, source: Source, label: str) -> None:
        self._source = source
        self._label = label
        self._window = b""
        self._start = 0  # of the window in the file
        self._at = 0  # of the next byte in the window
        self.kept = 0

    @property
    def position(self) -> int:
        """The offset of the next byte in the file."""
        return self._start + self._at

    @property
    def size(self) -> int:
        """Bytes in the whole file."""
        return self._source.size

    def fail(self, fault: str) -> NoReturn:
        """Raise `DamagedFile` with this fault."""
        raise DamagedFile(f"{self._label} is damaged or not a model ({safe_line(fault)}): fetch or copy the file again")

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        end = self._at + length
        if end > len(self._window):
            self._refill(length)
            end = length
        part = self._window[self._at : end]
        self._at = end
        return part

    def skip(self, length: int) -> None:
        """Pass over bytes without reading them."""
        if length > self.size - self.position:
            self._cut_short()
        self._at += length

    def u32(self) -> int:
        """The next unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def string(self, limit: int) -> str:
        """The next string; bytes that are not UTF-8 become replacement marks, which no key of ours contains."""
        length = self.u64()
        if length > self.size - self.position:
            self._cut_short()
        self.kept += length
        if length > limit or self.kept > _MAX_KEPT:
            self.fail(f"a text of {length} bytes stands where a short one belongs")
        return self.take(length).decode("utf-8", "replace")

    def numbers(self, kind: int, count: int) -> tuple[Scalar, ...]:
        """The next `count` numbers of a metadata type."""
        self.kept += 8 * count
        if self.kept > _MAX_KEPT:
            self.fail("its metadata are far larger than a model's")
        return struct.unpack(f"<{count}{_NUMBERS[kind]}", self.take(count * _SIZES[kind]))

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, looking at nothing but their lengths."""
        unpack = _U64.unpack_from
        while count:
            window, at = self._window, self._at
            left = count
            try:
                while left:
                    (length,) = unpack(window, at)
                    at += 8 + length
                    left -= 1
            except (struct.error, OverflowError):
                pass  # ran off the window, which the check below tells from running off the file
            if self._start + at > self.size:
                self._cut_short()
            self._at = at
            if left == count:
                self._refill(8)
            count = left

    def _refill(self, length: int) -> None:
        """Move the window here, with at least `length` bytes in it."""
        position = self.position
        if length > self.size - position:
            self._cut_short()
        self._window = self._source.read(position, max(length, self.WINDOW))
        self._start, self._at = position, 0
        if len(self._window) < length:
            self._cut_short()

    def _cut_short(self) -> NoReturn:
        self.fail("it is cut short, or a length in its header is wrong")


def _read_metadata(reader: _Reader, count: int) -> tuple[dict[str, Scalar | tuple[Scalar, ...]], dict[str, int]]:
    metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
    lengths: dict[str, int] = {}
    strings = 0
    for _ in range(count):
        key = reader.string(_MAX_NAME)
        if key in metadata or key in lengths:
            reader.fail(f'the metadata key "{key[:80]}" appears twice')
        kind = reader.u32()
        if kind == _STRING:
            metadata[key] = reader.string(_MAX_KEPT)
        elif kind in _NUMBERS:
            metadata[key] = reader.numbers(kind, 1)[0]
        elif kind == _ARRAY:
            kind, length = reader.u32(), reader.u64()
            lengths[key] = length
            if kind == _STRING:
                strings += length
                if strings > _MAX_STRINGS:
                    reader.fail(f'the array "{key[:80]}" claims to hold {length} texts')
                reader.skip_strings(length)
            elif kind in _NUMBERS:
                if length <= _MAX_KEPT_ARRAY:
                    metadata[key] = reader.numbers(kind, length)
                else:
                    reader.skip(length * _SIZES[kind])
            else:
                # llama.cpp has no arrays of arrays either.
                reader.fail(f'the array "{key[:80]}" holds values of an unknown type ({kind})')
        else:
            reader.fail(f'the metadata key "{key[:80]}" has a value of an unknown type ({kind})')
    return metadata, lengths


class _Tensors(msgspec.Struct):
    """Totals over the tensor table; `by_type` counts bytes for each type name."""

    count: int = 0
    values: int = 0
    size: int = 0
    by_type: Counter[str] = msgspec.field(default_factory=Counter)


def _read_tensors(reader: _Reader, count: int, alignment: object) -> _Tensors:
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        reader.fail(f"its alignment is {alignment}, not a power of two")
    totals = _Tensors(count=count)
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        name = reader.string(_MAX_NAME)
        shown = name[:80]
        if len(name.encode()) > _MAX_TENSOR_NAME or not name:
            reader.fail(f'the tensor name "{shown}" is empty or longer than {_MAX_TENSOR_NAME} bytes')
        if name in names:
            reader.fail(f'the tensor "{shown}" appears twice')
        names.add(name)
        n_dims = reader.u32()
        if n_dims > _MAX_DIMS:
            reader.fail(f'the tensor "{shown}" has {n_dims} dimensions')
        dims = struct.unpack(f"<{n_dims}Q", reader.take(8 * n_dims))
        kind, offset = reader.u32(), reader.u64()
        if kind not in TENSOR_TYPES:
            what = (
                f"{REMOVED_TENSOR_TYPES[kind]}, which was withdrawn"
                if kind in REMOVED_TENSOR_TYPES
                else f"number {kind}"
            )
            reader.fail(f'the tensor "{shown}" has a type that this engine does not read: {what}')
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        values = 1
        for dim in dims:
            values *= dim
        if not 0 < values < 1 << 63:
            reader.fail(f'the tensor "{shown}" has the impossible shape {" x ".join(map(str, dims))}')
        row = dims[0] if dims else 1
        if row % block:
            reader.fail(f'the tensor "{shown}" has rows of {row}, no multiple of {block} as {type_name} needs')
        # As llama.cpp demands: the data lie one after the other, each padded to the alignment, so none overlap.
        if offset != expected:
            reader.fail(f'the data of tensor "{shown}" begin at {offset} where {expected} was expected')
        size = values // block * block_bytes
        expected = _padded(offset + size, alignment)
        totals.values += values
        totals.size += size
        totals.by_type[type_name] += size
        last = offset + size
    if count:
        end = _padded(reader.position, alignment) + last
        if end > reader.size:
            reader.fail(f"it is cut short: {reader.size:,} of {end:,} bytes are there")
    return totals


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) & -alignment


def _summary(
    reader: _Reader, metadata: dict[str, Scalar | tuple[Scalar, ...]], lengths: dict[str, int], tensors: _Tensors
) -> Header:
    architecture = _text(metadata, "general.architecture")
    if not architecture:
        reader.fail("its metadata do not name an architecture")

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        values = value if isinstance(value, tuple) else (value,)
        whole = [one for one in values if isinstance(one, int)]
        if any(one < 0 for one in whole):
            reader.fail(f"{key} is negative")
        return max(whole, default=0)

    n_head = number("attention.head_count")
    embedding = number("embedding_length")
    head = embedding // n_head if n_head else 0
    file_type = metadata.get("general.file_type")
    # The high bit says that the type was guessed; some tools leave the label out altogether.
    label = FILE_TYPES.get(file_type & ~1024) if isinstance(file_type, int) else None
    return Header(
        architecture=architecture,
        name=_text(metadata, "general.name") or "",
        quantization=label or next((name for name, _ in tensors.by_type.most_common(1)), "unknown"),
        context=number("context_length"),
        n_layer=number("block_count"),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv") or n_head,
        key_length=number("attention.key_length") or head,
        value_length=number("attention.value_length") or head,
        embedding=embedding,
        vocabulary=lengths.get("tokenizer.ggml.tokens", 0),
        parameters=tensors.values,
        tensors=tensors.count,
        tensor_bytes=tensors.size,
        chat_template=_text(metadata, "tokenizer.chat_template"),
        metadata=metadata,
        lengths=lengths,
    )


def _text(metadata: dict[str, Scalar | tuple[Scalar, ...]], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None
