"""Names that came from somewhere else: what may become a folder or a file of the store, and what may not.

Names from hubs, catalogues and records are data. A name is refused if it could leave the models folder, or mean
something else than a plain file, under POSIX *or* Windows rules, whatever this machine runs: a models folder travels
on USB sticks. Knows nothing of disks.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePosixPath

from localchat.errors import UsageError
from localchat.safe_text import safe_line

# Linux takes 255 bytes in a name and Windows 255 UTF-16 units; the room left is for ".partial.json" and the like.
_NAME_LIMIT = 200
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
# Windows opens these devices whatever the extension, and since Windows 10 also with superscript digits.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE | re.ASCII)
# The largest models have some dozens; a name that claims more must not cost as many look-ups.
_MOST_PARTS = 1024
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.ASCII)


class RefusedName(UsageError, ValueError):
    """A name that must not become a place on this machine (a `ValueError` too: structs may raise it when decoded)."""


def check_part(name: str, what: str = "name") -> str:
    """`name`, if it can be one plain folder or file name everywhere; raises `RefusedName` naming `what` otherwise."""
    fault = _fault_of(name)
    if fault:
        raise RefusedName(f'refused the {what} "{_shown(name)}", which {fault}: choose another source for this model')
    return name


def check_repo(repo: str) -> str:
    """`repo`, if it is a plain `owner/repo`; raises `RefusedName` otherwise."""
    parts = repo.split("/")
    if len(parts) != 2:
        raise RefusedName(f'refused the repo "{_shown(repo)}", which is not of the form owner/repo: check its spelling')
    for part in parts:
        check_part(part, "repo")
    return repo


def check_file(file: str) -> str:
    """`file`, if it is a plain name ending in `.gguf`; raises `RefusedName` otherwise."""
    check_part(file, "file name")
    if not file.lower().endswith(".gguf") or len(file) == len(".gguf"):
        raise RefusedName(f'refused the file name "{_shown(file)}", which does not end in .gguf: choose a GGUF file')
    return file


def check_member(path: str) -> str:
    """`path`, if it is a relative path of plain names inside a repo or an archive; raises `RefusedName` otherwise.

    It is used to ask for the file and never becomes a place on this machine, except for its last part.
    """
    parts = path.split("/")
    for part in parts:
        check_part(part, "path")
    check_file(parts[-1])
    return path


def place_of(repo: str, file: str) -> PurePosixPath:
    """Where a repo's file lives below the models folder: `owner/repo/file.gguf`. Raises `RefusedName` if refused."""
    return PurePosixPath(check_repo(repo)) / check_file(file)


def is_projector(file: str) -> bool:
    """Whether a file of this name lets a model see pictures, rather than being a model."""
    name = file.rpartition("/")[2].lower()
    return name.startswith("mmproj") or bool(re.search(r"[._-]mmproj[._-]", name))


def split_siblings(file: str) -> list[str]:
    """All file names of the split GGUF that `file` is part of, in order; `[file]` where it is not split."""
    match = _SPLIT.fullmatch(file)
    if not match:
        return [file]
    ending = file[len(match["stem"]) :]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MOST_PARTS:
        return [file]
    return [f"{match['stem']}-{number:05}{ending[6:]}" for number in range(1, count + 1)]


@lru_cache(maxsize=4096)  # a catalogue says most of its names several times
def _fault_of(name: str) -> str | None:
    if not name:
        return "is empty"
    if len(name) > _NAME_LIMIT:
        return f"is longer than {_NAME_LIMIT} characters"
    if name.endswith("."):
        return "ends in a dot"
    if _DEVICES.fullmatch(name):
        return "is a device under Windows"
    # Everything else a hub could use harmfully has a character that no honest GGUF name needs: separators, drive
    # letters, alternate streams, wildcards, quotes, spaces, control and direction characters, look-alikes.
    if not _ALLOWED.fullmatch(name):
        return "may hold only letters, digits and . _ + - after a first letter or digit"
    return None


def _shown(name: str) -> str:
    shown = safe_line(name)
    return shown if len(shown) <= 80 else shown[:79] + "…"
