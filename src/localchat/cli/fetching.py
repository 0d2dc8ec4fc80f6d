"""Fetching or verifying a model because a command needs it: the same words and figures wherever that happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from localchat.cli.progress import ProgressLine, bar, seconds, size
from localchat.errors import Interrupted
from localchat.models.fetch import THIS_MACHINE, ensure
from localchat.models.transfer.progress import FetchProgress


def make_ready(name: str, progress: ProgressLine) -> None:
    """Have what `name` ("": the starter) means here and verified, with progress on stderr. Raises as `ensure` does."""
    begun = False

    def on_progress(state: FetchProgress) -> None:
        nonlocal begun
        if not begun and state.source != THIS_MACHINE:
            amount = f" ({size(state.total)})" if state.total else ""
            what = f"{name} is not here yet: fetching it" if name else "no model is here yet: fetching the starter"
            progress.note(f"{what}, once{amount}")
            begun = True
        show_fetch(state, progress)

    with kept_when_stopped():
        file = ensure(name or None, on_progress=on_progress)
    progress.note(f"{file.name} is here and verified ({size(file.size)})")


@contextmanager
def kept_when_stopped() -> Iterator[None]:
    """Say, where Ctrl+C ends a fetch, that nothing is lost by it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped: what was fetched so far is kept, and asking again goes on from there") from None


def show_fetch(state: FetchProgress, progress: ProgressLine) -> None:
    """Show where a fetch is; what it has to say stays."""
    if state.notice:
        progress.note(state.notice)
    elif state.total or state.done:
        progress.show(describe_fetch(state), also_plain=True)


def describe_fetch(state: FetchProgress, *, drawn: bool = True) -> str:
    """A fetch, or the check of a file, in a few words: how much of how much, how fast, how long still.

    What changes comes first, so that a narrow terminal cuts off what does not. `drawn`: with a bar, where stderr is a
    terminal.
    """
    share = state.done / state.total if state.total else None
    drawing = bar(share) if drawn and share is not None else ""
    told = f"{drawing}{share:.0%}, " if share is not None else ""
    total = f" of {size(state.total)}" if state.total else ""
    speed = f", {size(state.bytes_per_second)}/s" if state.bytes_per_second else ""
    left = f", {seconds(state.eta)} left" if state.eta is not None else ""
    doing = "verifying the model file" if state.source == THIS_MACHINE else f"fetching from {state.source}"
    return f"{told}{size(state.done)}{total}{speed}{left}, {doing}"
