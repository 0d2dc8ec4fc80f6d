"""How long the host lives: busy, idle, told to stop, or making room for a host of another version."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from localchat import __version__
from localchat.errors import EngineLeaving
from localchat.paths import paths
from localchat.protocol import Status

_WATCH_EVERY_S = 1.0


class Life:
    """Counts requests, and decides when the host ends. Used on the event loop only.

    `idle_limit`: seconds without a request after which it ends, or None to stay. `on_make_way` stops listening and
    gives up the lock at once, while running answers go on. `is_reachable` tells whether clients still find it: one that
    was started on demand makes way where they do not. `leaving`: nothing new is taken any more.
    """

    def __init__(self, address: str, idle_limit: float | None, on_demand: bool) -> None:
        self._address = address
        self._idle_limit = idle_limit
        self._on_demand = on_demand
        self._started = time.time()
        self._last_request = time.monotonic()
        self._requests = 0
        self.leaving = False
        self._ended = asyncio.Event()
        self.on_make_way: Callable[[], None] = lambda: None
        self.is_reachable: Callable[[], bool] = lambda: True

    def enter(self) -> Callable[[], None]:
        """Count a request as running until the returned function is called (once or more often).

        Raises `EngineLeaving` where it comes too late.
        """
        if self.leaving:
            raise EngineLeaving("the engine is leaving: ask again")
        self._requests += 1
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._requests -= 1
                self._last_request = time.monotonic()
                if self.leaving and not self._requests:
                    self._ended.set()

        return leave

    def stop(self) -> None:
        """End now, running answers included."""
        self.leaving = True
        self._ended.set()

    def make_way(self) -> None:
        """End as soon as the running answers are through; new requests are for somebody else."""
        if not self.leaving:
            self.leaving = True
            self.on_make_way()
        if not self._requests:
            self._ended.set()

    async def wait(self) -> None:
        """Return when the host shall end."""
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _WATCH_EVERY_S)
            # A log-out, or who tidies up, may remove the folder of the socket; the next client starts another host.
            if self._on_demand and not self.leaving and not self.is_reachable():
                self.make_way()
            left = self._leaves_in()
            if left is not None and left <= 0:
                self.leaving = True
                return

    def _leaves_in(self) -> float | None:
        if self._idle_limit is None or self._requests:
            return None
        return self._idle_limit - (time.monotonic() - self._last_request)

    def status(self) -> Status:
        """What this process is and does, without what only the engine knows."""
        resident, anonymous = memory_in_use()
        return Status(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            idle_s=0.0 if self._requests else time.monotonic() - self._last_request,
            leaves_in_s=self._leaves_in(),
            on_demand=self._on_demand,
            resident_bytes=resident,
            anonymous_bytes=anonymous,
            address=self._address,
            log=str(paths().host_log),
        )


def memory_in_use() -> tuple[int, int]:
    """Bytes of this process in memory: all, and those that no file backs (0 where the system does not tell)."""
    try:
        sizes = {
            line.split(":")[0]: int(line.split()[1]) << 10
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        }
        return sizes["Rss"], sizes["Anonymous"]
    except (OSError, KeyError, ValueError, IndexError):
        import psutil

        return int(psutil.Process().memory_info().rss), 0
