"""Which files a person may mean by a part of a name: those of the working folder, or those of a path being typed.

Everything here may wait for a disk, and is called on a thread; it knows nothing of screens.
"""

from __future__ import annotations

import heapq
import os
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LIMIT = 300_000  # files that are looked at
_WALK_LIMIT = 50_000  # files of a folder that git does not know
_WALK_S = 3.0
_FOLDER_LIMIT = 10_000  # entries of one folder
_GIT_S = 20.0
_FRESH_S = 15.0
_HUGE = {"node_modules", "__pycache__", "venv", "env", "target", "dist", "build", "site-packages", "Library"}
_PATH_STARTS = ("~", "/", "./", "../")


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder: `shown` is what would have to be typed for it (a folder ends with a slash)."""

    shown: str
    path: Path

    @property
    def folder(self) -> bool:
        """Whether there is more below it."""
        return self.shown.endswith("/")


class Files:
    """What can be attached from `folder`; the list of its files is kept for some seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: list[str] = []
        self._listed: float | None = None
        self._narrowed: tuple[str, list[str]] = ("", [])

    def find(self, typed: str, limit: int = 50) -> list[Found]:
        """The files that `typed` may mean, the likeliest first. Reads folders: not for the event loop."""
        if typed.startswith(_PATH_STARTS) or typed in (".", ".."):
            return _below(typed, self.folder, limit)
        if self._listed is None or time.monotonic() - self._listed > _FRESH_S:
            self._names = listed(self.folder)
            self._narrowed = ("", self._names)
            self._listed = time.monotonic()
        # What matches more letters is among what matched fewer.
        before, names = self._narrowed
        if not typed.lower().startswith(before):
            names = self._names
        ranked = _ranked(typed, names)
        self._narrowed = (typed.lower(), [name for _, name in ranked])
        return [Found(name, self.folder / name) for _, name in heapq.nsmallest(limit, ranked)]


def listed(folder: Path) -> list[str]:
    """The files of a folder, by their paths from there: those that git does not ignore, else those of a short walk."""
    return _of_git(folder) or _of_walk(folder)


def best(typed: str, names: Iterable[str], limit: int) -> list[str]:
    """Those of `names` that contain the letters of `typed` in their order, the likeliest first."""
    return [name for _, name in heapq.nsmallest(limit, _ranked(typed, names))]


_Rank = tuple[int, int, int]


def _ranked(typed: str, names: Iterable[str]) -> list[tuple[_Rank, str]]:
    wanted = typed.lower()
    return [(rank, name) for name in names if (rank := _rank(wanted, name.lower())) is not None]


def _rank(wanted: str, name: str) -> _Rank | None:
    """How well `wanted` fits a name (both in lower case; less is better), None where it does not.

    First the kind of match, then how scattered its letters are, then how long the path is.
    """
    if not wanted:
        return name.count("/"), 0, len(name)
    body = name.rstrip("/")
    base = body[body.rfind("/") + 1 :]
    at = base.find(wanted)
    if at == 0:
        return (0 if base == wanted else 1), 0, len(name)
    if at > 0:
        return (2 if not base[at - 1].isalnum() else 3), 0, len(name)
    if wanted in name:
        return 4, 0, len(name)
    if (span := _span(wanted, base)) is not None:
        return 5, span, len(name)
    if (span := _span(wanted, name)) is not None:
        return 6, span, len(name)
    return None


def _span(wanted: str, name: str) -> int | None:
    """Over how many characters the letters of `wanted` are spread, read from the left; None: they are not there.

    One more where the name does not begin with them.
    """
    first = at = -1
    for letter in wanted:
        at = name.find(letter, at + 1)
        if at < 0:
            return None
        if first < 0:
            first = at
    return at - first + (first > 0)


def _of_git(folder: Path) -> list[str]:
    git = shutil.which("git")
    if not git:
        return []
    # A repository's own configuration could name a program to run (fsmonitor): it is told not to.
    command = [git, "-c", "core.fsmonitor=false", "-C", str(folder), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    names = os.fsdecode(done.stdout).split("\0", _LIMIT)[:_LIMIT]
    return [name for name in dict.fromkeys(names) if name]


def _of_walk(folder: Path) -> list[str]:
    """The files below a folder, the nearest first: no hidden ones, none behind links, and an end to it all."""
    found: list[str] = []
    waiting = deque([""])
    until = time.monotonic() + _WALK_S
    while waiting and len(found) < _WALK_LIMIT and time.monotonic() < until:
        prefix = waiting.popleft()
        for entry in _entries(folder / prefix):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if entry.name not in _HUGE and not entry.is_symlink():
                    waiting.append(f"{prefix}{entry.name}/")
            else:
                found.append(prefix + entry.name)
    return found


def _below(typed: str, folder: Path, limit: int) -> list[Found]:
    """What the folder of a path being typed holds, as far as it fits what comes after the last slash."""
    if typed in ("~", ".", ".."):
        typed += "/"
    parent, slash, rest = typed.rpartition("/")
    parent += slash
    place = seen_from(folder, parent)
    names = [
        entry.name + ("/" if _is_folder(entry) else "")
        for entry in _entries(place)
        if rest.startswith(".") or not entry.name.startswith(".")
    ]
    return [Found(parent + name, place / name) for name in best(rest, names, limit)]


def seen_from(folder: Path, name: str) -> Path:
    """A path as a person spells it, seen from `folder`; a ~ that stands for nobody stays as it is."""
    path = Path(name)
    with suppress(RuntimeError):
        path = path.expanduser()
    return folder / path


def _entries(folder: Path) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, _FOLDER_LIMIT), key=lambda entry: entry.name)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def pasted_files(text: str) -> list[Path]:
    """The files that a pasted line names, as terminals paste what is dropped on them: bare, quoted, escaped, file://.

    Empty where any part of the line is no existing file. Asks the disk: not for the event loop.
    """
    line = text.strip()
    if not line or "\n" in line or len(line) > 4096:
        return []
    try:
        parts = shlex.split(line)
    except ValueError:
        parts = []
    for names in ([line], parts):
        paths = [_path_of(name) for name in names]
        if paths and all(path is not None and _is_file(path) for path in paths):
            return [path for path in paths if path]
    return []


def _path_of(name: str) -> Path | None:
    """An absolute path in its usual spellings; a mere word is none, even where a file goes by it."""
    if name.startswith("file://"):
        parts = urlsplit(name)
        name = unquote(parts.path) if parts.netloc in ("", "localhost") else ""
    return seen_from(Path("/"), name) if name.startswith(("/", "~/")) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
