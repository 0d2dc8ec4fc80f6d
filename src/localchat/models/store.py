"""The store: which model files are on this machine, and which of them a name means.

Files keep plain names, `models/owner/repo/file.gguf`, with a record beside each. A file of the store is handed out only
once its sha256 was verified. The engine process imports this on its way to the first token: nothing here may import
anything that opens a connection, and nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from localchat.errors import DamagedFile, NeedsVerification, NoSuchModel
from localchat.models import gguf, records
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.names import split_siblings
from localchat.paths import paths
from localchat.protocol import Sampling
from localchat.safe_text import safe_line
from localchat.settings import settings

_LABEL = re.compile(
    r"(?:^|[._-])((?:I?Q\d|TQ\d)(?:_[0-9A-Z]+)*|MXFP4|NVFP4|BF16|F16|F32)(?=[._-])", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class ModelFile:
    """A model on this machine. `name` is what `resolve` takes to find it again; `size` is bytes.

    `sha256` is None for a file outside the store (the person vouches for it), and for one that `installed` found and
    nobody used yet. `sampling` is what the model's makers recommend. A model in several parts has the path of its
    first part, the size of all, and the hash of their hashes.
    """

    name: str
    path: Path
    size: int
    sha256: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    source: str = ""
    quantization: str = ""


@dataclass(frozen=True)
class _Found:
    """A model file that lies in the store, with what is known of it before it is verified."""

    path: Path
    place: str
    """Its path below the models folder, with slashes."""

    @cached_property
    def record(self) -> records.Record | None:
        return records.read(self.path)

    @cached_property
    def known_as(self) -> tuple[Entry, Quantization] | None:
        """The catalogue's entry for it: by what it was verified to be, else by where it lies, else by name and size."""
        by_place = catalogue().by_place.get(self.place)
        if self.record:
            return catalogue().by_sha256.get(self.record.sha256) or by_place
        return by_place or _by_name_and_size(self.path)

    @property
    def short_name(self) -> str:
        """What the catalogue calls it, or nothing."""
        return self.known_as[0].short_name(self.known_as[1]) if self.known_as else ""

    @property
    def at_home(self) -> bool:
        """Whether it lies where the catalogue puts it; a copy elsewhere is the same model, but not the first choice."""
        return self.place in catalogue().by_place

    @property
    def tag(self) -> str:
        """The quantization by which it is told from its neighbours: the same before and after it was verified."""
        return self.known_as[1].label if self.known_as else label_in(self.path.name)

    @property
    def quantization(self) -> str:
        """The quantization that its header names, once that was read."""
        return (self.record.quantization if self.record else "") or self.tag


def installed() -> list[ModelFile]:
    """Every model of the store, by name; what was not verified yet has no `sha256`. Reads records, not the files."""
    found = list(_scan())
    names = _names(found)
    return sorted((_described(one, names) for one in found), key=lambda model: model.name)


def resolve(
    name: str | None = None,
    *,
    may_hash: bool = True,
    on_hashed: records.OnHashed | None = None,
    cancelled: records.Cancelled | None = None,
) -> ModelFile:
    """The model file that `name` means, verified: a catalogue name, an installed name, or a path to a GGUF file.

    None is the settings' model; where that says nothing, and for "", it is the one verified last, else one that was
    carried over by hand. Verifying may mean reading the whole file, which `on_hashed` follows; without `may_hash` that
    raises `NeedsVerification`. Raises `NoSuchModel`, `DamagedFile`.
    """
    if name is None:
        name = settings().model
    file = _as_path(name) if name else None
    if file:
        return _outside(file, may_hash, on_hashed, cancelled)
    found = list(_scan())
    if not name:
        if not found:
            raise NoSuchModel("no model is installed: name a catalogue model or a file with -m")
        chosen = max(found, key=_recency)
    else:
        chosen = _named(name, found)
    return _verified(chosen, _names(found), may_hash, on_hashed, cancelled)


def label_in(file: str) -> str:
    """The quantization that a file's name speaks of (`Q4_K_M`), or nothing."""
    labels = [match[1].upper() for match in _LABEL.finditer(file)]
    return labels[-1] if labels else ""


def _named(name: str, found: list[_Found]) -> _Found:
    """The file of the store that goes by `name`. Raises `NoSuchModel` with names that are close."""
    names = _names(found)
    wanted = name.strip().lower()
    hit = catalogue().find(name)
    if hit:
        entry, quantization = hit
        mine = [
            one
            for one in found
            if one.known_as and one.known_as[0] is entry and quantization in (None, one.known_as[1])
        ]
        if mine:
            # The quantization that the entry puts first, unless only others are here.
            return max(
                mine, key=lambda one: (one.known_as == (entry, entry.quantization[0]), one.at_home, _recency(one))
            )
    for one in found:
        if wanted in (names[one.path].lower(), one.place.lower(), one.path.name.lower(), one.path.stem.lower()):
            return one
    repo, _, label = wanted.partition(":")
    mine = [one for one in found if one.place.lower().rpartition("/")[0] == repo]
    mine = [one for one in mine if not label or one.tag.lower() == label]
    if mine:
        return max(mine, key=_recency)
    if hit:
        raise NoSuchModel(
            f"{safe_line(name)} is in the catalogue but not on this machine: "
            f'"localchat ask -m {safe_line(name)} hello" fetches it'
        )
    raise NoSuchModel(_no_such(name, [*names.values(), *catalogue().names()]))


def _no_such(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    spelled = {one.lower(): one for one in known}
    wanted = name.strip().lower()
    close = get_close_matches(wanted, spelled, n=3, cutoff=0.5)
    close += [one for one in spelled if len(wanted) > 2 and wanted in one and one not in close][: 3 - len(close)]
    shown = safe_line(name)
    shown = shown if len(shown) <= 100 else shown[:99] + "…"
    kind = "file" if wanted.endswith(".gguf") else "model"
    if close:
        return f'there is no {kind} "{shown}": did you mean {", ".join(safe_line(spelled[one]) for one in close)}?'
    return f'there is no {kind} "{shown}": "localchat models" lists those there are, or name a .gguf file'


def _as_path(name: str) -> Path | None:
    """The file that `name` is a path to; None where it is not one. Raises `NoSuchModel` for a path to nothing."""
    try:
        path = Path(name).expanduser()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):
        return None
    spelled_out = path.is_absolute() or name.startswith((".", "~"))
    if is_file and (spelled_out or name.lower().endswith(".gguf")):
        return Path(os.path.abspath(path))  # noqa: PTH100  (links stay: the person's name for it is the one to show)
    if spelled_out and path.is_dir():
        raise NoSuchModel(f"{safe_line(name)} is a folder: name the .gguf file in it")
    if spelled_out and not is_file:
        raise NoSuchModel(f"there is no file {safe_line(name)}: check its spelling")
    return None


def _outside(
    path: Path, may_hash: bool, on_hashed: records.OnHashed | None, cancelled: records.Cancelled | None
) -> ModelFile:
    """A file that the person named by path; inside the store it is held to the store's rules."""
    found = list(_scan())
    for one in found:
        if one.path == path:
            return _verified(one, _names(found), may_hash, on_hashed, cancelled)
    parts = gguf.shards(path)
    headers = [gguf.read_header(part) for part in parts]
    match = _by_name_and_size(parts[0])
    return ModelFile(
        name=str(path),
        path=parts[0],
        size=sum(part.stat().st_size for part in parts),
        sampling=match[0].sampling if match else Sampling(),
        source="your own file",
        quantization=headers[0].quantization,
    )


def _by_name_and_size(path: Path) -> tuple[Entry, Quantization] | None:
    """The catalogue's entry that a file with this name and size is most likely to be."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    return next(((e, q) for e, q in catalogue().files() if q.file == path.name and q.size == size), None)


def _scan() -> Iterator[_Found]:
    """Every model of the store: GGUF files at most three folders deep, of a model in parts the first one."""
    root = paths().models
    for pattern in ("*/*/*", "*/*", "*"):
        for path in sorted(root.glob(pattern)):
            name = path.name.lower()
            if not name.endswith(".gguf") or name.startswith((".", "mmproj")):
                continue
            if split_siblings(path.name)[0] == path.name and path.is_file():
                yield _Found(path, path.relative_to(root).as_posix())


def _names(found: list[_Found]) -> dict[Path, str]:
    """A name for each file that `resolve` understands and no other file has: as short as it can be."""
    folders = Counter(one.place.rpartition("/")[0] for one in found)
    candidates: dict[Path, list[str]] = {}
    taken = {one.short_name for one in found if one.at_home}
    for one in found:
        folder = one.place.rpartition("/")[0]
        names = []
        if one.short_name and (one.at_home or one.short_name not in taken):
            names.append(one.short_name)
        if folder.count("/") == 1:
            names += [folder] if folders[folder] == 1 else []
            names += [f"{folder}:{one.tag.lower()}"] if one.tag else []
        else:
            names.append(one.path.stem)
        candidates[one.path] = [*names, one.place]
    count = Counter(name.lower() for names in candidates.values() for name in names)
    return {path: next((n for n in names if count[n.lower()] == 1), names[-1]) for path, names in candidates.items()}


def _recency(one: _Found) -> tuple[float, int]:
    """Orders files by when they were verified; those that never were come first, by their own time."""
    try:
        return (one.record.verified.timestamp() if one.record else 0.0, one.path.stat().st_mtime_ns)
    except OSError:
        return (0.0, 0)


def _described(one: _Found, names: dict[Path, str]) -> ModelFile:
    try:
        status = one.path.stat()
        known = one.record if one.record and one.record.fits(status) else None
        sizes = [one.path.with_name(name).stat().st_size for name in split_siblings(one.path.name)]
    except OSError:
        status, known, sizes = None, None, []
    return ModelFile(
        name=names[one.path],
        path=one.path,
        size=sum(sizes),
        sha256=known.sha256 if known else None,
        sampling=one.known_as[0].sampling if one.known_as else Sampling(),
        source=one.record.source if one.record else "carried over by hand",
        quantization=one.quantization,
    )


def _verified(
    one: _Found,
    names: dict[Path, str],
    may_hash: bool,
    on_hashed: records.OnHashed | None,
    cancelled: records.Cancelled | None,
) -> ModelFile:
    """The model once every part of it has its hash verified. Raises `DamagedFile`, `NeedsVerification`."""
    parts = gguf.shards(one.path)
    if not may_hash and not all(records.is_current(part) for part in parts):
        raise NeedsVerification(f"{safe_line(one.place)} was not verified yet: ask again to have that done")
    # The hash that the catalogue pins counts where the file lies in the entry's own place under its own name.
    pin = one.known_as[1] if one.known_as and not one.record else None
    own_place = bool(pin and one.known_as and str(one.known_as[0].place(pin)) == one.place)
    try:
        kept = [
            records.verified(
                part,
                pinned=pin.sha256 if pin and own_place and part == one.path else None,
                pinned_size=pin.size if pin and own_place and part == one.path else None,
                on_hashed=on_hashed,
                cancelled=cancelled,
            )
            for part in parts
        ]
    except OSError as error:
        raise DamagedFile(f"cannot read {safe_line(str(one.path))} ({error.strerror}): make it readable") from error
    if not one.record:
        # Now that it is known what the file is, it may go by another name than before.
        found = list(_scan())
        one, names = next((again for again in found if again.path == one.path), one), _names(found)
    sha256 = kept[0].sha256
    if len(kept) > 1:
        import hashlib

        sha256 = hashlib.sha256("".join(part.sha256 for part in kept).encode()).hexdigest()
    return replace(_described(one, names), sha256=sha256)
