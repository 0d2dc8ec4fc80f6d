"""Fetching a model because a command needs one: the same words and figures wherever that happens."""

from __future__ import annotations

from localchat.cli.progress import ProgressLine, seconds, size
from localchat.models.fetch import ensure
from localchat.models.progress import FetchProgress


def fetch_missing(name: str, progress: ProgressLine) -> None:
    """Fetch what `name` ("": the starter) means, with progress on stderr. Raises what `ensure` raises."""
    begun = bool(name)

    def on_progress(state: FetchProgress) -> None:
        nonlocal begun
        if not begun:
            progress.note("no model is here yet: fetching the starter, once")
            begun = True
        if state.notice:
            progress.note(state.notice)
        elif state.total or state.done:
            progress.show(describe_fetch(state), also_plain=True)

    file = ensure(name or None, on_progress=on_progress)
    progress.note(f"{file.name} is here and verified ({size(file.size)})")


def describe_fetch(state: FetchProgress) -> str:
    """A fetch in a few words: how much of how much, how fast, how long still."""
    share = f"{state.done / state.total:.0%}, " if state.total else ""
    total = f" of {size(state.total)}" if state.total else ""
    speed = f", {size(state.bytes_per_second)}/s" if state.bytes_per_second else ""
    left = f", {seconds(state.eta)} left" if state.eta is not None else ""
    return f"fetching from {state.source}: {share}{size(state.done)}{total}{speed}{left}"
