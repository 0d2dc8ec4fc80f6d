"""Where an imported file belongs in the store, and what it is called there.

What is known for sure decides first: what the person says, the catalogue's hashes, the record that came along, the
program that holds the file, and last what the file says of itself, which never brings it to a place that the catalogue
keeps for another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from localchat.errors import UsageError
from localchat.models import records, store
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.gguf import Header
from localchat.models.names import RefusedName, check_part, check_repo, is_projector, split_siblings
from localchat.models.upkeep import projectors
from localchat.models.upkeep.foreign import Foreign
from localchat.paths import paths
from localchat.safe_text import safe_line

_LONGEST_STEM = 150


@dataclass(frozen=True)
class File:
    """One file on its way in: where it lies, what it will be called, and its hash once that is known.

    `status` is its inode, size and time when it was first looked at.
    """

    path: Path
    name: str
    header: Header
    status: tuple[int, int, int]
    sha256: str = ""

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.status[1]


def destination(files: list[File], repo: str, held: Foreign | None) -> tuple[PurePosixPath, list[File]]:
    """The folder below the models folder, and the files under the names that they will have there."""
    first = files[0]
    known = catalogue().by_sha256.get(first.sha256) or _unpinned(first)
    if known and not repo:
        entry, quantization = known
        place = entry.place(quantization)
        names = split_siblings(place.name)
        for file in files[len(names) :]:
            is_its_own = entry.projector and entry.projector.sha256 == file.sha256
            names.append(entry.projector.file if entry.projector and is_its_own else file.name)
        return place.parent, [replace(file, name=name) for file, name in zip(files, names, strict=True)]
    # Case is ignored, as the file systems of some machines do.
    kept = {place.lower(): one for place, one in catalogue().by_place.items()}
    for candidate in [repo] if repo else _repos(first, held):
        folder = PurePosixPath(candidate)
        owner = kept.get(str(folder / first.name).lower())
        if not owner or owner == known:
            return folder, files
        if repo:
            raise UsageError(
                f"{folder / first.name} is the place of {owner[0].short_name(owner[1])}, and this is another file: "
                "choose another --name"
            )
    raise UsageError(
        f"the catalogue has other files wherever {safe_line(first.name)} could go: choose a place with --name"
    )


def _unpinned(first: File) -> tuple[Entry, Quantization] | None:
    """The catalogue's file that has this name and size, where nobody pinned its hash."""
    for entry, one in catalogue().files():
        if one.sha256 is None and (one.file, one.size) == (first.path.name, first.size):
            return entry, one
    return None


def _repos(first: File, held: Foreign | None) -> list[str]:
    """Where the file may belong, as owner/repo, the surest first; the last one can always be had."""
    record = records.read(first.path)
    candidates = []
    if record:
        # `export` keeps the folders of the store.
        candidates += [re.split("[:@]", record.name)[0], "/".join(first.path.absolute().parts[-3:-1])]
    if held:
        candidates.append(held.repo)
    metadata = first.header.metadata
    url = metadata.get("general.repo_url")
    if isinstance(url, str):
        candidates.append(_path_of(url))
    owner, base, size = (metadata.get(f"general.{key}") for key in ("organization", "basename", "size_label"))
    if isinstance(owner, str) and isinstance(base, str):
        sized = isinstance(size, str) and size.lower() not in base.lower()
        candidates.append(f"{owner}/{base}-{size}" if sized else f"{owner}/{base}")
    local = f"local/{plain(projectors.base_of(first.name))}"
    numbered = [f"{local}-{number}" for number in range(2, 100)]
    # Several programs may each have a "model.gguf" of their own.
    free = (one for one in [local, *numbered] if not _holds_another(PurePosixPath(one) / first.name, first))
    return [*filter(_is_plain, candidates), next(free, local)]


def _holds_another(place: PurePosixPath, file: File) -> bool:
    """Whether a file of the store with other bytes, as far as its record tells, has this place."""
    target = paths().models / place
    record = records.read(target)
    return target.exists() and not (record and record.sha256 == file.sha256)


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path.strip("/")
    except ValueError:
        return ""


def _is_plain(repo: str) -> bool:
    try:
        check_repo(repo)
    except RefusedName:
        return False
    return True


def names_of(parts: Sequence[Path], header: Header, held: Foreign | None) -> list[str]:
    """What the parts will be called: their own names made plain, or one made up where they have none."""
    first = held.file if held and held.file else parts[0].name
    if not first.lower().endswith(".gguf"):
        first = f"{header.name or header.architecture}.gguf"
    stem, ending = first[: -len(".gguf")], first[-len(".gguf") :]
    if len(parts) > 1:
        stem, ending = stem[: -len("-00001-of-00001")], parts[0].name[-len("-00001-of-00001.gguf") :]
    stem = plain(stem)
    if not store.label_in(stem + ending) and header.quantization:
        stem = f"{stem}-{plain(header.quantization)}"  # by which it is told from its neighbours
    return split_siblings(stem + ending)


def projector_name(projector: Path, model: str) -> str:
    """What the projector will be called, so that it is known as one."""
    name = projector.name
    if is_projector(name) and name.lower().endswith(".gguf"):
        return f"{plain(name[: -len('.gguf')])}.gguf"
    return f"mmproj-{model.partition('-00001-of-')[0].removesuffix('.gguf')}.gguf"


def plain(text: str) -> str:
    """`text` as a name that can be a file or a folder everywhere: what cannot be in one becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:_LONGEST_STEM].strip("-._+")
    try:
        return check_part(name)
    except RefusedName:
        return f"model-{name}" if name else "model"
