"""What the command hands to the screen works while the screen is drawn: then stderr is not the terminal's."""

from __future__ import annotations

import sys

import pytest

from localchat.cli.fetching import describe_fetch
from localchat.models.transfer.progress import FetchProgress


class Captured:
    """stderr as Textual puts it while it draws: it says that it is a terminal, and has no encoding."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        raise AssertionError("nothing may be written over the screen")


def test_a_fetch_is_described_without_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Captured())
    state = FetchProgress(source="hub", done=25_000_000, total=100_000_000, bytes_per_second=5e6, eta=15.0)
    assert describe_fetch(state, drawn=False) == "25%, 25.0 MB of 100.0 MB, 5.0 MB/s, 15 s left, fetching from hub"
