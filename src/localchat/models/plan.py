"""What a fetch would bring, decided before a byte of it moves: which files, from where, to which place, if they fit.

A name means a catalogue entry (`qwen3-4b`, `qwen3-4b:q8_0`), a hub's repo (`owner/repo`, `owner/repo:Q4_K_M`,
`owner/repo@v1`, `owner/repo/file.gguf`), or a web address.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from localchat import trials
from localchat.errors import DoesNotFit, FetchError, NoSuchModel, UsageError
from localchat.models import wanted as wanted_files
from localchat.models.assess import Assessment, Circumstances, assess, choose, is_capped
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.names import (
    RefusedName,
    check_member,
    check_part,
    check_repo,
    is_projector,
    place_of,
    split_siblings,
)
from localchat.models.shape import Shape
from localchat.models.store import label_in, path_of, unknown
from localchat.models.wanted import Wanted
from localchat.paths import paths
from localchat.safe_text import safe_line

if TYPE_CHECKING:
    from localchat.models.repos import RemoteFile, Repo

_HUBS = ("huggingface.co", "hf.co")
# A projector is small and 16 bits are what its makers tested.
_PROJECTOR_ORDER = ("F16", "BF16", "Q8_0", "F32")
_GB = 1e9


@dataclass(frozen=True)
class Plan:
    """What would be fetched. `files` are the model's parts in order, then its projector; `why` explains the choice."""

    name: str
    label: str
    files: tuple[Wanted, ...]
    assessment: Assessment
    available: int
    why: str = ""
    license: str = ""
    gated: bool = False
    trained: int | None = None
    """The largest context, in tokens, where the beginning of a repo's file had to be read for it."""

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where one of them is not known."""
        return _in_all(file.size for file in self.files)

    @property
    def is_here(self) -> bool:
        """Whether every file lies in its place already (`fetch` verifies it all the same)."""
        return all((paths().models / file.place).is_file() for file in self.files)

    def check_fit(self) -> None:
        """Raise `DoesNotFit` where the model cannot run in the memory that is free."""
        memory = self.assessment.memory
        if self.assessment.fits == "no" and memory:
            capped = is_capped(self.available)
            state = "left for it under --max-ram: raise it" if capped else "free: close other programs"
            raise DoesNotFit(
                f"{self.name} ({self.label}) needs {memory.total / _GB:.1f} GB with a context of "
                f"{self.assessment.context:,} tokens and {self.available / _GB:.1f} GB are {state}, "
                "take a smaller model or quantization (`localchat models` shows what fits), or fetch it anyway with "
                f"`localchat pull --force {self.name}`"
            )


def make(name: str, circumstances: Circumstances | None = None, *, sha256: str | None = None) -> Plan:
    """The plan for what `name` means. Raises `NoSuchModel`, `UsageError`, `FetchError` (the hub had to be asked)."""
    circumstances = circumstances or Circumstances.now()
    name = name.strip()
    entry = catalogue().find(name)
    if entry and sha256 is not None:
        raise UsageError(f"{entry[0].name} is held to the catalogue's own hash, or its hub's: leave out --sha256")
    if entry:
        return of_entry(*entry, circumstances)
    of_hub = _of_hub(name)
    if of_hub.repo:
        # What opens connections takes long to import, and is not needed for what is known here.
        from localchat.models.repos import listing

        found = listing(of_hub.repo, of_hub.revision)
        return of_repo(found, circumstances, label=of_hub.label, file=of_hub.file, sha256=sha256)
    if "://" in name:
        return _of_address(name, circumstances, sha256)
    if name.lower().endswith(".gguf") and path_of(name):
        raise UsageError(
            f"{safe_line(name)} is a file on this machine: `localchat import {safe_line(name)}` takes it in"
        )
    raise NoSuchModel(unknown(name))


def of_entry(entry: Entry, quantization: Quantization | None, circumstances: Circumstances | None = None) -> Plan:
    """The plan for a catalogue entry, in the quantization that suits this machine unless one is given."""
    circumstances = circumstances or Circumstances.now()
    if quantization is None:
        quantization, assessment, why = suited(entry, circumstances)
    else:
        assessment, why = assess_entry(entry, quantization, circumstances), ""
    files = [wanted_files.of_entry(entry, quantization)]
    if entry.projector:
        files.append(wanted_files.of_entry(entry, entry.projector))
    return Plan(
        f"{entry.name}:{quantization.name}",
        quantization.label,
        tuple(files),
        assessment,
        circumstances.available,
        why if len(entry.quantization) > 1 else "",
        entry.license,
    )


def suited(entry: Entry, circumstances: Circumstances) -> tuple[Quantization, Assessment, str]:
    """The quantization of an entry that suits this machine, how it would do, and why it; the smallest where none fits.

    It is one whose size is known, where that is known of any.
    """
    known = [one for one in entry.quantization if one.size] or entry.quantization
    assessed = [(one, one.label, assess_entry(entry, one, circumstances)) for one in known]
    quantization, why = choose(assessed) or (min(known, key=lambda one: one.size or 1 << 60), "")
    return quantization, next(how for one, _, how in assessed if one is quantization), why


def assess_entry(entry: Entry, quantization: Quantization, circumstances: Circumstances) -> Assessment:
    """How one of a catalogue entry's files would do here."""
    return assess(
        circumstances,
        label=quantization.label,
        size=quantization.size,
        shape=entry.shape,
        parameters=entry.parameters,
        trained=entry.context,
        kept=trials.of_model(quantization.sha256) if quantization.sha256 else None,
        correction=trials.correction(entry.name),
    )


@dataclass(frozen=True)
class Offer:
    """One model of a repo: all its parts in one quantization."""

    label: str
    parts: tuple[RemoteFile, ...]

    @property
    def size(self) -> int | None:
        """Bytes of all parts; None where the hub does not say."""
        return _in_all(part.size for part in self.parts)


def _in_all(sizes: Iterable[int | None]) -> int | None:
    """The sum; None where one of them is not known."""
    known = list(sizes)
    return None if None in known else sum(size for size in known if size)


def offers(repo: Repo) -> list[Offer]:
    """The models in a repo, each complete. Parts whose siblings are missing, and hostile names, are left out."""
    by_path = {file.path: file for file in repo.files}
    found = []
    for file in repo.files:
        folder, _, name = file.path.rpartition("/")
        if is_projector(name) or "imatrix" in name.lower() or not _is_plain(file.path):
            continue
        siblings = split_siblings(name)
        if siblings[0] != name:
            continue
        parts = [by_path.get(f"{folder}/{sibling}" if folder else sibling) for sibling in siblings]
        if None not in parts:
            found.append(Offer(label_in(name) or label_in(f"{folder}.") or "?", tuple(part for part in parts if part)))
    return found


def of_repo(
    repo: Repo,
    circumstances: Circumstances,
    *,
    label: str = "",
    file: str = "",
    sha256: str | None = None,
) -> Plan:
    """The plan for a repo of a hub. Raises `NoSuchModel`, listing what it has where that is not there."""
    there = everything = offers(repo)
    shown = safe_line(repo.name)
    if not there:
        raise NoSuchModel(
            f"{shown} has no GGUF model: look for one made from it with `localchat models --search "
            f'"{shown.rpartition("/")[2]}"`'
        )
    if file:
        there = [offer for offer in there if file in (offer.parts[0].path, offer.parts[0].path.rpartition("/")[2])]
        if not there:
            names = ", ".join(safe_line(offer.parts[0].path) for offer in everything[:6])
            raise NoSuchModel(f"{shown} has no model {safe_line(file)}: it has {names}")
    if label:
        mine = [offer for offer in there if offer.label.upper() == label.upper()]
        if not mine:
            raise NoSuchModel(f"{shown} has no quantization {safe_line(label)}: it has {_known(there)}")
        there = mine
    twice = [one for one, count in Counter(offer.label for offer in there).items() if count > 1]
    if twice and (label or len(twice) == len({offer.label for offer in there})):
        names = ", ".join(safe_line(offer.parts[0].path) for offer in there[:6])
        raise UsageError(f"{shown} has several models ({names}): name one as {shown}/FILE.gguf")
    shape, parameters, trained = _shape_of(repo, there[0])
    assessed = [
        (
            offer,
            offer.label,
            assess(
                circumstances,
                label=offer.label,
                size=offer.size,
                shape=shape,
                parameters=parameters,
                trained=trained,
            ),
        )
        for offer in there
    ]
    chosen = choose(assessed)
    offer, why = chosen or (min(there, key=lambda one: one.size or 1 << 60), "")
    assessment = next(one[2] for one in assessed if one[0] is offer)
    is_clear = offer.label != "?" and [one.label for one in everything].count(offer.label) == 1
    name = f"{repo.name}:{offer.label.lower()}" if is_clear else f"{repo.name}/{offer.parts[0].path}"
    files = [_wanted(name, repo, part) for part in offer.parts]
    if sha256 is not None:
        if len(files) > 1:
            raise UsageError(f"{name} has {len(files)} parts, and --sha256 is the hash of one file: leave it out")
        files = [replace(files[0], sha256=sha256)]
    projector = _projector(repo)
    if projector:
        files.append(_wanted(name, repo, projector))
    return Plan(
        name, offer.label, tuple(files), assessment, circumstances.available,
        why if len(there) > 1 else "", repo.license, repo.gated, trained,
    )  # fmt: skip


def _shape_of(repo: Repo, offer: Offer) -> tuple[Shape | None, int | None, int | None]:
    """The shape of a repo's model, from the beginning of one of its files; all quantizations have the same."""
    from localchat.models import remote

    about = remote.about(repo, offer.parts[0])
    return (about.shape, about.parameters or None, about.context or None) if about else (None, None, None)


def _wanted(name: str, repo: Repo, file: RemoteFile) -> Wanted:
    return wanted_files.of_repo(name, repo.name, repo.commit or "main", file.path, file.size, file.sha256)


def _projector(repo: Repo) -> RemoteFile | None:
    """The file that lets the repo's model see, in the precision its makers tested first."""
    there = [file for file in repo.files if is_projector(file.path) and _is_plain(file.path)]
    order = {label: place for place, label in enumerate(_PROJECTOR_ORDER)}
    return min(there, key=lambda file: order.get(label_in(file.path), len(order)), default=None)


def _is_plain(path: str) -> bool:
    try:
        check_member(path)
    except RefusedName:
        return False
    return True


def _known(there: Sequence[Offer]) -> str:
    labels: Mapping[str, None] = dict.fromkeys(safe_line(offer.label) for offer in there)
    return ", ".join(labels)


class _OfHub(NamedTuple):
    """What of a hub a name means; `repo` is "" where it means none."""

    repo: str = ""
    revision: str = "main"
    label: str = ""
    file: str = ""


def _of_hub(name: str) -> _OfHub:
    """Take a name apart: one that a person types, or an address that a browser shows. Raises `RefusedName`."""
    try:
        found = _from_address(name) if "://" in name else _from_words(name)
    except ValueError:
        raise UsageError(f"{safe_line(name)} is no web address: check its spelling") from None
    if found.repo:
        check_repo(found.repo)
        for part in found.revision.split("/"):
            check_part(part, "revision")
    return found


def _from_words(name: str) -> _OfHub:
    """`owner/repo`, with `:quantization`, `@revision` or `/file.gguf` behind it."""
    for hub_name in _HUBS:
        name = name.removeprefix(f"{hub_name}/")
    name, _, revision = name.partition("@")
    revision, _, late = revision.partition(":")
    name, _, label = name.partition(":")
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if not repo or owner in (".", "..", "~", ""):
        return _OfHub()
    return _OfHub(f"{owner}/{repo}", revision or "main", label or late, file)


def _from_address(url: str) -> _OfHub:
    """The address of a repo, or of a file in one, at a hub."""
    parts = urlsplit(url)
    if parts.hostname not in _HUBS and parts.netloc != _endpoint():
        return _OfHub()
    owner, repo, kind, revision, *path = [*unquote(parts.path).strip("/").split("/"), "", "", "", ""]
    if not repo:
        return _OfHub()
    is_file = kind in ("resolve", "blob", "raw")
    return _OfHub(f"{owner}/{repo}", revision or "main", "", "/".join(filter(None, path)) if is_file else "")


def _endpoint() -> str:
    from localchat.models import hub

    return urlsplit(hub.endpoint()).netloc


def _of_address(url: str, circumstances: Circumstances, sha256: str | None) -> Plan:
    """The plan for a file at a plain web address, which promises nothing about it."""
    from localchat.models.transfer.transport import TransportError, check_url

    try:
        check_url(url)
    except TransportError as error:
        raise FetchError(f"{error.reason}: give an address that begins with https://") from error
    parts = urlsplit(url)
    name = unquote(parts.path).rpartition("/")[2]
    host = re.sub(r"[^A-Za-z0-9._-]", "-", parts.hostname or "")
    try:
        place = place_of(f"web/{host}", name)
    except RefusedName as error:
        raise UsageError(
            f"{safe_line(url)} does not end in the plain name of a .gguf file: give its direct address"
        ) from error
    if len(split_siblings(name)) > 1:
        raise UsageError(f"{safe_line(name)} is one of several parts: fetch each and `localchat import` the first")
    wanted = wanted_files.of_address(str(place), PurePosixPath(place), url, None, sha256)
    assessment = assess(circumstances, label="", size=None, shape=None)
    return Plan(str(place), label_in(name) or "?", (wanted,), assessment, circumstances.available)
