"""From the engine's thread to the event loop: events of one request, several at a time when they come fast."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with one reader on the event loop it was made on; anybody may `put`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[T] = deque()
        self._ready = asyncio.Event()
        self._announced = False

    def put(self, event: T) -> None:
        """Add an event; from any thread. Waking the loop costs a system call, so it is woken once for many."""
        self._events.append(event)
        if not self._announced:
            self._announced = True
            with suppress(RuntimeError):  # the loop has ended, and with it the reader
                self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> list[T]:
        """Wait until something has come, and return all there is; now and then that was taken the last time already."""
        await self._ready.wait()
        self._ready.clear()
        # In this order: an event that comes between the two lines announces itself again.
        self._announced = False
        events: list[T] = []
        while self._events:
            events.append(self._events.popleft())
        return events
