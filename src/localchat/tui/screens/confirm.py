"""Asks whether to go on with something that has consequences."""

from __future__ import annotations

from localchat.tui.screens.choose import Choice, Choosing


class ConfirmScreen(Choosing[bool]):
    """Gives True for y, False for n and Esc. Enter takes the marked one, which is no unless `marked` says otherwise.

    `what` says what happens then; `yes` and `no` are the two answers in a word or two.
    """

    def __init__(
        self, question: str, what: str = "", *, yes: str = "Yes", no: str = "No", marked: bool = False
    ) -> None:
        choices = [Choice("y", yes, "", True), Choice("n", no, "", False)]
        super().__init__(question, choices, what, False, marked=0 if marked else 1)
