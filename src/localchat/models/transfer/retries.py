"""What a failed attempt means: that a source is given up, or that another attempt may do better, and when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from localchat.errors import Interrupted
from localchat.models.transfer.progress import STOPPED, Meter
from localchat.models.transfer.transport import Cancelled, Reply, TransportError

TRIES = 4
"""Attempts in a row that bring nothing new before a source is given up."""

_FIRST_PAUSE_S = 0.5
_LONGEST_WAIT_S = 30.0
_POLL_S = 0.05

Explain = Callable[[Reply], str]
"""Says in a few words what an unwelcome status means at this source."""


class SourceFailed(Exception):
    """A source cannot provide the file; the text is a short reason, and the next source is tried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Exception):
    """One attempt failed; another one may do better, after `wait` seconds where the server named a time.

    `busy`: the server has too much to do. `range_refused`: it did not send the part that was asked for. `changed`:
    what it has now is not what the bytes so far are from.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait: float | None = None,
        busy: bool = False,
        range_refused: bool = False,
        changed: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.busy = busy
        self.range_refused = range_refused
        self.changed = changed


class Patience:
    """How often, and how long, was tried in vain since anything came."""

    def __init__(self) -> None:
        self.tries = 0
        self._waited = 0.0

    def reset(self) -> None:
        """Begin anew: something came."""
        self.tries, self._waited = 0, 0.0

    def pause_s(self, reason: str, asked: float | None) -> float:
        """Seconds until another attempt: as the server asked, or longer each time, never all at the same moment.

        Raises `SourceFailed` where the server asked for more than a person should be kept waiting.
        """
        if asked is None:
            asked = _FIRST_PAUSE_S * 2 ** (self.tries - 1) * random.uniform(0.5, 1.5)
        elif self._waited + asked > _LONGEST_WAIT_S:
            raise SourceFailed(f"{reason} and asks to come back in {asked:,.0f} s")
        self._waited += asked
        return asked


def retrying(attempt: Callable[[], Reply], meter: Meter, cancelled: Cancelled | None, explain: Explain) -> Reply:
    """Run a request without a body until it is answered for good. Raises `SourceFailed`, `Interrupted`."""
    patience = Patience()
    while True:
        patience.tries += 1
        try:
            reply = attempt()
            if reply.status < 400:
                return reply
            reply.close()
            raise refusal(reply, explain, fresh_may_help=False)
        except TransportError as error:
            if error.final or error.stalled or not error.reached or patience.tries >= TRIES:
                raise SourceFailed(error.reason) from error
            reason, asked = error.reason, None
        except Retry as retry:
            if patience.tries >= TRIES:
                raise SourceFailed(retry.reason) from retry
            reason, asked = retry.reason, retry.wait
        wait = patience.pause_s(reason, asked)
        meter.say(notice(reason, wait))
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0:
            if cancelled and cancelled():
                raise Interrupted(STOPPED)
            time.sleep(min(left, _POLL_S))


def refusal(reply: Reply, explain: Explain, *, fresh_may_help: bool) -> Exception:
    """What an error status means for the next step; `fresh_may_help`: the next attempt may be led elsewhere."""
    reason = explain(reply)
    transient = reply.status in (408, 425, 429) or reply.status >= 500
    if not transient and not fresh_may_help:
        return SourceFailed(reason)
    wait = retry_after(reply.headers.get("retry-after", ""))
    return Retry(reason, wait=wait, busy=reply.status in (429, 503))


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None where it says neither."""
    value = value.strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def notice(reason: str, wait: float) -> str:
    """The sentence for the person who waits."""
    return f"{reason}; trying again in {max(1, round(wait))} s"
