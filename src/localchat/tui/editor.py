"""Writing a message in the person's own editor (`$VISUAL`, `$EDITOR`), while the chat steps aside.

The chat goes on behind it: an answer that is coming is read and kept, only nothing is drawn.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from textual.app import App, SuspendNotSupported

from localchat.errors import LocalchatError, UsageError
from localchat.paths import paths, private_folder
from localchat.safe_text import safe_line

_LIMIT = 10_000_000  # bytes that are taken back
_USUAL = ("nano", "vim", "vi")


async def edit_text(app: App[object], text: str) -> str:
    """`text` as it stands after the person edited it. Raises `UsageError` where nothing came of it."""
    command = _command()
    try:
        folder = private_folder(paths().state / "editing")
        _sweep(folder)
        file = folder / f"message-{os.getpid()}-{os.urandom(4).hex()}.md"
        try:
            _write(file, text)
            status = await _run(app, [*command, str(file)])
            if status:
                how = f"ended with status {status}" if status > 0 else "was interrupted"
                raise UsageError(f"{safe_line(command[0])} {how}: the text is as it was")
            return _read(file)
        finally:
            _remove(file)
    except OSError as error:
        raise UsageError(f"cannot write in an editor ({error.strerror or error}): the text is as it was") from error
    except UsageError:
        raise
    except LocalchatError as error:
        raise UsageError(error.message) from error


def _command() -> list[str]:
    """The editor and its arguments."""
    for name in ("VISUAL", "EDITOR"):
        if said := os.environ.get(name, "").strip():
            try:
                command = shlex.split(said)
            except ValueError as error:
                raise UsageError(f"${name} is not a command ({error}): set it to an editor") from error
            if not shutil.which(command[0]):
                raise UsageError(f"there is no editor {safe_line(command[0])}: set ${name} to one that is installed")
            return command
    found = next((name for name in _USUAL if shutil.which(name)), None)
    if not found:
        raise UsageError("no editor is named: set $VISUAL or $EDITOR to one")
    return [found]


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as target:
        target.write(text)


def _read(file: Path) -> str:
    with file.open("rb") as source:
        raw = source.read(_LIMIT + 1)
    if len(raw) > _LIMIT:
        raise UsageError(f"the edited text is larger than {_LIMIT // 1_000_000} MB: attach it as a file")
    return raw.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")


def _remove(file: Path) -> None:
    """The file, and what editors leave beside it: backups, swap files."""
    for left in file.parent.glob(f"*{file.stem}*"):
        with suppress(OSError):
            left.unlink()


def _sweep(folder: Path) -> None:
    """Remove what a chat left that was killed while its editor was open: its draft is with the chats."""
    for left in folder.glob("message-*-*.md"):
        if not psutil.pid_exists(int(left.name.split("-")[1])):
            _remove(left)


async def _run(app: App[object], command: list[str]) -> int:
    """Let the editor have the terminal, and wait; its exit status."""
    try:
        # Nothing is drawn in the meantime: the driver has nowhere to write to.
        with _deaf(), app.suspend(), app.batch_update():
            process = await asyncio.create_subprocess_exec(*command)
            try:
                return await process.wait()
            except asyncio.CancelledError:
                with suppress(ProcessLookupError):
                    process.terminate()
                raise
    except SuspendNotSupported as error:
        raise UsageError("this terminal cannot be lent to an editor: write here") from error


@contextmanager
def _deaf() -> Iterator[None]:
    """Let Ctrl+C be the editor's: the terminal sends it to both programs, and ours would end."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGQUIT)
    # asyncio hands out no handler that was set with it; they are put back as they were.
    handlers = dict(getattr(loop, "_signal_handlers", {}))
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, lambda: None)
    try:
        yield
    finally:
        for number in numbers:
            if number in handlers:
                loop.add_signal_handler(number, handlers[number]._callback, *handlers[number]._args)
            else:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])
