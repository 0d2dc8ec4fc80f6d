"""Times as a person reads them in lists: which group of days a chat belongs to, and when a message was written.

Knows only the clock that it is given. Days begin at midnight where that clock is; without a zone that is local time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

Clock = Callable[[], datetime]

UNDATED = "Without a date"
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def day_group(at: float, now: datetime) -> str:
    """The heading for what happened `at` (seconds since the epoch): Today, Yesterday, This week, a month."""
    then = _local(at, now)
    if then is None:
        return UNDATED
    day, today = then.date(), now.date()
    if day >= today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if day >= today - timedelta(days=today.weekday()):
        return "This week"
    month = _MONTHS[day.month - 1]
    return month if day.year == today.year else f"{month} {day.year}"


def when(at: float, now: datetime) -> str:
    """A moment in few words: "14:03", "yesterday 14:03", "3 Mar 14:03", "3 Mar 2024"; "" for none that there is."""
    then = _local(at, now)
    if then is None:
        return ""
    day, today = then.date(), now.date()
    time = f"{then:%H:%M}"
    if day == today:
        return time
    if day == today - timedelta(days=1):
        return f"yesterday {time}"
    date = f"{day.day} {_MONTHS[day.month - 1][:3]}"
    return f"{date} {time}" if day.year == today.year else f"{date} {day.year}"


def _local(at: float, now: datetime) -> datetime | None:
    # Times of imported chats are whatever the file said.
    try:
        return datetime.fromtimestamp(at, now.tzinfo)
    except (OverflowError, ValueError, OSError):
        return None
