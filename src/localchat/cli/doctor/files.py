"""What localchat keeps: its folders, the person's own files, the models, and the engine that may be running."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from localchat import __version__
from localchat.cli.doctor.report import Finding
from localchat.cli.progress import size
from localchat.client.local import LocalEngine
from localchat.models import records, store
from localchat.models.catalogue import catalogue
from localchat.models.upkeep import housekeeping
from localchat.paths import paths
from localchat.settings import load

_LITTLE_ROOM = 2 << 30
_MOVE = "make it writable for you, or set LOCALCHAT_HOME to a folder that is"


def places() -> Iterator[Finding]:
    """Where files are, whether they can be written, and whether others could read them."""
    here = paths()
    for what, folder in (
        ("models", here.models),
        ("chats", here.chats.parent),
        ("settings", here.config),
        ("state", here.state),
        ("cache", here.prefixes),
        ("runtime", here.runtime),
    ):
        yield _place(what, folder)
    free = shutil.disk_usage(_existing(here.models)).free
    if free < _LITTLE_ROOM:
        yield Finding("warning", "disk", f"{size(free)} free", "make room: `localchat du` shows what localchat takes")
    else:
        yield Finding("ok", "disk", f"{size(free)} free where the models are")


def _place(what: str, folder: Path) -> Finding:
    existing = _existing(folder)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("problem", "folder", f"{what}: {existing} cannot be written", _MOVE)
    if existing != folder:
        return Finding("ok", "folder", f"{what}: {folder} (not there yet)")
    status = folder.stat()
    if status.st_uid != os.getuid():
        return Finding("problem", "folder", f"{what}: {folder} belongs to another user", _MOVE)
    # Models are no secret, and may lie in a folder that several people share.
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 and what != "models":
        return Finding("warning", "folder", f"{what}: {folder} is open to others ({mode:04o})", f"chmod 700 {folder}")
    return Finding("ok", "folder", f"{what}: {folder}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def own_settings() -> Iterator[Finding]:
    """The person's `settings.toml`. Raises `UsageError` with file, line and key where it is wrong."""
    file = paths().settings
    load(file)
    yield Finding("ok", "settings", f"{file.name} is in order" if file.exists() else f"no {file.name}: the defaults")


def own_catalogue() -> Iterator[Finding]:
    """The catalogue with the person's own `models.toml`. Raises `UsageError` with file, line and key."""
    count, file = len(catalogue().model), paths().own_catalogue
    own = ", your own models.toml among them" if file.exists() else ""
    yield Finding("ok", "catalogue", f"{count} models{own}")


def models() -> Iterator[Finding]:
    """Installed models, those that must be verified again, and what was left behind."""
    found = store.installed()
    held = f"{len(found)} installed, {size(sum(model.size for model in found))}"
    unverified = [
        model.name for model in found if not all(records.is_current(part) for part in store.parts(model.path))
    ]
    if unverified:
        names = ", ".join(unverified[:3]) + (", …" if len(unverified) > 3 else "")
        yield Finding("warning", "models", f"{held}; not verified: {names}", "localchat verify")
    else:
        yield Finding(
            "ok", "models", f"{held}, all verified" if found else "none installed yet: the first question fetches one"
        )
    left, busy = housekeeping.leftovers()
    # An empty lock is nothing to speak of.
    left = [one for one in left if one.kind != "left-over lock"]
    if left:
        kinds = ", ".join(sorted({one.kind for one in left}))
        yield Finding(
            "warning",
            "leftovers",
            f"{size(sum(one.size for one in left))}: {kinds}",
            "`localchat pull` goes on with a download, `localchat prune` removes what nobody needs",
        )
    if busy:
        yield Finding("ok", "downloads", f"{len(busy)} under way")


def engine() -> Iterator[Finding]:
    """Whether an engine process runs. Raises `EngineFailed` where it does not answer."""
    status = LocalEngine().status()
    if not status:
        yield Finding("ok", "process", "no engine is running; it starts with the first question")
        return
    holds = f"holds {status.model.name}" if status.model else "holds no model"
    found = f"version {status.version}, process {status.pid}, {holds}"
    if status.version != __version__:
        yield Finding("warning", "process", found, "`localchat stop` ends it; the next question starts this version")
    else:
        yield Finding("ok", "process", found)
