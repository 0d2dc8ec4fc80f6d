"""Pieces, page and typeset text by themselves: what is kept, what is guessed, what can be taken out of a message."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from localchat.tui.blocks import Splitter
from localchat.tui.typeset import Look, code_in, links_in
from localchat.tui.widgets.page import Page
from localchat.tui.widgets.pieces import Inks, Paper, Piece, guessed_lines, plain_parts

STYLE = Style(color="white")
PIECES = st.sampled_from(
    [
        "word ", "\n", "\n\n", "- item\n", "```py\n", "```\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "# Head\n", "> q\n",
        "[text][1] ", "[1]: https://example.org/one\n", "x = 1\n" * 40, "漢字" * 30,
    ]
)  # fmt: skip


def paper(width: int = 60) -> Paper:
    look = Look(*([STYLE] * len(Look.__dataclass_fields__)))
    return Paper(Console(width=width), look, Inks(*([STYLE] * 6)), width)


def shown(page: Page, on: Paper) -> list[str]:
    lines: list[str] = []
    for piece in page.pieces:
        on.set(piece)
        assert piece.rows is not None
        assert piece.height == piece.gap + len(piece.rows)
        lines += [""] * piece.gap + [row.text for row in piece.rows]
    return lines


@settings(max_examples=100)
@given(st.lists(PIECES, max_size=25), st.data())
def test_a_page_that_grew_looks_like_one_that_came_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    grown, whole, on = Page("answer", paper()), Page("answer", paper()), paper()
    start = 0
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6))), len(text)]:
        grown.append(text[start:end])
        start = end
        if data.draw(st.booleans()):
            shown(grown, on)
        if data.draw(st.booleans()):
            # It ended here for a moment, and went on.
            grown.finish()
    whole.append(text)
    grown.finish()
    whole.finish()
    assert shown(grown, on) == shown(whole, on)


@given(st.lists(PIECES, max_size=25))
def test_what_is_finished_is_not_made_again(parts: list[str]) -> None:
    page = Page("answer", paper())
    kept: list[Piece] = []
    for part in parts:
        page.append(part)
        frozen = page._frozen
        assert page.pieces[: len(kept)] == kept
        kept = page.pieces[:frozen]


@pytest.mark.parametrize("lines", [1, 5, 16])
def test_plain_parts_are_the_text_and_are_short(lines: int) -> None:
    text = "\n".join(["", "a b", "x" * 5000, *(str(n) for n in range(100)), "", ""])
    parts = plain_parts(text, lines)
    assert "".join(parts).replace("\n", "") == text.replace("\n", "")
    assert all(part.count("\n") < lines and len(part) <= 2048 for part in parts)
    # A very long line is the only one that is cut in its middle.
    assert sum(part.count("\n") + 1 for part in parts) == text.count("\n") + 1 + 2


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_a_guess_is_of_the_right_size(text: str, width: int) -> None:
    assert guessed_lines(text, width) == sum(max(1, -(-len(line) // width)) for line in text.split("\n"))


def blocks(text: str) -> list:
    splitter = Splitter()
    splitter.feed(text)
    return splitter.settled()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```py\nx = 1\n\ny\n```\n", ["x = 1\n\ny"]),
        ("1. a\n   ```\n   x\n   ```\n", [None, "x"]),
        ("- ```sh\n  ls\n  ```\n", ["ls"]),
        ("no code, `only` some", [None]),
        ("~~~\nx", ["x"]),
    ],
)
def test_code_is_taken_out(text: str, expected: list[str | None]) -> None:
    assert [code_in(block) for block in blocks(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See [one](https://a.test/1) and [two][2].\n\n[2]: http://b.test\n", ["https://a.test/1", "http://b.test"]),
        ("Written out: https://a.test/x?y=1, and **https://b.test/**.", ["https://a.test/x?y=1", "https://b.test/"]),
        ("<https://a.test> <me@b.test>", ["https://a.test", "mailto:me@b.test"]),
        ("![picture](https://a.test/p.png)", ["https://a.test/p.png"]),
        ("```\ncurl https://a.test/f\n```\n\n- https://b.test\n", ["https://a.test/f", "https://b.test"]),
        ("[a](javascript:alert(1)) [b](file:///etc/passwd) [c](/relative) [d](data:text/html,x)", []),
        ("[a](https://a.test) [again](https://a.test)", ["https://a.test"]),
    ],
)
def test_links_are_listed_and_only_those_of_web_and_mail(text: str, expected: list[str]) -> None:
    assert links_in(blocks(text)) == expected


def test_late_addresses_come_where_they_belong_and_nothing_else_is_made_again() -> None:
    page, on = Page("answer", paper()), paper()
    page.append("See [the notes][1].\n\nOther words.\n\n[1]: https://example.org/notes\n")
    assert "See [the notes][1]." in shown(page, on)
    other = page.pieces[1]
    page.finish()
    assert "See the notes (https://example.org/notes)." in shown(page, on)
    assert page.pieces[1] is other


def test_thoughts_are_set_in() -> None:
    page, on = Page("thought", paper(30)), paper(30)
    numbers = itertools.count()
    page.append(re.sub("word", lambda _: f"w{next(numbers)}", "word " * 30))
    lines = shown(page, on)
    assert all(line.startswith("  ") and len(line) <= 30 for line in lines)
    assert "w29" in lines[-1]
