"""Models that are fetched while the person chats: one at a time, in the order in which they were asked for.

Knows `models` and `client`, and nothing of Textual. Everything slow happens on a thread of its own; who shows it looks
in, or is told of each change. What was fetched so far stays when the program ends, and asking again goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from localchat.errors import FetchError, Interrupted, LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.words import duration, size

if TYPE_CHECKING:
    from localchat.machine import Machine
    from localchat.models.assess import Circumstances
    from localchat.models.plan import Plan
    from localchat.models.store import ModelFile
    from localchat.models.transfer.progress import FetchProgress

Stage = Literal["waiting", "looking", "measuring", "fetching", "verifying", "here", "failed", "stopped"]
_OVER: tuple[Stage, ...] = ("here", "failed", "stopped")
_PATIENCE_S = 2.0  # for a fetch that is told to end as the program leaves: its partial is closed in good order


@dataclass(frozen=True, slots=True)
class Download:
    """One model on its way, by the `name` it was asked for. `done` and `total` are bytes (0: not known), `eta` seconds.

    `error` says why it failed; `installed` is what the store calls it, once it is here; `notice` is what the fetch had
    to say last (a source that failed, a wait).
    """

    name: str
    stage: Stage = "waiting"
    done: int = 0
    total: int = 0
    bytes_per_second: float = 0.0
    eta: float | None = None
    notice: str = ""
    error: LocalchatError | None = None
    installed: str = ""

    @property
    def running(self) -> bool:
        """Whether it is on its way or waits for its turn."""
        return self.stage not in _OVER

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def describe(download: Download) -> str:
    """How far it is, in a few words: the most important first, parts end with commas."""
    name = safe_line(download.name)
    if download.stage == "waiting":
        return f"{name} waits for the download before it"
    if download.stage == "looking":
        return f"looking for {name}"
    if download.stage == "measuring":
        return f"measuring this machine to choose what is fast here, {download.share:.0%}"
    if download.stage == "here":
        return f"{safe_line(download.installed)} is here"
    if download.stage == "failed":
        return safe_line(download.error.message) if download.error else "failed"
    if download.stage == "stopped":
        return f"{name}: stopped, what came is kept"
    doing = "verifying" if download.stage == "verifying" else "fetching"
    parts = [f"{doing} {name}" + (f": {download.share:.0%}" if download.total else "")]
    parts += [f"{duration(download.eta + 0.999)} left"] if download.eta is not None else []
    parts += [f"{size(download.bytes_per_second)}/s"] if download.bytes_per_second else []
    parts += [f"{size(download.done)} of {size(download.total)}"] if download.total else []
    return ", ".join(parts)


class Downloads:
    """The models that were asked for. `on_change` hears of every change, on the thread that fetches."""

    def __init__(self, on_change: Callable[[Download], object] = lambda _download: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._known: dict[str, Download] = {}
        self._stopped: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, name: str) -> None:
        """Have a model fetched: anything that `localchat pull` takes. One that is on its way already stays so."""
        name = name.strip()
        with self._lock:
            if not name or self._closed or ((known := self._known.get(name)) and known.running):
                return
            self._stopped.discard(name)
            self._known.pop(name, None)
            self._known[name] = Download(name)
            if not self._thread:
                # A daemon: the program does not wait for a hub that says nothing.
                self._thread = threading.Thread(target=self._work, name="downloads", daemon=True)
                self._thread.start()

    def cancel(self, name: str) -> None:
        """Stop fetching a model, or take it out of those that wait. What came is kept."""
        with self._lock:
            self._stopped.add(name)
            known = self._known.get(name)
        if known and known.stage == "waiting":
            self._change(name, stage="stopped")

    def close(self) -> None:
        """End whatever is under way, as the program leaves."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread:
            thread.join(_PATIENCE_S)

    @property
    def known(self) -> list[Download]:
        """All that were asked for, in that order, as they are now."""
        with self._lock:
            return [*self._known.values()]

    @property
    def current(self) -> Download | None:
        """The one that is on its way."""
        return next((one for one in self.known if one.running), None)

    def of(self, name: str) -> Download | None:
        """What is known of one that was asked for."""
        with self._lock:
            return self._known.get(name)

    def _work(self) -> None:
        while name := self._next():
            self._change(name, stage="looking")
            try:
                file = self._bring(name)
                self._change(name, stage="here", installed=file.name)
            except Interrupted:
                self._change(name, stage="stopped")
            except LocalchatError as error:
                self._change(name, stage="failed", error=error)
            except Exception as error:
                # The thread's last line of defence: whatever it was, the person gets a sentence.
                said = safe_line(f"{type(error).__name__}: {error}")
                self._change(
                    name, stage="failed", error=FetchError(f"something unexpected happened ({said}): try again")
                )

    def _next(self) -> str | None:
        """The next that waits; None ends the thread."""
        with self._lock:
            name = next((one.name for one in self._known.values() if one.running), None)
            if self._closed or name is None:
                self._thread = None
                return None
            return name

    def _change(self, name: str, **values: object) -> None:
        with self._lock:
            changed = self._known[name] = replace(self._known[name], **values)  # type: ignore[arg-type]
            closed = self._closed
        if not closed:
            self._on_change(changed)

    def _is_stopped(self, name: str) -> bool:
        return self._closed or name in self._stopped

    def _bring(self, name: str) -> ModelFile:
        """Fetch one model; return it, verified. Raises `LocalchatError` of every kind that planning and fetching do."""
        from localchat.models.fetch import THIS_MACHINE, fetch_files

        def on_progress(state: FetchProgress) -> None:
            if state.notice:
                self._change(name, notice=state.notice)
                return
            self._change(
                name,
                stage="verifying" if state.source == THIS_MACHINE else "fetching",
                done=state.done,
                total=state.total,
                bytes_per_second=state.bytes_per_second,
                eta=state.eta,
            )

        plan = self._plan(name)
        plan.check_fit()
        if self._is_stopped(name):
            raise Interrupted("stopped before anything was fetched")
        self._change(name, stage="fetching", done=0, total=plan.size or 0)
        return fetch_files(plan.files, on_progress=on_progress, cancelled=lambda: self._is_stopped(name))

    def _plan(self, name: str) -> Plan:
        """What is to be fetched; where there is a choice of quantizations, this machine is measured for it, once."""
        from localchat.client import measured
        from localchat.models import plan as plans

        if self._is_stopped(name):
            raise Interrupted("stopped before anything was fetched")
        plan = plans.make(name, circumstances(measured.quick()))
        if not plan.why or plan.is_here or measured.machine(may_measure=False):
            return plan
        plan.check_fit()

        def on_progress(share: float) -> None:
            if self._is_stopped(name):
                raise Interrupted("stopped before anything was fetched")
            self._change(name, stage="measuring", done=round(share * 100), total=100)

        machine = measured.machine(on_progress=on_progress) or measured.quick()
        return plans.make(name, circumstances(machine))


def circumstances(machine: Machine) -> Circumstances:
    """The machine as it is now; what our engine holds counts as free, as it takes one model at a time."""
    from localchat.client import measured
    from localchat.client.local import held_by_engine
    from localchat.models.assess import Circumstances

    devices = measured.gpus() if machine.devices else ()
    return Circumstances.now(machine=machine, freed=held_by_engine(), devices=devices)
