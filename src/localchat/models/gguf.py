"""Our own reader of GGUF headers: it stands in front of the engine, because a hostile file can abort native code.

Nothing in the file is believed: every length, count and offset is checked against the file's size before it is used,
what is kept in memory is capped, and a tensor whose data does not lie inside the file means a file cut short. Reads
versions 2 and 3, little endian, through any `Source` of bytes. Knows nothing of the store.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import msgspec

from localchat.errors import DamagedFile, NoSuchModel
from localchat.models.gguf_bytes import MAX_KEPT, NUMBER_BYTES, NUMBERS, Reader
from localchat.models.gguf_bytes import FileSource as FileSource
from localchat.models.gguf_bytes import Scalar as Scalar
from localchat.models.gguf_bytes import Source as Source
from localchat.models.gguf_types import FILE_TYPES, REMOVED_TENSOR_TYPES, TENSOR_TYPES
from localchat.models.names import split_siblings
from localchat.safe_text import safe_line

Part = Literal["embedding", "layers", "experts", "head"]
"""What a tensor is for: the table of token embeddings (of which a token reads one row), the layers without and with
their choice of experts, and the rest, which is the output head and what little there is beside it."""

# Caps far above any real model (the largest vocabularies have some 260,000 tokens and twice as many merges), so that a
# crafted file costs neither minutes nor gigabytes.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_STRINGS = 1 << 22
_MAX_NAME = 1 << 16
_MAX_KEPT_ARRAY = 1 << 12
# llama.cpp's own limits (GGML_MAX_NAME holds a closing NUL, GGML_MAX_DIMS).
_MAX_TENSOR_NAME = 63
_MAX_DIMS = 4

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS: llama.cpp aborts above it

_STRING, _ARRAY = 8, 9
_VOCABULARY = "tokenizer.ggml.tokens"
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF says about its model. Counts are 0 where the file does not say; sizes are bytes, context tokens.

    `n_head_kv` is the most that any layer has (`metadata` holds them layer by layer where they differ). `metadata`
    has every scalar and every short array of numbers; of long arrays and of those of strings only `lengths` is known.
    `weights` are bytes by tensor type; `is_tied`: there is no output matrix, so the embedding table serves as one.
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
    weights: dict[Part, dict[str, int]]
    layer_bytes: tuple[int, ...]
    is_tied: bool
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


def joined(headers: Sequence[Header]) -> Header:
    """The header of a split model: what its first part says of the model, and the tensors of all parts."""
    weights: dict[Part, Counter[str]] = {}
    for header in headers:
        for part, sizes in header.weights.items():
            weights.setdefault(part, Counter()).update(sizes)
    layers = zip_longest(*(header.layer_bytes for header in headers), fillvalue=0)
    return msgspec.structs.replace(
        headers[0],
        parameters=sum(header.parameters for header in headers),
        tensors=sum(header.tensors for header in headers),
        tensor_bytes=sum(header.tensor_bytes for header in headers),
        weights={part: dict(sizes) for part, sizes in weights.items()},
        layer_bytes=tuple(map(sum, layers)),
        is_tied=all(header.is_tied for header in headers),
    )


def parse(source: Source, label: str) -> Header:
    """Read and check a header; `label` names the file in errors. Raises `DamagedFile`."""
    reader = Reader(source, label)
    n_tensors, n_keys = _opened(reader)
    metadata, lengths = _read_metadata(reader, n_keys)
    tensors = _read_tensors(reader, n_tensors, metadata.get("general.alignment", 32))
    return _summary(reader, metadata, lengths, tensors)


def beginning(source: Source, label: str) -> Header:
    """What a file says before its vocabulary, which is megabytes; tensors, template and what else comes later is empty.

    Nearly all writers put the numbers of the architecture first. Raises `DamagedFile`.
    """
    reader = Reader(source, label)
    _, n_keys = _opened(reader)
    metadata, lengths = _read_metadata(reader, n_keys, before=_VOCABULARY)
    return _summary(reader, metadata, lengths, _Tensors())


def _opened(reader: Reader) -> tuple[int, int]:
    """Check what every file begins with; returns how many tensors and metadata keys it claims."""
    if reader.size < 24:
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
    return n_tensors, n_keys


def _read_metadata(
    reader: Reader, count: int, *, before: str = ""
) -> tuple[dict[str, Scalar | tuple[Scalar, ...]], dict[str, int]]:
    """The metadata, up to the items of the array `before` where one is named."""
    metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
    lengths: dict[str, int] = {}
    strings = 0
    for _ in range(count):
        key = reader.string(_MAX_NAME)
        if key in metadata or key in lengths:
            reader.fail(f'the metadata key "{key[:80]}" appears twice')
        kind = reader.u32()
        if kind == _STRING:
            metadata[key] = reader.string(MAX_KEPT)
        elif kind in NUMBERS:
            metadata[key] = reader.numbers(kind, 1)[0]
        elif kind == _ARRAY:
            kind, length = reader.u32(), reader.u64()
            lengths[key] = length
            if key == before:
                break
            if kind == _STRING:
                strings += length
                if strings > _MAX_STRINGS:
                    reader.fail(f'the array "{key[:80]}" claims to hold {length} texts')
                reader.skip_strings(length)
            elif kind in NUMBERS:
                if length <= _MAX_KEPT_ARRAY:
                    metadata[key] = reader.numbers(kind, length)
                else:
                    reader.skip(length * NUMBER_BYTES[kind])
            else:
                # llama.cpp has no arrays of arrays either.
                reader.fail(f'the array "{key[:80]}" holds values of an unknown type ({kind})')
        else:
            reader.fail(f'the metadata key "{key[:80]}" has a value of an unknown type ({kind})')
    return metadata, lengths


class _Tensors(msgspec.Struct):
    """Totals over the tensor table; `weights` counts bytes for each type name, `layers` for each layer."""

    count: int = 0
    values: int = 0
    size: int = 0
    is_tied: bool = True
    weights: dict[Part, Counter[str]] = msgspec.field(default_factory=dict)
    layers: Counter[int] = msgspec.field(default_factory=Counter)

    def add(self, name: str, type_name: str, values: int, size: int) -> None:
        """Count one tensor."""
        self.values += values
        self.size += size
        if name == "output.weight":
            self.is_tied = False
        part: Part = "head"
        if layer := _LAYER.match(name):
            part = "experts" if "_exps" in name else "layers"
            self.layers[int(layer[1])] += size
        elif name in ("token_embd.weight", "per_layer_token_embd.weight"):
            part = "embedding"
        self.weights.setdefault(part, Counter())[type_name] += size


def _read_tensors(reader: Reader, count: int, alignment: object) -> _Tensors:
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
        totals.add(name, type_name, values, size)
        last = offset + size
    if count:
        end = _padded(reader.position, alignment) + last
        if end > reader.size:
            reader.fail(f"it is cut short: {reader.size:,} of {end:,} bytes are there")
    return totals


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) & -alignment


def _summary(
    reader: Reader, metadata: dict[str, Scalar | tuple[Scalar, ...]], lengths: dict[str, int], tensors: _Tensors
) -> Header:
    architecture = _text(metadata, "general.architecture") or ""
    part = metadata.get("split.no", 0)
    if not architecture and not (isinstance(part, int) and part > 0):
        reader.fail("its metadata do not name an architecture")

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        values = value if isinstance(value, tuple) else (value,)
        whole = [one for one in values if isinstance(one, int)]
        if any(one < 0 for one in whole):
            reader.fail(f"{key} is negative")
        return max(whole, default=0)

    n_layer = number("block_count")
    if n_layer > _MAX_LAYERS:
        reader.fail(f"it claims to have {n_layer} layers")
    # Only the first part of a split model says how many there are.
    n_seen = max(tensors.layers, default=-1) + 1
    n_head = number("attention.head_count")
    embedding = number("embedding_length")
    head = embedding // n_head if n_head else 0
    file_type = metadata.get("general.file_type")
    # The high bit says that the type was guessed; some tools leave the label out altogether.
    label = FILE_TYPES.get(file_type & ~1024) if isinstance(file_type, int) else None
    by_type = sum(tensors.weights.values(), Counter())
    return Header(
        architecture=architecture,
        name=_text(metadata, "general.name") or "",
        quantization=label or next((name for name, _ in by_type.most_common(1)), "unknown"),
        context=number("context_length"),
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv") or n_head,
        key_length=number("attention.key_length") or head,
        value_length=number("attention.value_length") or head,
        embedding=embedding,
        vocabulary=lengths.get(_VOCABULARY, 0),
        parameters=tensors.values,
        tensors=tensors.count,
        tensor_bytes=tensors.size,
        weights={part: dict(sizes) for part, sizes in tensors.weights.items()},
        layer_bytes=tuple(tensors.layers[layer] for layer in range(n_layer or min(_MAX_LAYERS, n_seen))),
        is_tied=tensors.is_tied,
        chat_template=_text(metadata, "tokenizer.chat_template"),
        metadata=metadata,
        lengths=lengths,
    )


def _text(metadata: dict[str, Scalar | tuple[Scalar, ...]], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None
