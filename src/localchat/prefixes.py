"""The prefix cache on disk: the folder with what models have read, within a limit, whatever happens to it.

A conversation is saved in chunks, each of which names the one before it, so that what two conversations share lies here
once; models whose memory cannot be cut are saved whole (`prefix_file.Kind`). Everything here can be had again by
reading: whatever goes wrong costs one line on stderr, and nothing is raised. Nothing native is loaded here.

    store = PrefixStore(paths().prefixes, cap)
    store.load()                                          find out what is there (takes a moment: on a thread)
    store.put(Header(key=…, kind="chunk", parent="", start=0, tokens=array("i", tokens).tobytes(), …), payload)
    chain, covered = store.index.chain(key, tokens)       what a prompt begins with
    payload = store.payload(chain[0])                     verified bytes, or None where the file is gone or broken
    store.touch(reversed(chain))                          they were of use: others go before them
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from localchat import prefix_file
from localchat.errors import LocalchatError
from localchat.paths import private_folder, write_private
from localchat.prefix_file import SUFFIX, Broken, Buffer, Entry, Header
from localchat.prefix_index import PrefixIndex

KEPT_DAYS = 30.0
"""An entry that was of no use for so long goes: it holds what somebody said."""

_LEFT_FREE = 1 << 30
"""Bytes that are left free on the disk, or a twentieth of a small one."""

_PAUSE_S = 60.0
"""How long nothing is written after a write that failed: a full disk must not fill the log too."""

_MARGIN = 0.05
"""How much of the cap is freed beyond what is needed, so that not every entry has to make room for itself."""

_TEMPORARY_S = 3600.0
"""Age at which a temporary file is one that a crash left behind."""

_CLEARED = "cleared"
"""An empty file whose time says when somebody last removed everything."""

_HASHES = "models.json"

_DAY_NS = 86_400 * 10**9
_HEADER_BYTES = 4096


class PrefixStore:
    """The entries under `folder`, at most `cap` bytes of them (0: none are written). For any thread.

    `engine`: the stamp of the engine's build; entries of another build can never be used again and go as they are
    found ("": they stay). Several processes may use one folder: each finds what the others wrote when it loads.
    """

    def __init__(self, folder: Path, cap: int, engine: str = "") -> None:
        self.folder = folder
        self.cap = cap
        self.index = PrefixIndex()
        self._engine = engine
        self._lock = threading.RLock()
        self._latest = 0
        self._quiet_until = 0.0
        self._said: set[str] = set()

    def load(self, *, tidy: bool = True) -> None:
        """Find out what is there. With `tidy`, what is broken, orphaned, too old or of another build goes.

        What cannot be read just now is no worse for that (too many files are open, a disk is busy): it stays, with what
        is built on it, and counts as not there.
        """
        known = {entry.path: entry for entry in self.index.entries()}
        found = []
        unreadable: set[str] = set()
        for path in self._entry_files(tidy=tidy):
            try:
                status, before = path.stat(), known.get(path)
                if before and before.size == status.st_size:
                    before.used = status.st_mtime_ns
                    found.append(before)
                else:
                    found.append(prefix_file.describe(path))
            except FileNotFoundError:
                continue
            except (Broken, OSError) as error:
                self._discard(path, error, tidy=tidy)
                if not isinstance(error, Broken):
                    unreadable.add(path.stem)
        if tidy:
            self._straighten(found)
        oldest = time.time_ns() - KEPT_DAYS * _DAY_NS
        kept: dict[str, Entry] = {}
        # Parents come first, so that an entry whose parent is gone is seen at once.
        for entry in sorted(found, key=lambda entry: entry.header.start):
            header = entry.header
            parent = kept.get(header.parent)
            is_orphan = (parent.end if parent else 0) != header.start
            is_foreign = bool(self._engine) and header.engine != self._engine
            if header.parent in unreadable:
                unreadable.add(entry.id)
            elif tidy and (is_orphan or is_foreign or entry.used < oldest):
                self._unlink(entry.path)
            else:
                kept[entry.id] = entry
        self.index.replace(kept.values())

    def payload(self, entry: Entry) -> memoryview | None:
        """The verified payload of an entry in writable memory; one that cannot be had is forgotten, and None."""
        try:
            return prefix_file.read(entry)
        except FileNotFoundError:
            pass  # cleared, or evicted by another process
        except (Broken, OSError, MemoryError) as error:
            self._discard(entry.path, error, tidy=True)
        self.index.forget(entry)
        return None

    def is_there(self, entries: Iterable[Entry]) -> bool:
        """Whether all these files are still there; the first that is not is forgotten, with what is built on it."""
        for entry in entries:
            if not os.path.exists(entry.path):  # noqa: PTH110  (unlike Path.exists it never raises)
                self.index.forget(entry)
                return False
        return True

    @property
    def accepts(self) -> bool:
        """Whether `put` would try; not for a minute after it failed."""
        return time.monotonic() >= self._quiet_until

    def put(self, header: Header, payload: Buffer) -> bool:
        """Write an entry, and remove what it takes the place of; False where it is not there afterwards."""
        size = len(payload) + len(header.tokens) + _HEADER_BYTES
        if size > self.cap or not self.accepts:
            return False
        path = self.folder / header.key / f"{header.id}{SUFFIX}"
        try:
            if not self._has_parent(header) or not self._make_room(size, header):
                return False
            private_folder(self.folder)
            private_folder(path.parent)
            entry = Entry(path, header, prefix_file.write(path, header, payload), 0)
        except (OSError, LocalchatError, MemoryError) as error:
            self._quiet_until = time.monotonic() + _PAUSE_S
            self._say(f"nothing more is saved for a minute: {_reason(error)}")
            return False
        self.index.add(entry)
        self.touch([entry, *self.index.ancestors(header)])
        for other in self.index.superfluous_beside(entry):
            self.remove(other)
        return True

    def touch(self, entries: Iterable[Entry]) -> None:
        """Remember that these were of use just now, the last of a conversation first: so it also goes first."""
        for entry in entries:
            with self._lock:
                # A clock that was put back must not make the newest the oldest.
                self._latest = entry.used = max(time.time_ns(), self._latest + 1000)
            with suppress(OSError):
                os.utime(entry.path, ns=(entry.used, entry.used))

    def remove(self, entry: Entry) -> None:
        """Remove an entry, and what is built on it."""
        for one in self.index.forget(entry):
            self._unlink(one.path)

    def remove_model(self, sha256: str) -> None:
        """Remove all that belongs to a model, which is no longer here."""
        for entry in self.index.entries():
            if entry.header.model == sha256:
                self.remove(entry)
        self._remove_empty_folders()

    def clear(self, unused_days: float = 0.0) -> tuple[int, int, int]:
        """Remove all that was of no use for so many days, files that nobody understands included.

        Returns how many files went, how many bytes, and how many files could not be removed. Without days, other
        processes are told (`cleared`), so that they do not write again what they still have in memory.
        """
        if not unused_days:
            with suppress(OSError, LocalchatError):
                private_folder(self.folder)
                (self.folder / _CLEARED).touch(mode=0o600)
        oldest = time.time_ns() - unused_days * _DAY_NS
        count = freed = left = 0
        for path in self.files():
            try:
                status = path.lstat()
                if not unused_days or status.st_mtime_ns <= oldest:
                    path.unlink()
                    count, freed = count + 1, freed + status.st_size
            except FileNotFoundError:
                continue
            except OSError:
                left += 1
        self.index.replace(entry for entry in self.index.entries() if entry.path.exists())
        self._remove_empty_folders()
        return count, freed, left

    @property
    def cleared(self) -> int:
        """When somebody last removed everything, in nanoseconds since 1970; 0: nobody has."""
        try:
            return (self.folder / _CLEARED).stat().st_mtime_ns
        except OSError:
            return 0

    def files(self) -> list[Path]:
        """Every file of the cache, also one that is just being written."""
        return [path for folder in self._listed(self.folder) for path in self._listed(folder)]

    def _entry_files(self, *, tidy: bool) -> list[Path]:
        """The entries' files; with `tidy`, temporary files that a crash left behind go."""
        files = []
        for path in self.files():
            if path.name.startswith("."):
                with suppress(OSError):
                    if tidy and abs(time.time() - path.lstat().st_mtime) > _TEMPORARY_S:
                        path.unlink()
            elif path.suffix == SUFFIX:
                files.append(path)
        return files

    def _listed(self, folder: Path) -> list[Path]:
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._say(f"{folder} cannot be read: {_reason(error)}")
            return []

    def _has_parent(self, header: Header) -> bool:
        if not header.parent:
            return header.start == 0
        parent = self.index.parent(header)
        return parent is not None and self.is_there([parent])

    def _make_room(self, size: int, header: Header) -> bool:
        """Let go what was of use the longest ago until `size` bytes fit; never what `header` is built on."""
        if self.index.total() + size <= self._room():
            return True
        self.load()  # another process may have written, or made room already
        total, room = self.index.total(), self._room()
        wanted = room - size - int(_MARGIN * min(room, self.cap))
        needed = {entry.id for entry in self.index.ancestors(header)}
        if size + sum(entry.size for entry in self.index.entries() if entry.id in needed) > room:
            # Nothing is removed for what would not fit all the same.
            self._say("the disk is nearly full, or the cap is small: nothing more is saved")
            return False
        for entry in self.index.least_useful_first():
            if total <= wanted:
                break
            if entry.id not in needed:
                self.remove(entry)
                total -= entry.size
        return total + size <= room

    def _room(self) -> int:
        """Bytes that all entries together may take."""
        try:
            there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
            disk = shutil.disk_usage(there)
        except (OSError, StopIteration):
            return self.cap
        return min(self.cap, self.index.total() + disk.free - min(_LEFT_FREE, disk.total // 20))

    def _straighten(self, entries: list[Entry]) -> None:
        """Give times that are still to come back to the present, in their order: the clock was wrong once."""
        now = time.time_ns()
        self._latest = max((entry.used for entry in entries), default=0)
        if now < Path(__file__).stat().st_mtime_ns:
            return  # it is wrong now: a machine that woke without the time
        ahead = sorted((entry for entry in entries if entry.used > now), key=lambda entry: entry.used)
        for index, entry in enumerate(ahead):
            entry.used = now - (len(ahead) - index) * 1000
            with suppress(OSError):
                os.utime(entry.path, ns=(entry.used, entry.used))
        self._latest = min(now, self._latest)

    def _discard(self, path: Path, error: Exception, *, tidy: bool) -> None:
        """Pass over a file; with `tidy` it goes, if its content is wrong."""
        self._say(f"{path.name} is ignored: {_reason(error)}")
        if tidy and isinstance(error, Broken):
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._say(f"{path.name} cannot be removed: {_reason(error)}")

    def _remove_empty_folders(self) -> None:
        for folder in self._listed(self.folder):
            with suppress(OSError):
                folder.rmdir()

    def _say(self, text: str) -> None:
        """One line in the host's log; the same one only once."""
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            with suppress(OSError, ValueError):
                print(f"prefix cache: {text}", file=sys.stderr, flush=True)


def known_hashes(folder: Path) -> dict[str, list[str | int]]:
    """Model files that were hashed for this cache: by path, the sha256 and the file's size, time (ns) and inode."""
    try:
        return msgspec.json.decode((folder / _HASHES).read_bytes(), type=dict[str, list[str | int]])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def remember_hash(folder: Path, path: Path, sha256: str, version: tuple[int, int, int]) -> None:
    """Remember the sha256 of a model file; where that cannot be, it is hashed again one day."""
    known = {**known_hashes(folder), str(path): [sha256, *version]}
    with suppress(OSError, LocalchatError):
        write_private(folder / _HASHES, msgspec.json.encode(known))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return error.message if isinstance(error, LocalchatError) else str(error) or type(error).__name__
