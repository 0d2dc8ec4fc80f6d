"""The store: which model files are on this machine, and which of them a name means.

Files keep plain names, `models/owner/repo/file.gguf`, with a record beside each. A file of the store is handed out only
once its sha256 was verified. The engine process imports this on its way to the first token: nothing here may import
anything that opens a connection, and nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from localchat.errors import DamagedFile, NeedsVerification, NoSuchModel
from localchat.models import gguf, records
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.names import is_projector, split_siblings
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
    file = path_of(name) if name else None
    if file:
        return _outside(file, may_hash, on_hashed, cancelled)
    found = list(_scan())
    chosen = _named(name, found) if name else _usual(found)
    return _verified(chosen, _names(found), may_hash, on_hashed, cancelled)


def find(name: str) -> ModelFile:
    """The model of the store that `name` means, as it lies there: nothing is verified. Raises `NoSuchModel`."""
    return matching(name)[0]


def matching(name: str) -> list[ModelFile]:
    """Every model of the store that `name` can mean, the one that `find` takes first. Raises `NoSuchModel`."""
    found = list(_scan())
    names = _names(found)
    path = path_of(name)
    candidates = [one for one in found if one.path == path] if path else _candidates(name, found)
    if not candidates:
        raise NoSuchModel(f"{safe_line(name)} is not in the models folder: `localchat import` takes it in")
    return [_described(one, names) for one in candidates]


def remembered(name: str) -> ModelFile:
    """The model of the store that `name` ("": the usual one) means, with the hash that it had when it was verified
    last, though it may have changed since. Raises `NoSuchModel`.
    """
    found = list(_scan())
    model = find(name) if name else _described(_usual(found), _names(found))
    known = [records.read(part) for part in parts(model.path)]
    return replace(model, sha256=_hash_of([one.sha256 for one in known if one]) if all(known) else None)


def parts(path: Path) -> list[Path]:
    """The parts that are there of the model whose first part is `path`, in order."""
    return [part for name in split_siblings(path.name) if (part := path.with_name(name)).is_file()]


def pinned(path: Path) -> Quantization | None:
    """What the catalogue says of the file that belongs at `path`; None where it says nothing."""
    try:
        known = catalogue().by_place.get(path.relative_to(paths().models).as_posix())
    except ValueError:
        return None
    return known[1] if known else None


def known_as(model: ModelFile) -> tuple[Entry, Quantization] | None:
    """What the catalogue has for a model: by what it was verified to be, else by place, name and size."""
    try:
        return _Found(model.path, model.path.relative_to(paths().models).as_posix()).known_as
    except ValueError:
        return _by_name_and_size(model.path)


def unknown(name: str, known: list[str] | None = None) -> str:
    """The sentence for a name that nothing goes by, with those of the `known` names (all there are) that are close."""
    if known is None:
        known = [*_names(list(_scan())).values(), *catalogue().names()]
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
    if kind == "model" and re.fullmatch(r"[a-z0-9][^/]*/[^/]+", wanted):
        return f'there is no model "{shown}" on this machine: "localchat pull {shown}" fetches it where the hub has it'
    return f'there is no {kind} "{shown}": "localchat models" lists those there are, or name a .gguf file'


def label_in(file: str) -> str:
    """The quantization that a file's name speaks of (`Q4_K_M`), or nothing."""
    labels = [match[1].upper() for match in _LABEL.finditer(file)]
    return labels[-1] if labels else ""


def _named(name: str, found: list[_Found]) -> _Found:
    """The file of the store that goes by `name`. Raises `NoSuchModel` with names that are close."""
    return _candidates(name, found)[0]


def _candidates(name: str, found: list[_Found]) -> list[_Found]:
    """The files that `name` can mean, the likeliest first. Raises `NoSuchModel` with names that are close."""
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
            first = (entry, entry.quantization[0])
            return sorted(mine, key=lambda one: (one.known_as == first, one.at_home, _recency(one)), reverse=True)
    for one in found:
        if wanted in (names[one.path].lower(), one.place.lower()):
            return [one]
    mine = [one for one in found if wanted in (one.path.name.lower(), one.path.stem.lower())]
    if mine:
        return mine
    repo, _, label = wanted.partition(":")
    mine = [one for one in found if one.place.lower().rpartition("/")[0] == repo]
    mine = [one for one in mine if not label or one.tag.lower() == label]
    if mine:
        return sorted(mine, key=_recency, reverse=True)
    if hit:
        raise NoSuchModel(
            f"{safe_line(name)} is in the catalogue but not on this machine: "
            f'"localchat pull {safe_line(name)}" fetches it'
        )
    raise NoSuchModel(unknown(name, [*names.values(), *catalogue().names()]))


def path_of(name: str) -> Path | None:
    """The file that `name` is a path to; None where it is none. Raises `NoSuchModel` for a path to nothing."""
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
    for path in _gguf_files(root, 2):
        if not is_projector(path.name) and split_siblings(path.name)[0] == path.name:
            yield _Found(path, path.relative_to(root).as_posix())


def _gguf_files(folder: Path, deeper: int) -> Iterator[Path]:
    """The GGUF files in a folder and those below it, by name, but for what vanishes meanwhile or cannot be read."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda one: one.name)
    except OSError:
        return
    for entry in entries:
        if deeper and _is(entry.is_dir):
            yield from _gguf_files(folder / entry.name, deeper - 1)
    for entry in entries:
        if entry.name.lower().endswith(".gguf") and _is(entry.is_file):
            yield folder / entry.name


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:
        return False


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


def _usual(found: list[_Found]) -> _Found:
    """The model that is meant where none is named. Raises `NoSuchModel`."""
    if not found:
        raise NoSuchModel("no model is installed: name a catalogue model or a file with -m")
    return max(found, key=_recency)


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
    except FileNotFoundError:
        # Another process removes models too.
        raise NoSuchModel(f"{safe_line(one.place)} was removed just now: `localchat models` lists those left") from None
    except OSError as error:
        raise DamagedFile(f"cannot read {safe_line(str(one.path))} ({error.strerror}): make it readable") from error
    if not one.record:
        # Now that it is known what the file is, it may go by another name than before.
        found = list(_scan())
        one = next((again for again in found if again.path == one.path), one)
        names = {**names, **_names(found)}  # it may have been removed meanwhile
    return replace(_described(one, names), sha256=_hash_of([part.sha256 for part in kept]))


def _hash_of(parts: list[str]) -> str | None:
    """A model's hash: that of its one file, or of the hashes of its parts; None where there are none."""
    if len(parts) > 1:
        import hashlib

        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return parts[0] if parts else None
