"""Has a model tried on this machine: what `localchat bench` and `localchat tune` do, for a face that shows it.

The engine's native code may abort, so it is tried in a process of its own (`engine.trial`). Whatever ends this process
ends that one, and nothing half is kept. An engine that holds a model is asked to give its memory back first, and one
that is answering is waited for: both would be measured with it.
"""

from __future__ import annotations

import http.client
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from localchat import protocol
from localchat.client.child import Child
from localchat.client.connect import connect_if_running
from localchat.client.local import LocalEngine
from localchat.client.measured import REBUILD
from localchat.errors import EngineFailed, LocalchatError, from_code
from localchat.locks import FileLock
from localchat.paths import paths, private_folder
from localchat.safe_text import safe_line
from localchat.trials import Bench, Order, Tuned

_TIMEOUT_S = 600.0
"""Several times what it takes; a machine that was busy all the time would measure nothing anyway."""

# -P: a file of the folder that the person is in must not be taken for a module.
_TRIAL = ("-P", "-m", "localchat.engine.trial")

_LOOK_EVERY_S = 0.25
_UNLOADS_IN_S = 20.0
_PATIENCE_S = 5.0

OnProgress = Callable[[float, str], None]
"""Told how far a trial is, from 0 to 1, and what it is doing."""
OnNotice = Callable[[str], None]
"""Told what a person should know: a line that stays."""


class _Line(msgspec.Struct):
    """What the measuring process prints: how far it is, a remark, or how it ended."""

    share: float = 0.0
    doing: str = ""
    notice: str = ""
    bench: Bench | None = None
    tuned: Tuned | None = None
    error: str = ""
    code: str = ""


def bench(order: Order, on_progress: OnProgress, on_notice: OnNotice) -> Bench:
    """Measure a model. Raises what the engine raises (`DoesNotFit`, `DamagedFile`, …), `EngineFailed` where it dies."""
    found = _run(order, on_progress, on_notice).bench
    assert found
    return found


def tune(order: Order, on_progress: OnProgress, on_notice: OnNotice) -> Tuned:
    """Find a model's best settings. Raises as `bench`."""
    found = _run(order, on_progress, on_notice).tuned
    assert found
    return found


@contextmanager
def alone(on_notice: OnNotice) -> Iterator[None]:
    """Be the only one that measures: an idle engine of ours is asked to unload, a busy one is waited for.

    Raises `EngineFailed` where another bench or tune is running.
    """
    private_folder(paths().runtime, shared_parent=True)
    lock = FileLock(paths().trial_lock)
    if not lock.acquire(blocking=False):
        raise EngineFailed("another `localchat bench` or `tune` is measuring: wait until it is done")
    try:
        _make_room(on_notice)
        yield
    finally:
        lock.release()


def _make_room(on_notice: OnNotice) -> None:
    """Wait until the engine is idle; where nobody watches it, have it give its memory back."""
    engine, asked = LocalEngine(), 0.0
    was_busy = False
    while True:
        try:
            status = engine.status()
        except LocalchatError:
            return  # gone meanwhile, or of another version: what it takes is seen as others' share
        if not status or (not status.active and not status.queued and not (status.model and status.on_demand)):
            return
        if status.active or status.queued:
            if not was_busy:
                on_notice("the engine is answering: waiting until it is done (Ctrl+C gives up)")
            was_busy = True
        elif not asked:
            asked = time.monotonic()
            _unload()
        elif time.monotonic() - asked > _UNLOADS_IN_S:
            return
        time.sleep(_LOOK_EVERY_S if was_busy else 0.02)


def _unload() -> None:
    connection = connect_if_running(_PATIENCE_S)
    if not connection:
        return
    with suppress(OSError, http.client.HTTPException):
        connection.request("POST", protocol.UNLOAD_PATH, body=b"{}", headers={"Content-Type": "application/json"})
        connection.getresponse().read()
    connection.close()


def _run(order: Order, on_progress: OnProgress, on_notice: OnNotice) -> _Line:
    """Run the measuring process to its end; the line with its result."""
    last = _Line()
    with tempfile.TemporaryFile() as said:
        arguments = (*_TRIAL, msgspec.json.encode(order).decode())
        with Child(arguments, _Line, _TIMEOUT_S, said) as child:
            for line in child:
                if line.notice:
                    on_notice(line.notice)
                elif line.doing:
                    on_progress(min(1.0, line.share), line.doing)
                else:
                    last = line
            code = child.exit_code()
        if last.error:
            raise from_code(last.code, last.error)
        if child.was_overdue:
            raise EngineFailed(
                f"measuring was not done after {_TIMEOUT_S / 60:.0f} minutes: close what uses the processor (`top` "
                "shows it), or take a smaller model"
            )
        if not last.bench and not last.tuned:
            raise EngineFailed(_why(code, said))
    return last


def _why(code: int, said: IO[bytes]) -> str:
    """What a measuring process died of, as far as it told."""
    if code == -signal.SIGILL:
        return f"llama.cpp was built for another processor than this one: compile it here: {REBUILD}"
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "assert" in line.lower() or "error" in line.lower()]
    words = f": {safe_line((telling or lines)[-1])[:300]}" if lines else ""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the engine died while it tried the model ({how}{words}): try another model, or `localchat doctor`"
