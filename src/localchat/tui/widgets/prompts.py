"""Going through earlier prompts: which one comes before or after, with what is being written kept at the end."""

from __future__ import annotations

from collections.abc import Sequence


class Prompts:
    """What was sent, oldest first. Steps lead through the prompts that begin with what was typed; through all of them
    where none does.
    """

    def __init__(self, sent: Sequence[str] = ()) -> None:
        self._sent = list(sent)
        self._lines: list[str] = []
        self._place = 0

    def add(self, text: str) -> None:
        """`text` was sent; the next step begins at the end again."""
        if not self._sent or self._sent[-1] != text:
            self._sent.append(text)
        self.rest()

    def rest(self) -> None:
        """Stop going through them."""
        self._lines = []

    def step(self, by: int, text: str) -> str | None:
        """The prompt before (-1) or after (1) the one that is shown, which is now `text`; None at either end.

        What was changed in a prompt stays changed until something is sent, as in a shell.
        """
        if not self._lines or self._place == len(self._lines) - 1:
            wanted = [prompt for prompt in self._sent if prompt.startswith(text)] if text else []
            wanted = [prompt for prompt in wanted if prompt != text] or [p for p in self._sent if p != text]
            self._lines = [*wanted, text]
            self._place = len(wanted)
        place = self._place + by
        if not 0 <= place < len(self._lines):
            return None
        self._lines[self._place] = text
        self._place = place
        return self._lines[place]
