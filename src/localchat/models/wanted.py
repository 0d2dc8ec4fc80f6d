"""One file that is to be fetched: what is known beforehand, where it can be had, where it will lie. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from localchat.models.catalogue import Entry, Hub, Mirror, Quantization, Source
from localchat.models.names import place_of


@dataclass(frozen=True)
class Wanted:
    """A file for the store. `name` is what a person types for its model, `place` its path below the models folder.

    `size` (bytes) and `sha256` are None where only the source can tell them. `entry_name` is what a mirror's address
    may hold as `{name}`.
    """

    name: str
    place: PurePosixPath
    sources: tuple[Source, ...]
    size: int | None = None
    sha256: str | None = None
    entry_name: str = ""


def of_entry(entry: Entry, quantization: Quantization) -> Wanted:
    """A catalogue entry's file."""
    return Wanted(
        name=f"{entry.name}:{quantization.name}",
        place=entry.place(quantization),
        sources=tuple(quantization.source),
        size=quantization.size,
        sha256=quantization.sha256,
        entry_name=entry.name,
    )


def of_repo(name: str, repo: str, commit: str, path: str, size: int | None, sha256: str | None) -> Wanted:
    """A file at `path` of a hub's repo; its folders there do not matter here. Raises `RefusedName`."""
    return Wanted(name, place_of(repo, path.rpartition("/")[2]), (Hub(repo, commit, path),), size, sha256)


def of_address(name: str, place: PurePosixPath, url: str, size: int | None, sha256: str | None) -> Wanted:
    """A file at a plain web address."""
    return Wanted(name, place, (Mirror(url.replace("{", "{{").replace("}", "}}")),), size, sha256)


def in_order(files: Sequence[Wanted]) -> list[Wanted]:
    """The files of one model in the order in which they are fetched: the first part last.

    The store knows a model by its first part, so a model that is not complete yet is not seen as one.
    """
    return [*reversed(files)]
