"""Where localchat keeps its files, and how its folders are made private.

`LOCALCHAT_HOME` moves all of them under one folder (tests, a USB stick). The runtime folder alone may stay outside it:
a Unix socket's path holds 107 bytes, so a deep home gets a short runtime folder of its own.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from localchat.errors import LocalchatError, UsageError
from localchat.safe_text import safe_line

HOST_LOG_MARK = "--- localchat host"
"""Begins the first line that a host writes to its log, so that nobody takes an earlier host's words for its own."""

_SOCKET_NAME = "host.sock"
_RUN_USER = "/run/user"
_TEMPORARY = "/tmp"
_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
# sun_path is 108 bytes on Linux and 104 on macOS, with a closing NUL.
_SOCKET_PATH_LIMIT = 107 if sys.platform.startswith("linux") else 103


@dataclass(frozen=True)
class Paths:
    """Every place localchat reads or writes; nothing is created by asking."""

    config: Path
    data: Path
    state: Path
    runtime: Path
    cache: Path

    @property
    def settings(self) -> Path:
        """The person's settings (`settings.toml`)."""
        return self.config / "settings.toml"

    @property
    def own_catalogue(self) -> Path:
        """The person's own `models.toml`, which adds to the shipped one and overrides it."""
        return self.config / "models.toml"

    @property
    def models(self) -> Path:
        """The model files, under plain names."""
        return self.data / "models"

    @property
    def chats(self) -> Path:
        """The conversations, in a folder of their own with what SQLite and its copies put beside them."""
        return self.data / "chats" / "chats.db"

    @property
    def prefixes(self) -> Path:
        """What models have read, so that they need not read it again."""
        return self.cache / "prefixes"

    @property
    def tunings(self) -> Path:
        """What `localchat bench` and `tune` found out about models on this machine."""
        return self.state / "tunings.json"

    @property
    def trial_lock(self) -> Path:
        """Held by `localchat bench` and `tune` while they measure: two at once would measure each other."""
        return self.runtime / "trial.lock"

    @property
    def batches(self) -> Path:
        """Answers of batches that were not finished, so that they can go on (`localchat batch`)."""
        return self.state / "batches"

    @property
    def host_log(self) -> Path:
        """What the engine process wrote, the last run at the end."""
        return self.state / "host.log"

    @property
    def socket(self) -> Path:
        """The host's Unix socket."""
        return self.runtime / _SOCKET_NAME

    @property
    def host_lock(self) -> Path:
        """Held by the host for as long as it lives: one host per user and home."""
        return self.runtime / "host.lock"

    @property
    def start_lock(self) -> Path:
        """Held by a client while it starts a host, so that two clients start one."""
        return self.runtime / "start.lock"


@cache
def paths() -> Paths:
    """The places of this process, from `LOCALCHAT_HOME` or the platform's conventions. Raises `UsageError`."""
    for name in _XDG:
        if not os.path.isabs(os.environ.get(name) or "/"):  # noqa: PTH117
            # To be ignored, says their standard. platformdirs before 4.11.8 takes them, from wherever a process runs.
            del os.environ[name]
    home = os.environ.get("LOCALCHAT_HOME")
    if home:
        try:
            expanded = Path(home).expanduser()
        except RuntimeError:
            raise UsageError(
                f"LOCALCHAT_HOME is {safe_line(home)}, and nobody here has that name: write the folder's whole path"
            ) from None
        root = Path(os.path.abspath(expanded))  # noqa: PTH100  (without "..", so that paths compare)
        return Paths(
            config=root, data=root, state=root, runtime=_runtime_for(root / "run", str(root)), cache=root / "cache"
        )
    from platformdirs import PlatformDirs

    dirs = PlatformDirs("localchat", appauthor=False)
    return Paths(
        config=dirs.user_config_path,
        data=dirs.user_data_path,
        state=dirs.user_state_path,
        runtime=_runtime_for(_login_runtime(), str(dirs.user_data_path)),
        cache=dirs.user_cache_path,
    )


def _login_runtime() -> Path | None:
    """The folder that a login session keeps for sockets; there is none over ssh on some systems, or in a container.

    The variable alone would give a person two hosts: cron lacks it, and sudo may leave another user's there.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"{_RUN_USER}/{os.getuid()}"):
        with suppress(OSError):
            if base and Path(base).is_dir() and Path(base).stat().st_uid == os.getuid():
                return Path(base) / "localchat"
    return None


def _runtime_for(wanted: Path | None, identity: str) -> Path:
    """`wanted`, unless a socket in it could not be bound: then a short folder that `identity` alone decides."""
    if wanted and len(os.fsencode(wanted / _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
        return wanted
    import hashlib

    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:12]
    base = _login_runtime()
    if base and len(str(base)) < 60:
        return base.with_name(f"localchat-{digest}")
    name = f"localchat-{os.getuid()}-{digest}"
    short = Path(tempfile.gettempdir()) / name
    return short if len(os.fsencode(short / _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT else Path(_TEMPORARY) / name


def check_utf8(path: Path) -> None:
    """Raise `UsageError` for a path that cannot be said in JSON, which crosses from one process to another."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{safe_line(str(path))} has a name that is no UTF-8 text: rename it") from None


def private_folder(folder: Path, *, shared_parent: bool = False) -> Path:
    """Make `folder` (and its parents), for this user only (0700) whatever the umask; return it.

    `shared_parent`: others may write beside it (a runtime folder under /tmp), so it must be ours and private.
    Raises `LocalchatError` with the next step where the folder cannot be made or is not ours.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if shared_parent and (status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode)):
            raise LocalchatError(f"{folder} belongs to another user: remove it, or set LOCALCHAT_HOME to a short path")
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise LocalchatError(
            f"cannot use the folder {folder} ({error.strerror}): "
            "make it writable, or set LOCALCHAT_HOME to a folder that is"
        ) from error
    return folder


def write_private(file: Path, content: bytes) -> None:
    """Put `content` into `file` at once or not at all, readable by this user only; its folder is made if need be.

    For what can be had again (indexes, measurements): a power cut may lose it. Raises `LocalchatError`, `OSError`.
    """
    private_folder(file.parent)
    temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
