"""What a model file says of itself, in the few facts that lists and estimates need, kept so that it is read once.

Reading a header takes 12 to 40 ms, most of it the vocabulary; forty models would take a second each time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from localchat.errors import LocalchatError
from localchat.models import gguf, shape
from localchat.models.shape import Shape
from localchat.paths import paths, write_private

_VERSION = 1
_KEPT = 2000
_LARGEST_NUMBER = 1 << 40
"""Above every number of a real model's shape (the largest is how many parameters a token uses)."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one model. Counts are 0, and texts empty, where the file does not say; `weights` are bytes
    by part and tensor type.
    """

    architecture: str
    name: str = ""
    parameters: int = 0
    context: int = 0
    quantization: str = ""
    license: str = ""
    thinks: bool = False
    shape: Shape | None = None
    weights: dict[str, dict[str, int]] = {}

    @classmethod
    def of(cls, header: gguf.Header) -> About:
        """The facts in a header, or in the beginning of one."""
        stated = header.metadata.get("general.license")
        return cls(
            architecture=header.architecture,
            name=header.name,
            parameters=header.parameters,
            context=header.context,
            quantization=header.quantization,
            license=stated if isinstance(stated, str) else "",
            thinks="<think" in (header.chat_template or ""),
            shape=_shape(header),
            weights={part: dict(sizes) for part, sizes in header.weights.items()},
        )


def _shape(header: gguf.Header) -> Shape | None:
    """The shape, where the header tells one that a model can have: other numbers come from a hostile file."""
    if not (header.n_layer and header.embedding and header.vocabulary):
        return None
    found = shape.of_header(header)
    layers = [number for layer in found.each for number in (layer.kv, layer.window, layer.state)]
    others = [number for number in msgspec.structs.astuple(found) if isinstance(number, int)]
    return found if found.layers and max([*layers, *others]) <= _LARGEST_NUMBER else None


class _Kept(msgspec.Struct):
    """The facts of one file, and what changes when the file does."""

    stamp: tuple[int, int]
    about: About


class _Index(msgspec.Struct):
    version: int = _VERSION
    files: dict[str, _Kept] = {}


def of_files(files: list[Path]) -> dict[Path, About]:
    """The facts of these (first parts of) models; files that cannot be read are left out."""
    index = _read()
    found: dict[Path, About] = {}
    changed = False
    for file in files:
        try:
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            # JSON holds no name that is not UTF-8.
            key = str(file).encode(errors="backslashreplace").decode()
            kept = index.files.get(key)
            if not kept or kept.stamp != stamp:
                parts = [gguf.read_header(part) for part in gguf.shards(file)]
                kept = _Kept(stamp, About.of(gguf.joined(parts)))
                index.files[key] = kept
                changed = True
        except (LocalchatError, OSError):
            continue
        found[file] = kept.about
    if changed:
        _write(index)
    return found


def _file() -> Path:
    return paths().state / "headers.json"


def _read() -> _Index:
    try:
        index = msgspec.json.decode(_file().read_bytes(), type=_Index)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Index()
    return index if index.version == _VERSION else _Index()


def _write(index: _Index) -> None:
    """Keep the facts for the next time; where that cannot be, they are read again."""
    if len(index.files) > _KEPT:
        index.files = {name: kept for name, kept in index.files.items() if os.path.exists(name)}  # noqa: PTH110
    with suppress(OSError, LocalchatError):
        write_private(_file(), msgspec.json.encode(index))
