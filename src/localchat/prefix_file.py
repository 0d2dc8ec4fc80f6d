"""One saved piece of a prompt on disk: the container of the prefix cache, written at once and believed only when whole.

A file is a preface (magic with the version of the format, the lengths of what follows, the header's sha256), the
header, the payload, and the sha256 of all before it. A file that was cut short shows by its size alone; no byte of a
payload is handed out before the whole file's hash was found right: llama.cpp ends the process on a state that lacks one
byte. Nothing native is loaded here, and nothing is known of which entries there are (`prefixes`).
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview
Kind = Literal["chunk", "whole", "checkpoint"]
"""What a payload is. "chunk": the KV cache of its own tokens, on top of its parent's. "whole": the state of a sequence
after all its tokens, where a model's memory cannot be cut. "checkpoint": bytes that mean something to who made them,
and belong to the state after all its tokens."""

SUFFIX = ".kv"
_MAGIC = b"lcprefx1"
_PREFACE = struct.Struct("<8sIQ32s")
_DIGEST = 32
_LONGEST_HEADER = 1 << 26
_ROOT = ""

Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Broken(Exception):
    """A file that is not what it should be; the message says what is wrong."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of its payload.

    `key` stands for all that the payload depends on beside its tokens (`key_of`); `model` and `engine` are two of those
    in clear, to tell people about. `parent` is the id of the entry before this one ("": none), `start` the position of
    the first token, `tokens` 32-bit ids. `read_ms`: what the model took to read these tokens.
    """

    key: Hex
    model: str
    engine: str
    kind: Kind
    parent: str
    start: Annotated[int, msgspec.Meta(ge=0)]
    tokens: Annotated[bytes, msgspec.Meta(min_length=4)]
    read_ms: Annotated[float, msgspec.Meta(ge=0)]

    @property
    def id(self) -> str:
        """The entry's name: a hash of what it continues, of what kind it is, and of its tokens."""
        return entry_id(self.key, self.kind, self.parent, self.tokens)

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What it is and what it belongs to. Two processes that read the same say the same; only `read_ms` differs."""
        return self.id, self.key, self.parent, self.start


@dataclass(eq=False)
class Entry:
    """A file of the cache as its header describes it. `size` is bytes, `used` nanoseconds since 1970."""

    path: Path
    header: Header
    size: int
    used: int

    def __post_init__(self) -> None:
        self.id = self.path.stem
        self.tokens = array("i", self.header.tokens)
        self.end = self.header.start + len(self.tokens)
        """The position after the last token."""


def entry_id(key: str, kind: Kind, parent: str, tokens: bytes) -> str:
    """The id of the entry that continues `parent` by `tokens`: 32 hex digits."""
    return hashlib.sha256(f"{key} {kind} {parent or _ROOT} ".encode() + tokens).hexdigest()[:32]


def key_of(**what: object) -> str:
    """One key for all that a state depends on beside its tokens; any other value of any of them is another key."""
    return hashlib.sha256(msgspec.json.encode(sorted(what.items()))).hexdigest()[:32]


def write(path: Path, header: Header, payload: Buffer) -> int:
    """Put an entry into its place, at once or not at all, readable by this user only. Returns its size in bytes.

    Nothing is forced to the disk: a file torn by a power cut is found out when it is read. Raises `OSError`.
    """
    encoded = msgspec.msgpack.encode(header)
    preface = _PREFACE.pack(_MAGIC, len(encoded), len(payload), hashlib.sha256(encoded).digest())
    digest = hashlib.sha256(preface)
    digest.update(encoded)
    digest.update(payload)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as target:
            for part in (preface + encoded, payload, digest.digest()):
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[target.write(rest) :]
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return len(preface) + len(encoded) + len(payload) + _DIGEST


def describe(path: Path) -> Entry:
    """What a file says of itself, without its payload. Raises `Broken` where it cannot be right, and `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        raw = file.read(_PREFACE.size)
        header_length, _ = _lengths(raw, status.st_size)
        encoded = file.read(header_length)
    header = _header(raw, encoded)
    if header.id != path.stem:
        raise Broken("its name is another entry's")
    return Entry(path, header, status.st_size, status.st_mtime_ns)


def read(entry: Entry) -> memoryview:
    """The payload of an entry, verified to the last byte, in writable memory of its own.

    Raises `Broken` where one byte is not what was written, and `OSError`.
    """
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        total = os.fstat(descriptor).st_size
        if total != entry.size:
            raise Broken(f"it has {total} bytes where {entry.size} were written")
        content = memoryview(bytearray(total))
        done = 0
        while done < total:
            count = file.readinto(content[done:])
            if not count:
                raise Broken("it ends too early")
            done += count
    preface = bytes(content[: _PREFACE.size])
    header_length, payload_length = _lengths(preface, total)
    begin = _PREFACE.size + header_length
    if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise Broken("its checksum is wrong")
    if _header(preface, bytes(content[_PREFACE.size : begin])).place != entry.header.place:
        raise Broken("it is another entry than it was")
    return content[begin : begin + payload_length]


def _lengths(preface: bytes, size: int) -> tuple[int, int]:
    if len(preface) < _PREFACE.size:
        raise Broken("it ends too early")
    magic, header_length, payload_length, _ = _PREFACE.unpack(preface)
    if magic != _MAGIC:
        raise Broken("it is of another version, or no such file at all")
    if header_length > _LONGEST_HEADER or _PREFACE.size + header_length + payload_length + _DIGEST != size:
        raise Broken("its size is not what it says")
    return header_length, payload_length


def _header(preface: bytes, encoded: bytes) -> Header:
    if hashlib.sha256(encoded).digest() != _PREFACE.unpack(preface)[3]:
        raise Broken("the checksum of its header is wrong")
    try:
        header = msgspec.msgpack.decode(encoded, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Broken(f"its header cannot be understood ({error})") from error
    if len(header.tokens) % 4:
        raise Broken("its header ends within a token")
    return header
