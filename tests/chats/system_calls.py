"""System calls of the SQLite library that fail when told to: by its own hook for tests, reached through ctypes."""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POINTERS = ["next", "name", "data", "open", "delete", "access", "full_name", "dl_open", "dl_error", "dl_sym"]
_MORE = ["dl_close", "random", "sleep", "time", "last_error", "time_64"]
_SET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_GET = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
_SIGNATURES = {
    "open": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "pwrite64": (_LONG, ctypes.c_int, _POINTER, _LONG, _LONG),
    "pwrite": (_LONG, ctypes.c_int, _POINTER, _LONG, _LONG),
    "write": (_LONG, ctypes.c_int, _POINTER, _LONG),
    "ftruncate": (ctypes.c_int, ctypes.c_int, _LONG),
    "unlink": (ctypes.c_int, ctypes.c_char_p),
}


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in _POINTERS + _MORE),
        ("set_call", _SET),
        ("get_call", _GET),
        ("next_call", ctypes.c_void_p),
    ]


class Calls:
    """Counts the calls of the names in `only`; those whose numbers are in `failing` fail with `error`.

    `happened` says whether one did.
    """

    def __init__(self) -> None:
        self.count = 0
        self.only = tuple(_SIGNATURES)
        self.failing: range = range(0)
        self.error = errno.EIO
        self.happened = False

    def is_failing(self, name: str) -> bool:
        if name not in self.only:
            return False
        self.count += 1
        fails = self.count - 1 in self.failing
        self.happened = self.happened or fails
        return fails


def library() -> ctypes.CDLL | None:
    """The SQLite that Python uses; None where it cannot be reached."""
    try:
        found = ctypes.CDLL(_sqlite3.__file__)
        found.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    except (AttributeError, OSError):
        return None
    return found


@contextmanager
def watched_calls() -> Iterator[Calls]:
    """Put a wrapper around each call, for the whole process, until the block ends."""
    found = library()
    assert found
    vfs = found.sqlite3_vfs_find(None)
    calls = Calls()
    wrappers = []
    for name, (result, *arguments) in _SIGNATURES.items():
        address = vfs.contents.get_call(vfs, name.encode())
        if address:
            kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
            wrapper = kind(_wrapper(name, kind(address), calls))
            wrappers.append(wrapper)
            vfs.contents.set_call(vfs, name.encode(), ctypes.cast(wrapper, ctypes.c_void_p))
    assert wrappers
    try:
        yield calls
    finally:
        vfs.contents.set_call(vfs, None, None)


def _wrapper(name: str, real: Callable[..., int], calls: Calls) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        if calls.is_failing(name):
            ctypes.set_errno(calls.error)
            return -1
        return real(*arguments)

    return call
